"""AWD, Adaptive Weight Disentanglement (arXiv:2411.18729)."""
