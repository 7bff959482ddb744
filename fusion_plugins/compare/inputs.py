"""What pools refer to: models, data, class names, versions; what of it is to be fetched."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from fusion_bench import BaseModelPool
from fusion_bench.tasks.clip_classification import (
    CLIPTemplateFactory,
    get_classnames_and_templates,
)
from huggingface_hub import HfApi
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from rich.filesize import decimal
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
from ..modelpool.folders import source_of
from .costs import versions
from .files import as_plain

log = get_logger(__name__)

# A model's weights in other formats, which are not fetched where safetensors are.
_OTHER_WEIGHTS = (".bin", ".h5", ".msgpack", ".ot", ".onnx", ".pt", ".pth")
_WAIT = 5.0  # seconds, for the hub's answer
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


def downloads(*configs: Mapping) -> str:
    """One line on what pools with these configs fetch from the hub first."""
    wanted = dict.fromkeys(found for config in configs for found in _named(config))
    missing = [found for found in wanted if not cached_repository(found.name)]
    if not missing:
        return "Downloads: none."
    kinds = Counter(found.kind for found in missing)
    counts = " and ".join(
        f"{count} {kind}{'s' if count > 1 else ''}"
        for kind, count in sorted(kinds.items())
    )
    try:
        size = decimal(sum(map(_size, missing)))
    except Exception as error:  # noqa: BLE001 - of whichever HTTP library the hub uses
        size = f"of unknown size ({type(error).__name__} from the hub)"
    return f"Downloads: {counts}, {size}."


class _Repository(NamedTuple):
    kind: str
    name: str
    folder: str = ""


def _named(config: object) -> Iterator[_Repository]:
    """Everything on the hub that a config names."""
    if not isinstance(config, Mapping):
        return
    name = source_of(config)
    if name is not None and _is_on_hub(name):
        yield _Repository("model", name, config.get("subfolder") or "")
    name = config.get("path")
    if str(config.get("_target_")).endswith(".load_dataset") and _is_on_hub(name):
        yield _Repository("dataset", str(name))
    for model in (config.get("models") or {}).values():
        if isinstance(model, str) and _is_on_hub(model):
            yield _Repository("model", model)
    for value in config.values():
        yield from _named(value)


def _is_on_hub(name: object) -> bool:
    try:
        validate_repo_id(str(name))
    except HFValidationError:
        return False
    return not os.path.exists(str(name))


def _size(wanted: _Repository) -> int:
    """Bytes of what is fetched of a repository."""
    info: Any = HfApi().repo_info(
        wanted.name, repo_type=wanted.kind, files_metadata=True, timeout=_WAIT
    )
    files = {s.rfilename: s.size or 0 for s in info.siblings or ()}
    files = {n: size for n, size in files.items() if n.startswith(wanted.folder)}
    if any(name.endswith(".safetensors") for name in files):
        files = {n: s for n, s in files.items() if not n.endswith(_OTHER_WEIGHTS)}
    return sum(files.values())
