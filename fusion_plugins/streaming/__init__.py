"""Merging language models shard by shard, from files to files."""

from .algorithm import StreamingAWDAlgorithm

__all__ = ["StreamingAWDAlgorithm"]
