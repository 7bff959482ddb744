"""Tiny language models on disk, in several shards each."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.set_num_threads(1)  # thousands of tiny operations

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


@pytest.fixture(scope="session")
def llamas(tmp_path_factory) -> dict[str, str]:
    """float32, untied; do not write into them."""
    return save_family(tmp_path_factory.mktemp("llamas"))


@pytest.fixture(scope="session")
def tied_llamas(tmp_path_factory) -> dict[str, str]:
    return save_family(tmp_path_factory.mktemp("tied"), tied=True)


@pytest.fixture(scope="session")
def bfloat16_llamas(tmp_path_factory) -> dict[str, str]:
    return save_family(tmp_path_factory.mktemp("bfloat16"), dtype=torch.bfloat16)
