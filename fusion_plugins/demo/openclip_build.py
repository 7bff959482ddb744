"""Make OpenCLIP models of a CLIP demo pool: the same networks in open_clip's modules."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor

from ..modelpool.openclip.architecture import Architecture
from ..modelpool.openclip.checkpoints import ClassificationHead, save_head
from ..modelpool.openclip.encoder import OpenCLIPImageEncoder
from .build import ensure_pool
from .clip import prompt_tokens, zero_shot_head
from .pool_folder import build_folder, cached_root, is_pool, read_description
from .recipe import OPENCLIP_RECIPE, DemoRecipe

# HuggingFace's names -> open_clip's, applied in this order; text layers are left out.
_RENAMES = [
    (r"^text_model\.embeddings\.token_embedding", "token_embedding"),
    (r"^text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"^text_model\.final_layer_norm", "ln_final"),
    (r"^visual_projection\.weight", "visual.proj"),
    (r"^text_projection\.weight", "text_projection"),
    (r"^vision_model\.embeddings\.class_embedding", "visual.class_embedding"),
    (r"^vision_model\.embeddings\.patch_embedding", "visual.conv1"),
    (r"^vision_model\..*position_embedding\.weight", "visual.positional_embedding"),
    (r"^vision_model\.pre_layrnorm", "visual.ln_pre"),
    (r"^vision_model\.post_layernorm", "visual.ln_post"),
    (r"^vision_model\.encoder\.layers", "visual.transformer.resblocks"),
    (r"layer_norm([12])", r"ln_\1"),
    (r"mlp\.fc1", "mlp.c_fc"),
    (r"mlp\.fc2", "mlp.c_proj"),
    (r"self_attn\.out_proj", "attn.out_proj"),
]


def ensure_openclip_pool(recipe: DemoRecipe | None = None) -> Path:
    """The folder of the built-in OpenCLIP pool, built first if it is not there.

    Args:
        recipe: Of the CLIP pool it is made of, which is kept in the cache too (default:
            `OPENCLIP_RECIPE`).
    """
    recipe = recipe or OPENCLIP_RECIPE
    root = cached_root("demo-openclip", recipe)
    return root if is_pool(root) else export_pool(ensure_pool(recipe), root)


def export_pool(source: str | os.PathLike, root: str | os.PathLike) -> Path:
    """Write the OpenCLIP form of a CLIP demo pool; see `build_folder`.

    Args:
        source: The CLIP pool's folder.
        root: The new folder; must not exist or be empty.

    Raises:
        ValueError: `source` is no CLIP demo pool, or `root` holds something else or
            cannot be written.
    """
    source = Path(source).absolute()
    description = read_description(source, DemoRecipe.format)

    def write(folder: Path) -> dict:
        _write(source, folder, description["tasks"])
        return description | {"family": "openclip"}

    return build_folder(root, DemoRecipe(**description["recipe"]), write)


def _write(source: Path, folder: Path, tasks: dict[str, dict]) -> None:
    processor = CLIPProcessor.from_pretrained(source / "pretrained")
    pretrained = CLIPModel.from_pretrained(source / "pretrained")
    to_openclip(pretrained, processor).save_pretrained(folder / "pretrained")
    (folder / "heads").mkdir()
    for name, task in tasks.items():
        expert = CLIPModel.from_pretrained(source / "experts" / name)
        to_openclip(expert, processor).save_pretrained(folder / "experts" / name)
        tokens = prompt_tokens(
            name, task["class_names"], task["templates"], processor.tokenizer
        )
        # FusionBench's heads have the temperature in their weights.
        weights = zero_shot_head(pretrained, tokens) * pretrained.logit_scale.exp()
        head = ClassificationHead(normalize=True, weights=weights.detach())
        save_head(head, folder / "heads" / f"{name}.safetensors")
    shutil.copytree(source / "data", folder / "data")


def to_openclip(model: CLIPModel, processor: CLIPProcessor) -> OpenCLIPImageEncoder:
    """The same image encoder, in open_clip's own modules."""
    return OpenCLIPImageEncoder(_architecture(model, processor), _tensors(model))


def _architecture(model: CLIPModel, processor: CLIPProcessor) -> Architecture:
    vision, text = model.config.vision_config, model.config.text_config
    images = processor.image_processor
    config = {
        "embed_dim": model.config.projection_dim,
        "quick_gelu": vision.hidden_act == "quick_gelu",
        "vision_cfg": {
            "layers": vision.num_hidden_layers,
            "width": vision.hidden_size,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            "mlp_ratio": vision.intermediate_size / vision.hidden_size,
            "patch_size": vision.patch_size,
            "image_size": vision.image_size,
        },
        "text_cfg": {
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "layers": text.num_hidden_layers,
        },
    }
    return Architecture(
        config, {"mean": tuple(images.image_mean), "std": tuple(images.image_std)}
    )


def _tensors(model: CLIPModel) -> dict[str, Tensor]:
    theirs = {}
    for name, tensor in model.state_dict().items():
        if re.search(r"^text_model\.encoder\.|[kv]_proj", name):
            continue  # no part of an image encoder, or stacked with the queries
        if "q_proj" in name:
            ours = [name.replace("q_proj", f"{part}_proj") for part in "qkv"]
            tensor = torch.cat([model.get_parameter(part) for part in ours])
            name = name.replace("self_attn.q_proj.", "attn.in_proj_")
        for pattern, new in _RENAMES:
            name = re.sub(pattern, new, name)
        # Copies: the caller's model must not change with this one.
        tensor = tensor.t() if name in ("visual.proj", "text_projection") else tensor
        theirs[f"model.{name}"] = tensor.detach().clone().contiguous()
    return theirs
