"""Random stand-ins of the real size: cost depends on shapes and bytes, not on values."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

# Fine-tuned CLIP ViT-B/32 experts are 2 to 3 away from the base, at cosines near 0.3 here.
_NORMS = (2.0, 3.0)
_COSINE = 0.3


def vit_b32_config() -> CLIPVisionConfig:
    """The vision tower of openai/clip-vit-base-patch32."""
    return CLIPVisionConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        image_size=224,
        patch_size=32,
        projection_dim=512,
    )


def vit_b32_shapes() -> dict[str, torch.Size]:
    """Tensor name -> shape, without allocating the model."""
    with torch.device("meta"):
        model = CLIPVisionModel(vit_b32_config())
    return {
        name: tensor.shape
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point()
    }


def task_vector_stack(tasks: int, entries: int) -> torch.Tensor:
    """Task vectors that share a component, shape (tasks, entries), float32."""
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(entries, generator=generator).mul_(_COSINE**0.5)
    stack = torch.empty(tasks, entries)
    for row, norm in zip(stack, torch.linspace(*_NORMS, tasks).tolist(), strict=True):
        row.normal_(generator=generator).mul_((1 - _COSINE) ** 0.5).add_(shared)
        row.mul_(norm / entries**0.5)
    return stack


def save_vit_b32_pool(folder: Path, experts: int) -> dict[str, str]:
    """A base and experts as HuggingFace folders; what is there already stays.

    Returns:
        Model name -> folder, as a FusionBench model pool wants them.
    """
    paths = vit_b32_pool(folder, experts)
    missing = [n for n, p in paths.items() if not (Path(p) / "config.json").is_file()]
    if "_pretrained_" in missing:
        torch.manual_seed(0)
        _save(CLIPVisionModel(vit_b32_config()), paths["_pretrained_"])
        missing = list(paths)[1:]  # they belong to the old base
    for name in missing:
        model = CLIPVisionModel.from_pretrained(paths["_pretrained_"])
        _save(_moved(model, list(paths).index(name)), paths[name])
    return paths


def vit_b32_pool(folder: Path, experts: int) -> dict[str, str]:
    """Model name -> folder, whether they exist or not."""
    names = {f"task_{number}": f"e{number}" for number in range(experts)}
    return {n: str(folder / f) for n, f in ({"_pretrained_": "base"} | names).items()}


@torch.no_grad()
def _moved(model: CLIPVisionModel, number: int) -> CLIPVisionModel:
    parameters = list(model.parameters())
    deviation = _NORMS[0] / sum(p.numel() for p in parameters) ** 0.5
    shared = torch.Generator().manual_seed(0)
    own = torch.Generator().manual_seed(number)
    for parameter in parameters:
        for generator, part in ((shared, _COSINE), (own, 1 - _COSINE)):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise, alpha=deviation * part**0.5)
    return model


def _save(model: CLIPVisionModel, folder: str) -> None:
    # Written aside first: a killed run leaves no half checkpoint that looks whole.
    part = f"{folder}.part"
    model.save_pretrained(part)
    os.rename(part, folder)
