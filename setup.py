"""The extension; everything else is in pyproject.toml."""

from glob import glob

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup

extension = Extension(
    "fastlstm._core",
    ["fastlstm/_core.pyx", *sorted(glob("csrc/*.c")), *sorted(glob("csrc/kernels/*.c"))],
    include_dirs=["csrc", numpy.get_include()],
    depends=[*glob("csrc/*.h"), *glob("csrc/kernels/*.h"), *glob("csrc/kernels/*.inc")],
    define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")],
    extra_compile_args=["-std=c11", "-O2", "-g0", "-fvisibility=hidden", "-pthread"],
    extra_link_args=["-pthread", "-lm"],
)

setup(ext_modules=cythonize([extension], language_level=3))
