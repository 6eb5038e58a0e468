"""Compiler: from .lam text to a Program."""
