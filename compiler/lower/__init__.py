"""From the fused Graph to kernels and a Program."""
