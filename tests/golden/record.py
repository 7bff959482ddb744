"""Recordings of another shape, made by plain loops that share no code with the package.

record.py FOLDER

They have other numbers of tasks, classes, steps, samples and widths than `data/`, and are
not the authors' runs: they prove that the tests hold for any recording of this form.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from recordings import TinyEncoder
from torch import Tensor
from torch.func import functional_call

TASKS, STEPS, SAMPLES, WIDTH, FEATURES, BATCHES, SIZE = 4, 9, 50, 20, 12, 3, 10
CLASSES = (3, 4, 5, 9)


def pool(seed: int):
    """Weights of a base and experts, heads, and images."""
    torch.manual_seed(seed)
    base = TinyEncoder(108, WIDTH, FEATURES).state_dict()
    experts = [
        {n: v + 0.15 * torch.randn_like(v) for n, v in base.items()}
        for _ in range(TASKS)
    ]
    heads = [(2 * torch.randn(c, FEATURES), 0.1 * torch.randn(c)) for c in CLASSES]
    return base, experts, heads, torch.randn(TASKS, SAMPLES, 3, 6, 6)


def trimmed(vectors: list[dict[str, Tensor]], keep: float) -> list[dict[str, Tensor]]:
    """TIES: the largest entries of each vector, and of these the elected sign's."""
    flat = torch.stack([torch.cat([v.flatten() for v in d.values()]) for d in vectors])
    rank = flat.shape[1] - int(flat.shape[1] * keep)
    for row in flat:
        row[row.abs() < row.abs().kthvalue(rank).values] = 0
    sign = flat.sum(0).sign()
    sign[sign == 0] = sign.sum().sign()
    flat = torch.where(torch.where(sign > 0, flat > 0, flat < 0), flat, 0)
    result = []
    for row, names in zip(flat, vectors, strict=True):
        parts = row.split([v.numel() for v in names.values()])
        shapes = zip(names, parts, names.values(), strict=True)
        result.append({n: part.view_as(v) for n, part, v in shapes})
    return result


def logits(weights: dict[str, Tensor], head, images: Tensor) -> Tensor:
    module = TinyEncoder(108, WIDTH, FEATURES)
    features = functional_call(module, weights, (images,))
    return features / features.norm(dim=-1, keepdim=True) @ head[0].T + head[1]


def merged(base, vectors, raw: Tensor) -> dict[str, Tensor]:
    """base + clamped coefficients times task vectors; raw is (layers or 1, tasks)."""
    result = {}
    for layer, (name, value) in enumerate(base.items()):
        row = raw[layer if len(raw) > 1 else 0].clamp(0, 1)
        steps = (row[t] * vectors[t][name] for t in range(TASKS))
        result[name] = value + sum(steps)
    return result


def differences(base, experts) -> list[dict[str, Tensor]]:
    return [{n: e[n] - v for n, v in base.items()} for e in experts]


def adamerging(layer_wise: bool, keep: float | None, seed: int) -> dict:
    base, experts, heads, images = pool(seed)
    vectors = differences(base, experts)
    vectors = vectors if keep is None else trimmed(vectors, keep)
    raw = torch.full((len(base) if layer_wise else 1, TASKS), 0.3, requires_grad=True)
    optimizer = torch.optim.Adam([raw], lr=1e-3)
    order = np.arange(STEPS * TASKS) % TASKS
    schedule = torch.randint(0, SAMPLES, (STEPS * TASKS, BATCHES, SIZE))
    for step in range(STEPS):
        loss = 0
        weights = merged(base, vectors, raw)
        for task in range(TASKS):
            for batch in schedule[step * TASKS + task]:
                out = logits(weights, heads[task], images[task][batch])
                log_p = out.log_softmax(-1)
                loss = loss - (log_p.exp() * log_p).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    learned = {"final_lambdas": raw.detach(), "order": order, "schedule": schedule}
    return recorded(base, experts, heads, images) | learned


def tinting(gap: bool, seed: int) -> dict:
    base, experts, heads, images = pool(seed)
    vectors = differences(base, experts)
    raw = torch.full((len(base), TASKS), 0.3, requires_grad=True)
    own = [[p.clone().requires_grad_() for p in head] for head in heads]
    optimizer = torch.optim.Adam([raw, *(p for head in own for p in head)], lr=1e-2)
    order = np.concatenate(
        [np.random.RandomState(r).permutation(TASKS) for r in range(STEPS)]
    )
    schedule = torch.randint(0, SAMPLES, (len(order), 1, SIZE))
    for task, (batch,) in zip(order, schedule, strict=True):
        with torch.no_grad():
            teacher = logits(experts[task], heads[task], images[task][batch]).softmax(
                -1
            )
        sure, label = teacher.max(-1)
        out = logits(merged(base, vectors, raw), own[task], images[task][batch])
        own_sure, own_label = out.detach().softmax(-1).max(-1)
        kept = (own_label == label) | (sure >= own_sure) if gap else sure > 0
        losses = torch.nn.functional.cross_entropy(out, label, reduction="none")
        optimizer.zero_grad()
        if kept.any():
            losses[kept].mean().backward()
            optimizer.step()
    learned = {"final_lambdas": raw.detach(), "order": order, "schedule": schedule}
    for task, (weight, bias) in enumerate(own):
        learned[f"final_head{task}/weight"] = weight.detach()
        learned[f"final_head{task}/bias"] = bias.detach()
    return recorded(base, experts, heads, images) | learned


