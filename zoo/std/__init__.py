"""The layer library, written in the language."""
