"""Kernel texts for the operators that contract or slide windows."""
