"""What decides a result beside the configs: models, data, class names, versions."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from fusion_bench import BaseModelPool
from fusion_bench.tasks.clip_classification import (
    CLIPTemplateFactory,
    get_classnames_and_templates,
)
from huggingface_hub.constants import HF_HUB_CACHE
from torch import nn

from ..common import get_logger
from ..common.identity import (
    data_fingerprint,
    file_fingerprint,
    fingerprint,
    folder_fingerprint,
)
from ..common.upstream import (
    models_of,
    test_datasets_of,
    train_datasets_of,
    val_datasets_of,
)
from .costs import versions
from .files import as_plain

log = get_logger(__name__)

_NOT_READ = ("cache_dir", "output_dir", "log_dir")  # where things go, not come from
_HELD = (models_of, train_datasets_of, val_datasets_of, test_datasets_of)


def inputs_identity(
    modelpool: BaseModelPool, taskpool: object, *configs: object
) -> str:
    """A fingerprint of everything that two pools and these configs refer to.

    Files and folders count by their content, hub repositories by the revision in the
    cache, models and samples in memory by their values, tasks by their class names.
    """
    held = [read(pool, None) for pool in (modelpool, taskpool) for read in _HELD]
    tasks = test_datasets_of(taskpool, None) or ()
    known = CLIPTemplateFactory.get_available_datasets()
    found = {
        "held": [dict(references(part)) for part in held],
        "configs": [dict(references(config)) for config in configs],
        "classes": {task: _classes(task) for task in tasks if task in known},
        "versions": versions(),
    }
    return fingerprint(found)[:8]


def references(value: object, place: str = "") -> Iterator[tuple[str, str]]:
    """Place in a config or a pool -> fingerprint of what is there."""
    value = as_plain(value)
    if isinstance(value, (list, Mapping)):
        entries = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, entry in entries:
            if key not in _NOT_READ:
                yield from references(entry, f"{place}.{key}")
    elif (found := _fingerprint(value)) is not None:
        yield place, found


def _fingerprint(value: object) -> str | None:
    if isinstance(value, (str, os.PathLike)):
        return _of_path(os.fspath(value)) if str(value) else None
    try:
        if isinstance(value, nn.Module):
            return fingerprint(value.state_dict())
        if hasattr(value, "_fingerprint"):  # of the library datasets
            return str(value._fingerprint)
        if hasattr(value, "__getitem__") and hasattr(value, "__len__"):
            return data_fingerprint(value, range(len(value)))
    except TypeError as error:
        log.warning("Changes of a %s are not noticed: %s", type(value).__name__, error)
    return None


def _of_path(path: str) -> str | None:
    if os.path.isdir(path):
        return folder_fingerprint(path)
    if os.path.isfile(path):
        return file_fingerprint(path)
    head = cached_repository(path)
    return None if head is None else file_fingerprint(head)


def cached_repository(name: str) -> str | None:
    """The file that says which revision of a hub repository is in the cache."""
    folders = [f"{kind}--{name.replace('/', '--')}" for kind in ("models", "datasets")]
    heads = [os.path.join(HF_HUB_CACHE, folder, "refs", "main") for folder in folders]
    return next((head for head in heads if os.path.isfile(head)), None)


def _classes(task: str) -> list[list[str]]:
    names, templates = get_classnames_and_templates(task)
    return [list(names), [template("{}") for template in templates]]
