"""Every operator, once."""
