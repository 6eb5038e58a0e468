"""The CPU target: builds, loads and runs Numba kernels."""
