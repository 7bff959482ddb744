"""A small CLIP in HuggingFace's own classes, with a tokenizer built offline."""

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizerFast,
)

from .image_build import MEAN, STD
from .recipe import DemoRecipe

CONTEXT = 77  # longest prompt in tokens, as in CLIP
_SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def make_tokenizer() -> CLIPTokenizerFast:
    """CLIP's tokenizer without merges: one token per byte, 514 in all."""
    symbols = sorted(ByteLevel.alphabet())  # byte-level BPE's 256 characters
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols), *_SPECIAL]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    with TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        Path(folder, "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
        Path(folder, "config.json").write_text('{"model_type": "clip"}')
        return CLIPTokenizerFast.from_pretrained(folder, model_max_length=CONTEXT)


def make_processor(recipe: DemoRecipe) -> CLIPProcessor:
    """Resize to the recipe's size, scale to -1..1, and tokenise bytes."""
    size = {"height": recipe.image_size, "width": recipe.image_size}
    images = CLIPImageProcessor(
        size=size,
        do_center_crop=False,
        image_mean=[MEAN] * 3,
        image_std=[STD] * 3,
    )
    return CLIPProcessor(image_processor=images, tokenizer=make_tokenizer())


def make_model(recipe: DemoRecipe, tokenizer: CLIPTokenizerFast) -> CLIPModel:
    """An untrained CLIP from torch's global generator; the same in all releases."""
    vision = {
        "hidden_size": recipe.width,
        "intermediate_size": 4 * recipe.width,
        "num_hidden_layers": recipe.depth,
        "num_attention_heads": recipe.heads,
        "image_size": recipe.image_size,
        "patch_size": recipe.patch_size,
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": recipe.text_width,
        "intermediate_size": 4 * recipe.text_width,
        "num_hidden_layers": recipe.text_depth,
        "num_attention_heads": recipe.heads,
        "max_position_embeddings": CONTEXT,
        # The text feature is read at the first end-of-text token.
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = CLIPConfig(
        vision_config=vision, text_config=text, projection_dim=recipe.embedding
    )
    with torch.random.fork_rng(devices=[]):  # what it draws is drawn anew
        model = CLIPModel(config)
    for tower in (model.text_model, model.vision_model):
        _draw_tower(tower, tower.config.hidden_size, tower.config.num_hidden_layers)
    for projection in (model.visual_projection, model.text_projection):
        projection.reset_parameters()
    for projection in (model.text_projection, model.visual_projection):
        nn.init.normal_(projection.weight, std=projection.in_features**-0.5)
    return model


@torch.no_grad()
def _draw_tower(tower: nn.Module, width: int, depth: int) -> None:
    """Draw what transformers 4 drew, in its order; newer releases take another one."""
    modules: list[Any] = list(tower.modules())
    for module in modules:
        if hasattr(module, "class_embedding"):
            module.class_embedding.normal_()
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    small = (2 * depth * width) ** -0.5
    deviations = {
        "class_embedding": width**-0.5,
        **dict.fromkeys(("token_embedding", "patch_embedding"), 0.02),
        "position_embedding": 0.02,
        **dict.fromkeys(("q_proj", "k_proj", "v_proj"), small),
        "out_proj": width**-0.5,
        "fc1": (2 * width) ** -0.5,
        "fc2": small,
    }
    for module in modules:
        for name, deviation in deviations.items():
            part = getattr(module, name, None)
            if part is not None:
                nn.init.normal_(getattr(part, "weight", part), std=deviation)
        if isinstance(module, nn.Linear):
            module.bias.zero_()


def prompt_tokens(
    task: str,
    class_names: Sequence[str],
    templates: Sequence[str],
    tokenizer: CLIPTokenizerFast,
) -> Tensor:
    """Token ids (templates, classes, longest prompt), padded with end-of-text.

    Raises:
        ValueError: A prompt is longer than CLIP's 77 tokens.
    """
    prompts = [t.replace("{}", c) for t in templates for c in class_names]
    ids = tokenizer(prompts, padding=True, return_tensors="pt")["input_ids"]
    if ids.shape[1] > CONTEXT:
        raise ValueError(
            f"task {task!r}: the prompt {max(prompts, key=len)!r} has"
            f" {ids.shape[1]} tokens, at most {CONTEXT} fit; shorten the class name"
        )
    return ids.reshape(len(templates), len(class_names), -1)


def text_features(model: CLIPModel, tokens: Tensor) -> Tensor:
    """Unit text features (prompts, embedding) of token ids (prompts, length)."""
    features = model.text_projection(model.text_model(input_ids=tokens)[1])
    return nn.functional.normalize(features, dim=-1)


def image_features(model: CLIPModel, pixels: Tensor) -> Tensor:
    """Unit image features (N, embedding) of normalised pixels (N, 3, H, W)."""
    features = model.visual_projection(model.vision_model(pixel_values=pixels)[1])
    return nn.functional.normalize(features, dim=-1)


@torch.no_grad()
def zero_shot_head(model: CLIPModel, tokens: Tensor) -> Tensor:
    """FusionBench's head (classes, embedding): mean over templates, length 1."""
    features = torch.stack([text_features(model, prompts) for prompts in tokens])
    return nn.functional.normalize(features.mean(dim=0), dim=-1)
