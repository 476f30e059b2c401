"""What all tests share."""

from hypothesis import settings

# The same examples in every run: a failure seen once is seen again.
settings.register_profile("fastlstm", derandomize=True, deadline=None, database=None)
settings.load_profile("fastlstm")
