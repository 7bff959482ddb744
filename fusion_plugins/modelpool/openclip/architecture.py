"""Which network a checkpoint belongs to, and how its images are prepared."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.pretrained import get_pretrained_cfg
from open_clip.transform import image_transform
from torch import Tensor, nn

CONFIG_FILES = ("config.json", "open_clip_config.json")  # ours, and open_clip's own
CLASS_NAME = "OpenCLIPImageEncoder"  # how config.json says what a folder holds
_OPENAI = "openai"
_PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")
_OWN_TEXT = ("custom_text", "multimodal_cfg")


@dataclass(frozen=True)
class Architecture:
    """What open_clip builds a CLIP from.

    Attributes:
        model: open_clip's model_cfg: embed_dim, vision_cfg, text_cfg, quick_gelu.
        preprocess: mean, std, interpolation, resize_mode; what is absent is OpenAI's.
    """

    model: Mapping
    preprocess: Mapping = field(default_factory=dict)

    def __post_init__(self) -> None:
        own_text = [k for k in _OWN_TEXT if self.model.get(k)]
        if own_text or self.model["text_cfg"].get("hf_model_name"):
            raise ValueError(
                "Only models of open_clip's class CLIP are read here, not those with a"
                " text tower of another kind. Give the pool a `_target_` that loads it."
            )

    def build(self) -> nn.Module:
        """The network on the meta device: no text transformer, no weights yet."""
        model: Any = self._with_text_layer()
        # As FusionBench does: an encoder needs no text.
        del model.transformer
        model.attn_mask = None  # of the text transformer
        return model

    def _with_text_layer(self) -> nn.Module:
        config = deepcopy(dict(self.with_text_layer().model))
        config.pop("custom_text", None)
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            return open_clip.model.CLIP(**config)

    def with_text_layer(self) -> Architecture:
        """The same with a text transformer of one layer, the fewest open_clip can build."""
        text = {**self.model["text_cfg"], "layers": 1}
        return replace(self, model={**self.model, "text_cfg": text})

    def idle_text_layer(self) -> dict[str, Tensor]:
        """The tensors of that layer, all zero, so that it adds nothing."""
        state = self._with_text_layer().state_dict()
        names = [name for name in state if name.startswith("transformer.")]
        return {name: torch.zeros(state[name].shape) for name in names}

    def transforms(self) -> tuple[Callable, Callable]:
        """For training, with random crops, and for testing."""
        size = self.model["vision_cfg"].get("image_size", 224)
        return tuple(
            image_transform(size, is_train, **self.preprocess)
            for is_train in (True, False)
        )

    def to_json(self) -> str:
        """Open_clip's own form, with the class as HuggingFace's config files name it."""
        content = {"model_cfg": self.model, "preprocess_cfg": self.preprocess}
        return json.dumps({"architectures": [CLASS_NAME]} | content, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Architecture:
        """Read :meth:`to_json`, or open_clip's own config file; else ValueError."""
        content = json.loads(text)
        if "model_cfg" not in content:
            raise ValueError(
                f"The config has no model_cfg, only {sorted(content)[:5]}."
            )
        preprocess = content.get("preprocess_cfg", {})
        chosen = {
            k: tuple(v) if isinstance(v, list) else v
            for k, v in preprocess.items()
            if k in _PREPROCESSING
        }
        return cls(content["model_cfg"], chosen)


def named_architecture(name: str) -> Architecture:
    """The architecture of a name, or of a folder with open_clip's config file.

    Args:
        name: A model of open_clip. As in FusionBench it means the one with OpenAI's
            weights, which needs QuickGELU, if there are such;
            ``NAME__pretrained__TAG`` means other ones.

    Raises:
        ValueError: open_clip knows no such model or tag.
    """
    for file in (Path(name, config_file) for config_file in CONFIG_FILES):
        if file.is_file():
            return Architecture.from_json(file.read_text())
    model_name, _, tag = name.partition("__pretrained__")
    config = open_clip.get_model_config(model_name)
    if config is None:
        raise ValueError(
            f"model_name is '{name}', which open_clip does not know and which is no folder"
            f" with one of {list(CONFIG_FILES)}. Known are open_clip.list_models(), such as 'ViT-B-32'."
        )
    known = get_pretrained_cfg(model_name, tag or _OPENAI)
    if tag and not known:
        tags = open_clip.list_pretrained_tags_by_model(model_name)
        raise ValueError(f"model_name: '{model_name}' has no tag '{tag}', only {tags}.")
    if (tag or _OPENAI) == _OPENAI and known:
        config["quick_gelu"] = True  # newer releases of open_clip no longer see to it
    elif known.get("quick_gelu") is not None:
        config["quick_gelu"] = known["quick_gelu"]
    chosen = {k: known[k] for k in _PREPROCESSING if known.get(k) is not None}
    return Architecture(config, chosen)


def inferred_architecture(
    tensors: Mapping[str, Tensor], quick_gelu: bool, heads: int, preprocess: Mapping
) -> Architecture:
    """The architecture of a vision transformer from the shapes of its tensors.

    No tensor tells the activation and the number of attention heads.
    """
    try:
        width, _, patch, _ = tensors["model.visual.conv1.weight"].shape
        positions = len(tensors["model.visual.positional_embedding"])
        hidden = len(tensors["model.visual.transformer.resblocks.0.mlp.c_fc.weight"])
        text_width, embedding = tensors["model.text_projection"].shape
        vocabulary = len(tensors["model.token_embedding.weight"])
        context = len(tensors["model.positional_embedding"])
    except KeyError as error:
        raise ValueError(
            f"There is no tensor {error}, so it is not a vision transformer of open_clip's"
            " usual form. Give its model_name."
        ) from error
    vision = {
        "layers": sum(
            name.startswith("model.visual.") and name.endswith(".ln_1.weight")
            for name in tensors
        ),
        "width": width,
        "head_width": width // heads,
        "mlp_ratio": hidden / width,
        "patch_size": patch,
        "image_size": round((positions - 1) ** 0.5) * patch,
    }
    text = {"context_length": context, "vocab_size": vocabulary, "width": text_width}
    config = {
        "embed_dim": embedding,
        "quick_gelu": quick_gelu,
        "vision_cfg": vision,
        "text_cfg": {**text, "heads": max(text_width // 64, 1), "layers": 1},
    }
    return Architecture(config, preprocess)
