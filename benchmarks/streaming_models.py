"""Language models with LLaMA's layout and random weights, made tensor by tensor."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

_SHARD_BYTES = 250e6
_NEAR = 0.1  # how far experts are from the base, in the base's own scale


def llama_config(billions: float) -> LlamaConfig:
    """Small LLaMA proportions; the number of layers follows from the size."""
    hidden, wide, vocabulary = 1280, 3456, 32000
    layer = 4 * hidden**2 + 3 * hidden * wide
    layers = round((billions * 1e9 - 2 * vocabulary * hidden) / layer)
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=wide,
        num_hidden_layers=max(layers, 1),
        num_attention_heads=20,
        num_key_value_heads=20,
        tie_word_embeddings=False,
        torch_dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )


def save_llama_pool(folders: dict[str, str], billions: float) -> dict:
    """Make the models that are not there yet.

    Args:
        folders: Model name -> folder.
        billions: Parameters of each model.
    """
    config = llama_config(billions)
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in LlamaForCausalLM(config).state_dict().items()}
    entries = sum(shape.numel() for shape in shapes.values())
    for name, folder in folders.items():
        held = Path(folder) / "config.json"
        if not held.is_file() or LlamaConfig.from_json_file(held).num_hidden_layers != (
            config.num_hidden_layers
        ):
            _save(name, Path(folder), config, shapes)
    return {"parameters": entries, "layers": config.num_hidden_layers}


def _save(name: str, folder: Path, config: LlamaConfig, shapes: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    parts, size = [[]], 0
    for key, shape in shapes.items():
        if size + 2 * shape.numel() > _SHARD_BYTES and parts[-1]:
            parts.append([])
            size = 0
        parts[-1].append(key)
        size += 2 * shape.numel()
    weight_map = {}
    for number, keys in enumerate(parts, 1):
        file = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        tensors = {key: _tensor(name, key, shapes[key]) for key in keys}
        save_file(tensors, str(folder / file), metadata={"format": "pt"})
        weight_map |= dict.fromkeys(keys, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config.save_pretrained(folder)  # last: it marks a complete model


def _tensor(model: str, key: str, shape: torch.Size) -> torch.Tensor:
    def noise(*of: str) -> torch.Tensor:
        seed = zlib.crc32("/".join(of).encode())
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    tensor = noise(key)
    if model != "_pretrained_":
        tensor += _NEAR * noise(model, key)
    return (0.02 * tensor).bfloat16()
