"""Write a base and two experts as this release of transformers saves them.

The folders of one generation hold the other's values:

    python tests/generations/make_folders.py tests/generations/saved/4
    python tests/generations/make_folders.py tests/generations/saved/5 tests/generations/saved/4
"""

import sys
from pathlib import Path

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

NAMES = ("_pretrained_", "aa", "bb")


def main(target: Path, source: Path | None = None) -> None:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=4,
        intermediate_size=4,
        num_hidden_layers=2,
        num_attention_heads=1,
        image_size=4,
        patch_size=2,
        projection_dim=4,
    )
    base = CLIPVisionModel(config)
    for name in NAMES:
        # A model that transformers 5 has loaded is saved with the names it was loaded by.
        model = CLIPVisionModel(config)
        values = base
        if source is not None:
            values = CLIPVisionModel.from_pretrained(source / name)
        for parameter, value in zip(
            model.parameters(), values.parameters(), strict=True
        ):
            parameter.data = value.data.clone()
            if source is None and name != "_pretrained_":
                parameter.data += 0.3 * torch.randn_like(value)
        model.save_pretrained(target / name)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
