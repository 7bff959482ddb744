"""Tiny language models on disk, in several shards each."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from fusion_plugins.streaming import StreamingAWDAlgorithm

TASKS = ("math", "code", "chat")


def make_llama(
    seed: int = 0, tied: bool = False, vocabulary: int = 64, dtype=torch.float32
) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).to(dtype)


def save_family(
    root: Path, tied: bool = False, dtype=torch.float32, tasks=TASKS, vocabulary=None
) -> dict[str, str]:
    """A base and experts near it, in folders of several shards; name -> folder.

    `vocabulary`: task -> number of tokens, where it is not the base's 64.
    """
    base = make_llama(tied=tied)
    shared = {n: torch.randn_like(p) for n, p in base.named_parameters()}
    folders = {"_pretrained_": base.to(dtype)}
    start = base.state_dict()
    for seed, task in enumerate(tasks, 1):
        size = (vocabulary or {}).get(task, 64)
        expert = make_llama(seed, tied, size)
        for name, parameter in expert.named_parameters():
            rows = min(len(parameter), len(start[name]))
            noise = 0.05 * (torch.randn_like(parameter) + shared[name].mean())
            noise[:rows] += start[name][:rows].float() + 0.05 * shared[name][:rows]
            parameter.data.copy_(noise)
        folders[task] = expert.to(dtype)
    for name, model in folders.items():
        model.save_pretrained(root / name, max_shard_size="8KB")
        (root / name / "tokenizer_config.json").write_text(f'{{"from": "{name}"}}')
        folders[name] = str(root / name)
    return folders


def merge(pool, output: Path, **options) -> LlamaForCausalLM:
    """Run the method; files of 10 kB, so that there are several."""
    options = {"shard_gb": 1e-5, "output": str(output)} | options
    return StreamingAWDAlgorithm(**options).run(pool)


def merged_files(folder: Path) -> dict[str, Tensor]:
    """Every tensor in a folder's safetensors."""
    files = sorted(Path(folder).glob("*.safetensors"))
    assert files
    return {k: v for file in files for k, v in load_file(str(file)).items()}


def shard_files(folder: Path) -> list[Path]:
    """The finished weight files in a folder."""
    return sorted(Path(folder).glob("*.safetensors"))


def replace_weights(folder: str | Path, tensors: dict[str, Tensor]) -> None:
    """Leave one file of weights in a folder."""
    for file in (*shard_files(folder), *Path(folder).glob("*.index.json")):
        file.unlink()
    save_file(tensors, f"{folder}/model.safetensors", {"format": "pt"})
