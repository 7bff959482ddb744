"""AdaMerging (arXiv:2310.02575)."""
