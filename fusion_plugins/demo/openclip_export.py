"""The demo's CLIP as an OpenCLIP image encoder and classification heads."""

from __future__ import annotations

import torch
from fusion_bench.models.open_clip import ClassificationHead
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor

from ..modelpool.openclip.architecture import Architecture
from ..modelpool.openclip.encoder import OpenCLIPImageEncoder
from .clip import zero_shot_head

# HuggingFace's names -> open_clip's, for what is neither attention nor transposed.
_VISION = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
}
_NORMS = {"pre_layrnorm": "ln_pre", "post_layernorm": "ln_post"}
_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_TEXT = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "logit_scale": "logit_scale",
}


def to_openclip(model: CLIPModel, processor: CLIPProcessor) -> OpenCLIPImageEncoder:
    """The same image encoder, in open_clip's own modules."""
    return OpenCLIPImageEncoder(_architecture(model, processor), _tensors(model))


@torch.no_grad()
def to_head(model: CLIPModel, tokens: Tensor) -> ClassificationHead:
    """FusionBench's head from prompts: the temperature is in its weights.

    Args:
        model: The pretrained model.
        tokens: Shape (templates, classes, length).
    """
    weights = zero_shot_head(model, tokens) * model.logit_scale.exp()
    return ClassificationHead(normalize=True, weights=weights)


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
    ours = model.state_dict()
    tensors = {new: ours[old] for old, new in _TEXT.items()}
    tensors |= {f"visual.{n}": ours[f"vision_model.{o}"] for o, n in _VISION.items()}
    for old, new in _NORMS.items():
        for kind in ("weight", "bias"):
            tensors[f"visual.{new}.{kind}"] = ours[f"vision_model.{old}.{kind}"]
    for index in range(model.config.vision_config.num_hidden_layers):
        tensors |= _layer(ours, index)
    tensors["visual.proj"] = ours["visual_projection.weight"].t()
    tensors["text_projection"] = ours["text_projection.weight"].t()
    # Copies: the caller's model must not change with this one.
    return {f"model.{k}": v.detach().clone().contiguous() for k, v in tensors.items()}


def _layer(ours: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    old = f"vision_model.encoder.layers.{index}"
    new = f"visual.transformer.resblocks.{index}"
    tensors = {}
    for kind in ("weight", "bias"):
        for name, theirs in _LAYER.items():
            tensors[f"{new}.{theirs}.{kind}"] = ours[f"{old}.{name}.{kind}"]
        stacked = [ours[f"{old}.self_attn.{p}_proj.{kind}"] for p in "qkv"]
        tensors[f"{new}.attn.in_proj_{kind}"] = torch.cat(stacked)
    return tensors
