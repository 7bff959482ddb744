"""One file per family of pools; each registers its adapter."""
