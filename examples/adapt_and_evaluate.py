"""Learn coefficients and task heads on the demo pool, save, reload, evaluate.

python examples/adapt_and_evaluate.py [--root POOL] [--rounds 500] --out FOLDER
"""

import argparse

from fusion_plugins import CLIPTaskPool, TintedModel, TintingAlgorithm
from fusion_plugins.demo import demo_modelpool, demo_taskpool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", help="a demo pool's folder; built on first use")
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--out", required=True, help="folder for the tinted model")
    options = parser.parse_args()
    algorithm = TintingAlgorithm(
        sampling="confidence_gap", rounds=options.rounds, seed=0
    )
    algorithm.run(demo_modelpool(options.root)).save_pretrained(options.out)

    model = TintedModel.from_pretrained(options.out)
    taskpool: CLIPTaskPool = demo_taskpool(options.root)
    report = taskpool.evaluate(model)
    for task in model.tasks:
        print(f"{task:12s} {report[task]['accuracy']:.3f}")
    print(f"{'average':12s} {report['average']['accuracy']:.3f}")


if __name__ == "__main__":
    main()
