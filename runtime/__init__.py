"""Runs Programs; knows nothing of the compiler."""
