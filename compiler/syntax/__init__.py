"""Surface syntax: text to syntax tree and back."""
