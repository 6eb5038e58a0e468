"""The formal grammar, the language tour and the error pages."""
