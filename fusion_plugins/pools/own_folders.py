"""Model pools of the user's own folders: models, and data to measure them on."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets.exceptions import DatasetsError
from fusion_bench import BaseModelPool
from fusion_bench.modelpool import (
    CLIPVisionModelPool,
    SequenceClassificationModelPool,
)
from omegaconf import OmegaConf

from ..common import get_logger
from ..common.folders import require_paths
from ..modelpool.tsv import TsvDataset
from ..task_vectors.files import UNREADABLE, one_line, read_config
from .clip_tasks import register_clip_task
from .loading import PRETRAINED
from .model_files import from_pretrained
from .saving import OwnFolders

log = get_logger(__name__)

TEMPLATES = ("a photo of a {}.", "an image of the {}.")
_SPLITS = ("test", "validation")  # the first that is there is taken, or any other
_KINDS = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}
_READ = "fusion_plugins.pools.own_folders.read_data"
_CLASS = "transformers.AutoModelForSequenceClassification"


class OwnCLIPPool(OwnFolders, CLIPVisionModelPool):
    """FusionBench's CLIP pool; its models are saved with processor and card."""


class OwnTextPool(OwnFolders, SequenceClassificationModelPool):
    """FusionBench's pool of text classifiers; saved with tokenizer and card."""


def folder_modelpool(
    models: Mapping[str, str],
    data: Mapping[str, str] | None = None,
    templates: Mapping[str, Sequence[str]] | None = None,
) -> BaseModelPool:
    """A pool of model folders, CLIP's or text classifiers.

    Args:
        models: ``_pretrained_`` and the experts -> folder. Experts may be LoRA adapters.
        data: Expert -> what :func:`read_data` reads.
        templates: Of CLIP: expert -> the prompts it was fine-tuned with; see
            :data:`TEMPLATES` for those that are not named.

    Raises:
        ValueError: There is no ``_pretrained_``, it is of another kind, or `data` names
            what is no expert.
    """
    models = require_paths("models", models)
    data = require_paths("data", data or {})
    base = models.get(PRETRAINED, "")
    for option, given in (("data", data), ("templates", templates or {})):
        unknown = [name for name in given if name not in models]
        if unknown:
            raise ValueError(
                f"{option}: there is no model for {unknown}, only {list(models)}."
            )
    if is_clip(base):
        register_data(data, templates)
        build = partial(OwnCLIPPool, OmegaConf.create(models), processor=base)
    else:
        configs = {n: from_pretrained(_CLASS, path) for n, path in models.items()}
        tokenizer = from_pretrained("transformers.AutoTokenizer", base)
        build = partial(
            OwnTextPool,
            OmegaConf.create(configs),
            tokenizer=OmegaConf.create(tokenizer),
        )
    return build(test_datasets=data_configs(data))


def is_clip(folder: str) -> bool:
    """Whether a folder holds a CLIP model, or else a text classifier, or ValueError."""
    file = Path(folder, "config.json")
    if not folder or not file.is_file():
        raise ValueError(
            f"models._pretrained_ is {folder!r}, expected the folder of the model that all"
            " experts were fine-tuned from, with its config.json."
        )
    config = read_config(file, f"models.{PRETRAINED}")
    classes = config.get("architectures") or []
    if config.get("model_type") == "clip":
        return True
    if any(name.endswith("ForSequenceClassification") for name in classes):
        return False
    raise ValueError(
        f"{file} is of a {classes or config.get('model_type')}; folders can be CLIPModel or"
        " *ForSequenceClassification. For others write a pool config: docs/guides/pools.md."
    )


def data_configs(data: Mapping[str, str]) -> Any:
    """The data sets as FusionBench's pools take them."""
    configs = {n: {"_target_": _READ, "path": str(path)} for n, path in data.items()}
    return OmegaConf.create(configs)


def register_data(
    data: Mapping[str, str], templates: Mapping[str, Sequence[str]] | None = None
) -> None:
    """Make the classes of image data sets known, so that CLIP can tell them apart."""
    for task, path in data.items():
        prompts = (templates or {}).get(task, TEMPLATES)
        register_clip_task(task, class_names(read_data(path), path), prompts)


