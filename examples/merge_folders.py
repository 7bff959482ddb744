"""Merge model folders with AWD and look at what it removed.

python examples/merge_folders.py BASE EXPERT EXPERT... --out MERGED
"""

import argparse
from pathlib import Path

from fusion_plugins import AWDAlgorithm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", help="folder of the pretrained model")
    parser.add_argument("experts", nargs="+", help="folders of fine-tuned models")
    parser.add_argument("--out", required=True, help="folder for the merged model")
    options = parser.parse_args()
    pool = {Path(folder).name: folder for folder in options.experts}
    algorithm = AWDAlgorithm(scale_free=True)
    merged = algorithm.run({"_pretrained_": options.base, **pool})
    merged.save_pretrained(options.out)
    print(f"Merged {list(pool)} into {options.out}")
    print(f"Norm of the redundant vector: {algorithm.disentanglement.delta_norm():.4g}")


if __name__ == "__main__":
    main()
