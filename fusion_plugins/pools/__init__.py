"""What FusionBench's model pools mean to a merging method; the only code that knows pools."""

from ..merged.heads import ClassificationHead
from .adapter import PoolAdapter
from .loading import as_modelpool, head_site, load_base, load_task_vectors
from .registry import adapter_for, family_of, register_adapter
from .replaced import with_experts, with_shared_heads

__all__ = [
    "ClassificationHead",
    "PoolAdapter",
    "adapter_for",
    "as_modelpool",
    "family_of",
    "head_site",
    "load_base",
    "load_task_vectors",
    "register_adapter",
    "with_experts",
    "with_shared_heads",
]
