"""What FusionBench's model pools mean to a merging method; the only code that knows pools."""

from .adapter import ClassificationHead, PoolAdapter, adapter_for
from .loading import as_modelpool, load_base, load_task_vectors
from .replaced import with_experts

__all__ = [
    "ClassificationHead",
    "PoolAdapter",
    "adapter_for",
    "as_modelpool",
    "load_base",
    "load_task_vectors",
    "with_experts",
]
