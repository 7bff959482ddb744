"""What a step of Model Tinting costs: ours, the plain model's, a teacher in every step.

    python benchmarks/tinting.py [--sizes small vit-b32] [--out tinting.json]

Head tints, a sequential schedule, hard labels. Random towers, experts, images and heads:
no download. Every figure comes from fresh processes, whose order turns each round.
`plain` is forward and backward of the merged model alone on one batch. `teacher in every
step` is written as the authors' scripts go about it: all experts are kept on the CPU, the
task's expert is brought to the device and labels the batch, the merge is part of the
graph and is backpropagated through. Our labelling, done once before the steps, is
compared with bare forwards of as many samples, batched alike.

On a GPU (with one, --device auto takes it):

    python benchmarks/tinting.py --sizes vit-b32 --tasks 8 20 --batch 32 \\
        --dtype float32 bfloat16 --steps 20 --out tinting-gpu.json
"""

from __future__ import annotations

import adaptation_timing as timing
import common
from adaptation_marks import EngineMarks, Marks

_LEARNING_RATE = 1e-2
_INITIAL = 0.3
_NAMES = ("ours", "plain", "teacher_in_every_step")


def main() -> None:
    options = timing.parser(__doc__, "default 32", "tinting.json").parse_args()
    timing.run(__file__, options, WORKERS, lambda *_: 32, measure, print_result)


def measure(job: dict, repeats: int) -> dict:
    figures = timing.rounds(__file__, _NAMES, job, repeats)
    ratios = {
        "ours / plain": timing.step_ratio(figures, "ours", "plain"),
        "teacher in every step / ours": timing.step_ratio(
            figures, "teacher_in_every_step", "ours"
        ),
    }
    labelling = timing.start(__file__, "labelling", job)
    return {"job": job, "figures": figures, "labelling": labelling} | ratios


def print_result(result: dict) -> None:
    figures = result["figures"]
    rows = [
        timing.step_row(n.replace("_", " "), values) for n, values in figures.items()
    ]
    ratios = ("ours / plain", "teacher in every step / ours")
    rows += [timing.ratio_row(name, result[name]) for name in ratios]
    common.table(timing.title(result["job"]), timing.STEP_COLUMNS, rows)
    print("Ours, seconds per part:", timing.parts(figures["ours"]))
    labelling = result["labelling"]
    if "ratio" in labelling:
        teacher, merges, forward = (
            f"{1e3 * labelling[key]:.2f} ms" for key in ("teacher", "merges", "forward")
        )
        print(
            f"Labelling a sample: {teacher}, of it {merges} for merging the experts; a"
            f" bare forward: {forward} ({labelling['ratio']:.2f}x)."
        )


# workers


def ours_worker(job: dict) -> dict:
    from adaptation_engine import make_engine
    from adaptation_stand_ins import StandIn

    from fusion_plugins import TintingAlgorithm

    given = StandIn(job)
    marks = Marks(given.device)
    watch = EngineMarks(marks, job["steps"])
    rounds = -(-(timing.WARM_UP + job["steps"]) // job["tasks"])
    algorithm = TintingAlgorithm(
        rounds=rounds, batch_size=job["batch"], lr=_LEARNING_RATE
    )
    make_engine(given, algorithm, [watch]).run()
    return marks.figures(job["steps"]) | watch.parts


def labelling_worker(job: dict) -> dict:
    """Labelling every kept sample against bare forwards of as many, batched alike."""
    import torch
    from adaptation_engine import make_predictor
    from adaptation_stand_ins import StandIn

    from fusion_plugins.adaptation import label_samples

    given = StandIn(job)
    predictor, device = make_predictor(given), given.device
    module, weights = predictor.weights.module, predictor.weights

    @torch.no_grad()
    def forwards():
        with given.fabric.autocast():
            for task in predictor.tasks:
                given.features(module, task.source.monitored(128))

    def merges():
        for index in range(job["tasks"]):
            weights.materialise_expert(index)

    calls = {
        "teacher": lambda: label_samples(predictor, False, False),
        "merges": merges,
        "forward": forwards,
    }
    forwards()
    seconds = {name: [] for name in calls}
    for name, call in [*calls.items(), *reversed(calls.items())]:
        marks = Marks(device)
        marks.mark()
        call()
        marks.mark()
        seconds[name].append(marks.figures(1)["seconds"])
    samples = job["batch"] * job["batches"] * job["tasks"]
    result = {name: min(values) / samples for name, values in seconds.items()}
    return result | {"ratio": result["teacher"] / result["forward"]}


def plain_worker(job: dict) -> dict:
    import torch
    from adaptation_stand_ins import StandIn

    given = StandIn(job)
    module = given.tower.to(given.device)
    heads = {name: given.head(name) for name in given.names}
    sources = {name: given.source(name) for name in given.names}
    marks = Marks(given.device)
    marks.mark()
    for step in range(timing.WARM_UP + job["steps"]):
        draw, number = divmod(step, job["tasks"])
        name = given.names[number]
        with given.fabric.autocast():
            features = given.features(module, sources[name].batch([draw]).inputs)
            logits = heads[name](features).float()
            loss = torch.nn.functional.cross_entropy(logits, logits.argmax(-1))
        loss.backward()
        module.zero_grad(set_to_none=True)
        marks.mark()
    return marks.figures(job["steps"])


def teacher_in_every_step_worker(job: dict) -> dict:
    import torch
    from adaptation_stand_ins import StandIn
    from torch.func import functional_call

    given = StandIn(job)
    device = given.device
    experts = given.expert_modules()  # on the CPU until they are asked
    tower = given.tower.to(device).requires_grad_(False)
    base = dict(tower.named_parameters())
    task_vectors = [
        {n: p.detach().to(device) - base[n] for n, p in expert.named_parameters()}
        for expert in experts
    ]
    raw = torch.full((job["tasks"], len(base)), _INITIAL, device=device)
    raw.requires_grad_(True)
    frozen = [given.head(name) for name in given.names]
    heads = [given.head(name).requires_grad_(True) for name in given.names]
    tints = [p for head in heads for p in head.parameters()]
    optimizer = torch.optim.Adam([raw, *tints], lr=_LEARNING_RATE)
    sources = [given.source(name) for name in given.names]

    def merged() -> dict:
        coefficients = raw.clamp(0, 1)
        return {
            name: p
            + sum(
                c * v[name]
                for c, v in zip(coefficients[:, i], task_vectors, strict=True)
            )
            for i, (name, p) in enumerate(base.items())
        }

    def labels(task: int, inputs):
        with torch.no_grad():
            teacher = experts[task].to(device)
            chosen = frozen[task](given.features(teacher, inputs)).argmax(-1)
            experts[task].to("cpu")
        return chosen

    marks = Marks(device)
    marks.mark()
    for step in range(timing.WARM_UP + job["steps"]):
        draw, task = divmod(step, job["tasks"])
        inputs = sources[task].batch([draw]).inputs
        with given.fabric.autocast():
            target = labels(task, inputs)
            weights = merged()
            features = given.features(
                lambda x, weights=weights: functional_call(tower, weights, (x,)), inputs
            )
            logits = heads[task](features).float()
            loss = torch.nn.functional.cross_entropy(logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        marks.mark()
    return marks.figures(job["steps"])


WORKERS = {
    "ours": ours_worker,
    "plain": plain_worker,
    "teacher_in_every_step": teacher_in_every_step_worker,
    "labelling": labelling_worker,
}


if __name__ == "__main__":
    main()
