"""Fixtures that all tests share."""

import os
from pathlib import Path

import pytest

from lamina.runtime.cache import default_folder


@pytest.fixture(scope="session")
def kernel_cache() -> Path:
    """One folder of compiled kernels for all tests, kept between runs so that those are fast."""
    return default_folder(os.environ) / "tests"


def pytest_addoption(parser):
    """--update rewrites golden files from what the code does now."""
    parser.addoption("--update", action="store_true", help="rewrite golden files")
