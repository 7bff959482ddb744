"""What a step of AdaMerging costs: ours, the plain model's, FusionBench's.

    python benchmarks/adamerging.py [--sizes small vit-b32] [--out adamerging.json]

Random towers, experts, images and heads: no download. Every figure comes from fresh
processes, whose order turns each round. `plain` is forward and backward of the merged
model alone on the same batches, with the same tasks per forward as ours, or with all
tasks in one; ours is compared with the faster. FusionBench runs its own class's loop.
On a CPU, vit-b32 takes 4 images per task so that it ends in time.

On a GPU (with one, --device auto takes it):

    python benchmarks/adamerging.py --sizes vit-b32 --tasks 8 20 --batch 16 32 \\
        --dtype float32 bfloat16 --steps 20 --out adamerging-gpu.json
    python benchmarks/adamerging.py --sizes vit-l14 --tasks 20 --batch 16 \\
        --dtype bfloat16 --task-vector-dtype bfloat16 --memory-cap 24 --steps 20 \\
        --out adamerging-24gb.json

`--dtype bfloat16` is Fabric's bf16-mixed, for all. A loop that does not fit the cap is
listed as out of memory.
"""

from __future__ import annotations

import adaptation_timing as timing
import common
from adaptation_marks import EngineMarks, Marks

_LEARNING_RATE = 1e-3
_INITIAL = 0.3


def main() -> None:
    options = timing.parser(
        __doc__, "per task (default 16; vit-b32 on a CPU 4)", "adamerging.json"
    ).parse_args()
    timing.run(__file__, options, WORKERS, _default_batch, measure, print_result)


def _default_batch(size: str, device: str) -> int:
    return 4 if device == "cpu" and not size.startswith("small") else 16


def measure(job: dict, repeats: int) -> dict:
    first = timing.start(__file__, "ours", job | {"steps": 1})
    job["tasks_per_forward"] = int(first.get("tasks_per_forward", 1))
    names = ["ours", "plain", "upstream"]
    if 1 <= job["tasks_per_forward"] < job["tasks"]:
        names.insert(2, "plain_at_once")
    figures = timing.rounds(__file__, names, job, repeats)
    plain = min(
        (n for n in names if n.startswith("plain") and "seconds" in figures[n]),
        key=lambda n: figures[n]["seconds"]["median"],
        default="plain",
    )
    result = {"job": job, "figures": figures, "compared_with": plain}
    result["ours / plain"] = timing.step_ratio(figures, "ours", plain)
    result["upstream / ours"] = timing.step_ratio(figures, "upstream", "ours")
    ours, theirs = (figures[n].get("coefficient_change") for n in ("ours", "upstream"))
    if ours and theirs:  # the same batches and steps: the loops must agree
        gap = abs(ours["median"] - theirs["median"])
        result["relative_difference_of_change"] = gap / theirs["median"]
    return result


def print_result(result: dict) -> None:
    figures, job = result["figures"], result["job"]
    labels = {
        "ours": "ours",
        "plain": f"plain, {job['tasks_per_forward']} task(s) per forward, as ours",
        "plain_at_once": "plain, all tasks in one forward",
        "upstream": "FusionBench",
    }
    rows = [timing.step_row(labels[n], values) for n, values in figures.items()]
    rows.append(timing.ratio_row("ours / faster plain", result["ours / plain"]))
    rows.append(timing.ratio_row("FusionBench / ours", result["upstream / ours"]))
    common.table(timing.title(job), timing.STEP_COLUMNS, rows)
    print("Ours, seconds per part:", timing.parts(figures["ours"]))
    if "relative_difference_of_change" in result:
        gap = result["relative_difference_of_change"]
        print(f"Learned coefficients moved as far as FusionBench's up to {gap:.1e}.")


# workers


