"""What learned merges share: options, the run, results."""