def read_data(path: str) -> Any:
    """Labelled samples.

    Args:
        path: A folder with a folder of images per class; an ``.npz`` file with `x_test`,
            `y_test` and `class_names`; a ``.tsv``, ``.csv``, ``.jsonl``, ``.json`` or
            ``.parquet`` file with columns `label` and `text`; or a data set on the hub or
            saved by `datasets`, whose split `test` is taken if it has one, else
            `validation`, else the first.

    Raises:
        ValueError: It cannot be read as any of these.
    """
    try:
        return _read_data(Path(path))
    except (DatasetsError, zipfile.BadZipFile, *UNREADABLE) as error:
        if path and str(path) in str(error) and isinstance(error, ValueError):
            raise
        raise ValueError(
            f"data: {path!r} cannot be read ({one_line(error.__cause__ or error)[:200]})."
            " It can be a folder of images per class, an .npz file of uint8 images x_test,"
            " class numbers y_test and class_names, a .tsv, .csv, .jsonl, .json or .parquet"
            " file with columns label and text, or a data set on the hub or saved by"
            " datasets."
        ) from error


def _read_data(file: Path) -> Any:
    if not file.name:
        raise ValueError("its path is empty")
    if file.is_file() and not file.stat().st_size:
        raise ValueError("it is an empty file")
    kind = file.suffix.lower()
    if kind in _READERS:
        return _READERS[kind](file)
    if kind in _KINDS:
        return datasets.load_dataset(_KINDS[kind], data_files=str(file), split="train")
    if file.is_file():
        raise ValueError("its name does not end as that of a known kind of file does")
    if (file / "dataset_dict.json").is_file() or (file / "state.json").is_file():
        found = datasets.load_from_disk(str(file))
    elif file.is_dir():
        found = _read_images(file)
    else:
        found = datasets.load_dataset(str(file))
    if isinstance(found, datasets.DatasetDict):
        if not found:
            raise ValueError("it has no split")
        split = next((name for name in _SPLITS if name in found), next(iter(found)))
        if split != _SPLITS[0]:
            log.warning("data: %s has no split test; '%s' is taken.", file, split)
        found = found[split]
    return found


def _read_csv(file: Path) -> Any:
    with file.open(encoding="utf-8-sig") as lines:
        header = lines.readline()
    mark = next((m for m in ",;\t" if m in header), ",")  # ; where , is for decimals
    options = {"data_files": str(file), "sep": mark, "keep_default_na": False}
    found = datasets.load_dataset("csv", split="train", **options)
    if "__index_level_0__" in found.column_names:  # of pandas
        raise ValueError("its rows have more fields than its header; quote texts")
    return found


def _read_images(folder: Path) -> Any:
    """Classes may have names that are also those of splits, such as ``train``."""
    folders = [path for path in folder.glob("[!.]*") if path.is_dir()]
    classes = not any(path.is_dir() for inner in folders for path in inner.iterdir())
    files = {"data_files": {"test": "*/*"}, "drop_labels": False} if classes else {}
    found = datasets.load_dataset("imagefolder", data_dir=str(folder), **files)
    if classes:
        known = found["test"].features["label"].names
        empty = sorted({path.name for path in folders} - set(known))
        if empty:
            raise ValueError(f"the folders {empty} hold no image of their classes")
    return found


_ARRAYS = ("x_test", "y_test", "class_names")


def _read_npz(file: Path) -> Any:
    with np.load(file) as arrays:
        missing = set(_ARRAYS) - set(arrays)
        if missing:
            raise ValueError(f"{file} lacks {sorted(missing)}.")
        images, labels, names = (arrays[name] for name in _ARRAYS)
        shape, channels = images.shape, images.shape[3:]
        if labels.ndim != 1 or images.ndim < 3 or channels not in ((), (3,), (4,)):
            raise ValueError(
                f"x_test has the shape {shape}, y_test {labels.shape}, expected (images,"
                " height, width, 3), without the 3 if they are grey, and (images,)"
            )
        names = [n.decode() if isinstance(n, bytes) else str(n) for n in names]
        columns = {"image": list(images), "label": labels.tolist()}
    unique = len(set(names)) == len(names)  # or not, as in the usual list of ImageNet's
    classes = datasets.ClassLabel(names=names) if unique else datasets.Value("int64")
    features = datasets.Features({"image": datasets.Image(), "label": classes})
    found = datasets.Dataset.from_dict(columns, features)
    found.class_names = names
    return found


_READERS: dict[str, Callable[[Path], Any]] = {
    ".tsv": TsvDataset,
    ".csv": _read_csv,
    ".npz": _read_npz,
}


def class_names(data: Any, path: str) -> Sequence[str]:
    """The names of a data set's labels, or ValueError."""
    names = getattr(getattr(data, "features", {}).get("label"), "names", None)
    names = names or getattr(data, "class_names", None)
    if names is None:
        raise ValueError(
            f"{path} names no classes, from which CLIP makes its heads: it needs a column"
            " 'label' of the type ClassLabel, or a folder of images per class."
        )
    return names
