"""Model definitions that ship with Lamina."""