def recorded(base, experts, heads, images) -> dict:
    arrays = {"param_names": np.array(list(base)), "images": images, "epochs": STEPS}
    arrays |= {f"base/{name}": value for name, value in base.items()}
    for task, (expert, (weight, bias)) in enumerate(zip(experts, heads, strict=True)):
        arrays |= {f"task{task}/{name}": value for name, value in expert.items()}
        arrays |= {f"head{task}/weight": weight, f"head{task}/bias": bias}
    return arrays


def awd_global(seed: int, tasks: int = 3, entries: int = 700) -> dict:
    torch.manual_seed(seed)
    shared = torch.randn(entries, dtype=torch.float64)
    vectors = torch.randn(tasks, entries, dtype=torch.float64) + 0.6 * shared
    vectors *= 2.2 / vectors.norm(dim=1, keepdim=True)
    alpha, lr, steps = 0.07, 0.02, (1, 3, 20, 60, 120)
    delta = torch.zeros(entries, dtype=torch.float64, requires_grad=True)
    result = {"task_vectors": vectors, "alpha": alpha, "lr": lr}

    def parts() -> tuple[Tensor, Tensor]:
        rest = vectors - delta
        unit = rest / rest.norm(dim=1, keepdim=True)
        cosines = (unit @ unit.T).abs()
        cosines = cosines.sum() - cosines.diagonal().sum()
        return cosines / (tasks * (tasks - 1)), delta.norm()

    for step in range(1, max(steps) + 1):
        first, second = parts()
        (slope,) = torch.autograd.grad(first + alpha * second, delta)
        delta = (delta - lr * slope).detach().requires_grad_()
        if step in steps:
            first, second = parts()
            result[f"delta_{step}"] = delta.detach()
            losses = (first + alpha * second, first, second)
            result[f"loss_{step}"] = torch.stack(losses).detach()
    return result


def awd_row(seed: int, tasks: int = 5, rows: int = 4, columns: int = 30) -> dict:
    torch.manual_seed(seed)
    vectors = 0.2 * torch.randn(tasks, rows, columns) + 0.1 * torch.randn(rows, columns)
    numbers = {
        "lr": 2e-3,
        "momentum": 0.8,
        "weight_decay": 3e-4,
        "alpha": 2e-3,
        "iters": 90,
    }
    result = {"task_vectors": vectors, **numbers}
    for kind in ("row", "none"):
        common = torch.zeros(rows, columns, requires_grad=True)
        settings = {k: numbers[k] for k in ("lr", "momentum", "weight_decay")}
        optimizer = torch.optim.SGD([common], **settings)
        cosines = []
        for _ in range(numbers["iters"]):
            rest = vectors - common
            if kind == "row":
                unit = rest / rest.norm(dim=-1, keepdim=True)
                pairs = torch.einsum("irc,jrc->rij", unit, unit).tril(-1).abs()
                cosine = (pairs.sum((-1, -2)) / (tasks * (tasks - 1) / 2)).mean()
            else:
                unit = rest.flatten(1) / rest.flatten(1).norm(dim=-1, keepdim=True)
                cosine = (unit @ unit.T).tril(-1).abs().mean()
            loss = cosine + numbers["alpha"] * common.norm(dim=-1).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            cosines.append(cosine.item())
        result[f"common_{kind}"] = common.detach()
        result[f"cos_{kind}"] = np.array([cosines[0], cosines[-1]])
    return result


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    runs = {
        "adamerging_layer_wise": adamerging(True, None, 1),
        "adamerging_layer_wise_pp": adamerging(True, 0.2, 2),
        "adamerging_task_wise": adamerging(False, None, 3),
        "adamerging_task_wise_pp": adamerging(False, 0.2, 4),
        "tinting": tinting(False, 5),
        "tinting_pp": tinting(True, 6),
        "awd_global": awd_global(7),
        "awd_row": awd_row(8),
    }
    for name, arrays in runs.items():
        np.savez(
            folder / f"{name}.npz", **{k: np.asarray(v) for k, v in arrays.items()}
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
