"""Everything is declared in pyproject.toml; this names the CMake project that builds gaia_fast._kernels."""

from setuptools import setup

setup(cmake_source_dir=".")
