"""From files to encoders and classification heads, and back to safer files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from fusion_bench.models.open_clip import ClassificationHead
from safetensors.torch import save_file
from torch import Tensor, nn

from .architecture import Architecture, inferred_architecture, named_architecture
from .encoder import CLASSIFIER, OpenCLIPImageEncoder
from .trust import SAFE_SUFFIX, Content, converted, read, source_metadata
from .unpickle import Record

_CONFIG = "open_clip_config"  # metadata of a converted encoder
_NOTHING: Mapping[str, str] = MappingProxyType({})
_PREFIX = "model."  # of an encoder's tensors


def load_encoder(
    path: str | Path, model_name: str | None = None, trust_pickle: bool = False
) -> OpenCLIPImageEncoder:
    """An image encoder from a file or folder; nothing is downloaded.

    Args:
        path: ``.safetensors``, a state dict written by torch.save, a pickled module, or a
            folder of :meth:`OpenCLIPImageEncoder.save_pretrained`. A safetensors file of
            the same name beside another file is read in its place.
        model_name: The architecture, see
            :func:`~fusion_plugins.modelpool.openclip.architecture.named_architecture`; None where
            the file tells it: converted ones, pickled modules, folders.
        trust_pickle: Read pickled modules.

    Raises:
        ValueError: The file is missing, not trusted, or does not fit.
    """
    if Path(path).is_dir():
        return OpenCLIPImageEncoder.from_pretrained(path)
    source = converted(path)
    return encoder_from(read(source, trust_pickle), source, model_name)


def encoder_from(
    content: Content, path: Path, model_name: str | None
) -> OpenCLIPImageEncoder:
    """The encoder that a file's content describes."""
    tensors = _encoder_tensors(content.tensors)
    try:
        architecture = _architecture(content, tensors, model_name)
        return OpenCLIPImageEncoder(architecture, tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _encoder_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """With names as in FusionBench's ImageEncoder."""
    if any(name.startswith(CLASSIFIER) for name in tensors):
        tensors = {
            name.removeprefix(CLASSIFIER): value
            for name, value in tensors.items()
            if name.startswith(CLASSIFIER)
        }
    if any(name.startswith("visual.") for name in tensors):  # open_clip's own
        return {_PREFIX + name: value for name, value in tensors.items()}
    return dict(tensors)


def _architecture(
    content: Content, tensors: Mapping[str, Tensor], model_name: str | None
) -> Architecture:
    if model_name is not None:
        return named_architecture(model_name)
    if _CONFIG in content.metadata:
        return Architecture.from_json(content.metadata[_CONFIG])
    if content.record is not None:
        return _recorded_architecture(content.record, tensors)
    raise ValueError(
        "The tensors do not tell the activation, so the architecture must be named:"
        " {model_name: ViT-B-32, state_dict_path: ...}."
    )


def _recorded_architecture(
    record: Record, tensors: Mapping[str, Tensor]
) -> Architecture:
    encoder = record.child("image_encoder") or record
    inside = [part for part in encoder.walk() if "num_heads" in part.__dict__]
    kinds = {part.kind for part in encoder.walk()}
    if not inside or not kinds & {"QuickGELU", "GELU"}:
        raise ValueError(
            "The pickled module is no vision transformer. Give model_name."
        )
    heads = inside[0].__dict__["num_heads"]
    return inferred_architecture(
        tensors, "QuickGELU" in kinds, heads, _recorded_preprocessing(encoder)
    )


def _recorded_preprocessing(encoder: Record) -> dict:
    """Mean and deviation of the pickled transform; open_clip's default is OpenAI's."""
    steps = getattr(encoder.__dict__.get("val_preprocess"), "transforms", ())
    for step in steps:
        if isinstance(step, Record) and step.kind == "Normalize":
            state = step.__dict__
            return {"mean": tuple(state["mean"]), "std": tuple(state["std"])}
    return {}


def save_encoder(
    encoder: OpenCLIPImageEncoder, path: Path, made_from: Mapping[str, str] = _NOTHING
) -> None:
    """One safetensors file that tells its architecture, and what it was made from."""
    _save(encoder, path, {_CONFIG: encoder.architecture.to_json(), **made_from})


def load_head(path: str | Path, trust_pickle: bool = False) -> ClassificationHead:
    """FusionBench's classification head from a file.

    Its weights hold the temperature already, as in Task Arithmetic's checkpoints.

    Args:
        path: ``.safetensors`` or a state dict with ``weight`` (classes, features) and
            maybe ``bias``, or a pickled head. A safetensors file of the same name beside
            another file is read in its place.
        trust_pickle: Read pickled heads.

    Raises:
        ValueError: The file is missing, not trusted, or holds no head.
    """
    source = converted(path)
    return head_from(read(source, trust_pickle), source)


def head_from(content: Content, path: Path) -> ClassificationHead:
    """The head that a file's content describes."""
    tensors = content.tensors
    if not is_head(tensors):
        raise ValueError(
            f"{path} is not a classification head: expected the tensors 'weight' (classes,"
            f" features) and maybe 'bias', got {sorted(tensors)[:5]}."
        )
    normalize = json.loads(content.metadata.get("normalize", "true"))
    if content.record is not None:
        normalize = bool(content.record.__dict__.get("normalize", True))
    bias = None if tensors.get("bias") is None else tensors["bias"].float()
    return ClassificationHead(normalize, tensors["weight"].float(), bias)


def is_head(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of a linear head."""
    names = set(tensors)
    linear = "weight" in names and names <= {"weight", "bias"}
    return linear and tensors["weight"].ndim == 2


def save_head(
    head: ClassificationHead, path: Path, made_from: Mapping[str, str] = _NOTHING
) -> None:
    """One safetensors file that tells whether its inputs are normalised."""
    _save(head, path, {"normalize": json.dumps(bool(head.normalize)), **made_from})


def _save(module: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
    tensors = {k: v.detach().contiguous() for k, v in module.state_dict().items()}
    save_file(tensors, path, metadata={**metadata, "format": "pt"})


def convert_checkpoint(
    source: str | Path,
    target: str | Path,
    model_name: str | None = None,
    trust_pickle: bool = False,
) -> str:
    """Write an encoder or a classification head as safetensors.

    Args:
        source: A state dict or a pickled module.
        target: The new file, ending in ``.safetensors``.
        model_name: The encoder's architecture; needed for a state dict.
        trust_pickle: Read pickled modules.

    Returns:
        ``image encoder`` or ``classification head``.

    Raises:
        ValueError: `target` has another ending or exists, or `source` cannot be read.
    """
    source, target = Path(source), Path(target)
    if target.suffix != SAFE_SUFFIX:
        raise ValueError(f"{target} must end in {SAFE_SUFFIX}.")
    if target.exists() or target.is_symlink():
        raise ValueError(f"{target} exists already. Remove it, or choose another name.")
    content, made_from = read(source, trust_pickle), source_metadata(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.unfinished")
    if is_head(content.tensors):
        save_head(head_from(content, source), unfinished, made_from)
    else:
        encoder = encoder_from(content, source, model_name)
        save_encoder(encoder, unfinished, made_from)
    os.replace(unfinished, target)
    return "classification head" if is_head(content.tensors) else "image encoder"
