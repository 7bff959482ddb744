"""From files to encoders and classification heads, and back to safer files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from fusion_bench.models.open_clip import ClassificationHead
from safetensors.torch import save_file
from torch import Tensor

from .architecture import Architecture, inferred_architecture, named_architecture
from .encoder import CLASSIFIER, OpenCLIPImageEncoder
from .trust import Content, as_metadata, converted, read
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
    tensors = {k: v.detach().contiguous() for k, v in encoder.state_dict().items()}
    metadata = {_CONFIG: encoder.architecture.to_json(), "format": "pt"}
    save_file(tensors, path, metadata={**metadata, **made_from})


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
    return ClassificationHead(
        normalize, tensors["weight"].float(), _float(tensors.get("bias"))
    )


def _float(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.float()


def is_head(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of a linear head."""
    names = set(tensors)
    linear = "weight" in names and names <= {"weight", "bias"}
    return linear and tensors["weight"].ndim == 2


def save_head(
    head: ClassificationHead, path: Path, made_from: Mapping[str, str] = _NOTHING
) -> None:
    """One safetensors file that tells whether its inputs are normalised."""
    tensors = {k: v.detach().contiguous() for k, v in head.state_dict().items()}
    metadata = as_metadata(normalize=bool(head.normalize)) | {"format": "pt"}
    save_file(tensors, path, metadata={**metadata, **made_from})
