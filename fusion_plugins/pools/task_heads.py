"""Give a merged trunk the heads that its experts have of their own."""

from __future__ import annotations

from fusion_bench import BaseModelPool
from torch import nn

from ..merged.model import TintedModel
from .family import family_of
from .loading import head_site, load_own_head


def with_task_heads(module: nn.Module, modelpool: BaseModelPool) -> nn.Module:
    """The merged module, or a tinted model with each expert's head in its place.

    Args:
        module: The merged module; becomes the trunk.
        modelpool: Where the experts are.

    Returns:
        `module` itself for pools without such heads, and for models that have them.
    """
    if isinstance(module, TintedModel):
        return module
    site = head_site(modelpool, module)
    if site is None:
        return module
    family_of(modelpool).adopt(module)
    heads = {t: load_own_head(modelpool, t, site) for t in modelpool.model_names}
    return TintedModel(module, {site: heads})
