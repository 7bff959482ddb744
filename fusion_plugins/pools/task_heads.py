"""Give a merged trunk the heads that its experts have of their own."""

from __future__ import annotations

from copy import deepcopy

from fusion_bench import BaseModelPool
from torch import nn

from ..merged.model import TintedModel
from ..modelpool.folders import accounted
from .family import family_of, label_of
from .loading import adapter_folder, head_site, load_model


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


def load_own_head(modelpool: BaseModelPool, task: str, site: str) -> nn.Module:
    """The frozen head of one expert, a module of the caller's own.

    Raises:
        ValueError: The expert has no such layer, or no weights for it.
    """
    label = label_of(task)
    try:
        if adapter_folder(modelpool, task) is not None:
            head = load_model(modelpool, task).get_submodule(site)
        else:
            with accounted(label, lambda module: site):
                head = family_of(modelpool).load_head(modelpool, task, site)
    except AttributeError as error:
        raise ValueError(
            f"{label} has no layer '{site}', where the pretrained model has its"
            " classification head. Base and experts must be of one model class."
        ) from error
    return deepcopy(head).eval().requires_grad_(False)
