"""Model Tinting with confidence-gap sampling (arXiv:2412.19098)."""
