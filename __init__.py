"""Lamina: a graph compiler for neural networks."""
