"""What all tests share."""

import os

from hypothesis import settings

# The same examples in every run: a failure seen once is seen again.
settings.register_profile("fastlstm", derandomize=True, deadline=None, database=None)
settings.load_profile("fastlstm")

# The backend that the tests install; Keras alone would look for TensorFlow.
os.environ.setdefault("KERAS_BACKEND", "torch")
