"""Choosing among candidate merges without labels: scores, the search, its response."""
