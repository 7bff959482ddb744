"""What FusionBench's model pools mean to a merging method; the only code that knows pools."""

from ..common import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    {
        "ClassificationHead": "..merged.heads",
        "PoolAdapter": ".adapter",
        "adapter_for": ".family",
        "as_modelpool": ".family",
        "family_of": ".family",
        "head_site": ".loading",
        "load_base": ".loading",
        "load_task_vectors": ".loading",
        "register_adapter": ".adapter",
        "with_experts": ".replaced",
        "with_shared_heads": ".replaced",
    },
)
