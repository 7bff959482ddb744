"""What comes out of a merge: a trunk with a layer per task, heads, statistics, cards."""
