"""Which adapter knows which pool class."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from fusion_bench.modelpool import BaseModelPool

from .adapter import PoolAdapter

_POOLS = "fusion_bench.modelpool"

# By name, because importing some of FusionBench's pools needs Python 3.12, and none of
# them should be imported for the sake of another.
_FAMILIES: dict[str, str | type[PoolAdapter]] = {
    f"{_POOLS}.clip_vision.modelpool.CLIPVisionModelPool": "clip:CLIPAdapter",
    f"{_POOLS}.seq_classification_lm.seq_classification_lm.SequenceClassificationModelPool": (
        "sequence_classification:SequenceClassificationAdapter"
    ),
    f"{_POOLS}.huggingface_gpt2_classification.GPT2ForSequenceClassificationPool": (
        "gpt2:GPT2Adapter"
    ),
    f"{_POOLS}.seq2seq_lm.modelpool.Seq2SeqLMPool": "seq2seq:Seq2SeqAdapter",
    f"{_POOLS}.openclip_vision.modelpool.OpenCLIPVisionModelPool": (
        "openclip:OpenCLIPAdapter"
    ),
    f"{_POOLS}.causal_lm.causal_lm.CausalLMPool": "causal_lm:CausalLMAdapter",
    f"{_POOLS}.nyuv2_modelpool.NYUv2ModelPool": "nyuv2:NYUv2Adapter",
    **{
        f"{_POOLS}.{name.lower()}_for_image_classification.{name}ForImageClassificationPool": (
            "image_classification:ImageClassificationAdapter"
        )
        for name in ("ResNet", "ConvNext", "Dinov2")
    },
}


def register_adapter(pool_class: type, adapter: type[PoolAdapter]) -> None:
    """Teach all methods a pool class; its subclasses are known too.

    Args:
        pool_class: A model pool class.
        adapter: What knows it. Replaces the adapter known so far.

    Raises:
        TypeError: Not a pool class, or not an adapter class.
    """
    if not (isinstance(pool_class, type) and issubclass(pool_class, BaseModelPool)):
        raise TypeError(f"{pool_class!r} is not a subclass of BaseModelPool.")
    if not (isinstance(adapter, type) and issubclass(adapter, PoolAdapter)):
        raise TypeError(f"{adapter!r} is not a subclass of PoolAdapter.")
    _FAMILIES[_name(pool_class)] = adapter


def family_of(modelpool: BaseModelPool) -> type[PoolAdapter] | None:
    """The adapter class of a pool, or None if no family knows it."""
    for kind in type(modelpool).__mro__:
        found = _FAMILIES.get(_name(kind))
        if isinstance(found, str):
            module, _, name = found.partition(":")
            found = getattr(import_module(f".{module}", __package__), name)
        if found is not None:
            return found
    return None


def adapter_for(
    modelpool: BaseModelPool, task_info: Mapping | None = None
) -> PoolAdapter:
    """The adapter of a pool's family, ready to be asked for data.

    Raises:
        TypeError: No family knows this pool.
    """
    family = family_of(modelpool)
    if family is None:
        known = sorted(name.rpartition(".")[2] for name in _FAMILIES)
        raise TypeError(
            f"Adaptation does not know the pool class {type(modelpool).__name__}; it knows"
            f" {known}. Data-free methods such as method=awd take any pool; to teach it a"
            " new one, see fusion_plugins.pools.register_adapter."
        )
    return family(modelpool, task_info)


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