def ours_worker(job: dict) -> dict:
    from adaptation_engine import make_engine
    from adaptation_stand_ins import StandIn

    from fusion_plugins import AdaMergingAlgorithm

    given, largest = StandIn(job), [0]
    features = given.features

    def watched(module, inputs):
        largest[0] = max(largest[0], len(inputs))
        return features(module, inputs)

    given.features = watched
    marks = Marks(given.device)
    watch = EngineMarks(marks, job["steps"])
    steps = timing.WARM_UP + job["steps"]
    algorithm = AdaMergingAlgorithm(
        preset="fusion_bench",
        steps=steps,
        batch_size=job["batch"],
        lr=_LEARNING_RATE,
    )
    engine = make_engine(given, algorithm, [watch])
    engine.run()
    change = (engine.coefficients.raw.detach() - _INITIAL).double().norm().item()
    return (
        marks.figures(job["steps"])
        | watch.parts
        | {
            "tasks_per_forward": largest[0] // job["batch"],
            "coefficient_change": change,
        }
    )


def plain_worker(job: dict, at_once: bool = False) -> dict:
    import torch
    from adaptation_stand_ins import StandIn

    from fusion_plugins.adamerging.functional import prediction_entropy

    given = StandIn(job)
    module = given.tower.to(given.device)
    heads = {name: given.head(name) for name in given.names}
    size = job["tasks"] if at_once else job["tasks_per_forward"]
    groups = [given.names[i : i + size] for i in range(0, job["tasks"], size)]
    sources = {name: given.source(name) for name in given.names}
    marks = Marks(given.device)
    marks.mark()
    for step in range(timing.WARM_UP + job["steps"]):
        for group in groups:
            inputs = torch.cat([sources[n].batch([step]).inputs for n in group])
            with given.fabric.autocast():
                features = given.features(module, inputs).split(job["batch"])
                losses = [
                    prediction_entropy(heads[n](part).float(), 1e-8).mean()
                    for n, part in zip(group, features, strict=True)
                ]
            torch.stack(losses).sum().backward()
        module.zero_grad(set_to_none=True)
        marks.mark()
    return marks.figures(job["steps"])


def plain_at_once_worker(job: dict) -> dict:
    return plain_worker(job, at_once=True)


def upstream_worker(job: dict) -> dict:
    """FusionBench's class in its own loop; only data, heads and towers are handed in."""
    from types import SimpleNamespace

    from adaptation_stand_ins import StandIn
    from fusion_bench.method import CLIPLayerWiseAdaMergingAlgorithm
    from fusion_bench.models.wrappers.layer_wise_fusion import (
        LayerWiseMergedModel,
        get_layer_wise_weights,
    )
    from omegaconf import DictConfig

    given = StandIn(job)
    marks = Marks(given.device)
    sources = {name: given.source(name) for name in given.names}

    class Timed(CLIPLayerWiseAdaMergingAlgorithm):
        fabric = given.fabric

        def on_test_time_adaptation_start(self):
            self.zeroshot_weights = given.heads
            self.visual_projection = given.projection
            self.logit_scale_exp = given.scale

        def get_shuffled_test_loader_iter(self, task):
            if task == given.names[0]:  # a step begins where the last one ended
                marks.mark()
                draws[0] += 1
            return iter([(sources[task].batch(draws).inputs, None)])

    draws = [-1]
    steps = timing.WARM_UP + job["steps"]
    config = {"optimizer": "adam", "lr": _LEARNING_RATE, "max_steps": steps}
    algorithm = Timed(DictConfig(config))
    algorithm.modelpool = SimpleNamespace(model_names=given.names)
    tower, experts = given.tower, given.expert_modules()
    module = LayerWiseMergedModel(
        get_layer_wise_weights(
            job["tasks"], len(list(tower.parameters())), init_values=_INITIAL
        ),
        tower,
        experts,
        clamp_weights=False,
        tie_weights=True,
        strict=False,
    )
    del tower, experts
    algorithm.test_time_adaptation(module)
    marks.mark()
    change = (module.merge_weight.detach() - _INITIAL).double().norm().item()
    return marks.figures(job["steps"]) | {"coefficient_change": change}


WORKERS = {
    "ours": ours_worker,
    "plain": plain_worker,
    "plain_at_once": plain_at_once_worker,
    "upstream": upstream_worker,
}


if __name__ == "__main__":
    main()
