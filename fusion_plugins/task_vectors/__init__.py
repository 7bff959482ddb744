"""Base and experts as task vectors: checks, streaming, Gram matrices, linear merges."""

from .blocks import Block, merge_block
from .checkpoint import Checkpoint, SafetensorsCheckpoint, StateDictCheckpoint
from .collection import TaskVectors
from .gram import GramMatrices, cosine_matrix, gram_matrices
from .merge import (
    as_coefficients,
    merge_each,
    merge_into,
    merged_state_dict,
    require_finite,
)

__all__ = [
    "Block",
    "Checkpoint",
    "GramMatrices",
    "SafetensorsCheckpoint",
    "StateDictCheckpoint",
    "TaskVectors",
    "as_coefficients",
    "cosine_matrix",
    "gram_matrices",
    "merge_block",
    "merge_each",
    "merge_into",
    "merged_state_dict",
    "require_finite",
]
