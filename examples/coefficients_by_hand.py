"""Work with task vectors directly: similarities, then a merge with own coefficients.

python examples/coefficients_by_hand.py BASE EXPERT EXPERT...
"""

import argparse
from pathlib import Path

import torch

from fusion_plugins.pools import load_task_vectors
from fusion_plugins.task_vectors import merge_into
from fusion_plugins.task_vectors.gram import cosine_matrix, gram_matrices


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", help="folder of the pretrained model")
    parser.add_argument("experts", nargs="+", help="folders of fine-tuned models")
    options = parser.parse_args()
    pool = {"_pretrained_": options.base}
    pool |= {Path(folder).name: folder for folder in options.experts}
    module, task_vectors = load_task_vectors(pool)
    print("cosines", cosine_matrix(gram_matrices(task_vectors).total()), sep="\n")

    # Later tensors get more of the experts than earlier ones.
    scales = torch.linspace(0.1, 0.5, len(task_vectors.keys))
    tasks = len(task_vectors.tasks)
    coefficients = {
        key: torch.full((tasks,), float(scale))
        for key, scale in zip(task_vectors.keys, scales, strict=True)
    }
    merged = merge_into(module, task_vectors, coefficients)
    print(f"merged {sum(p.numel() for p in merged.parameters())} parameters")


if __name__ == "__main__":
    main()
