"""The recorded runs as plain loops of autograd that share no code with the package.

In float32 they do what the recorded scripts did; in float64 they tell how far float32 can
be trusted. Both are read straight from the README of the recordings.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Arrays = dict[str, Tensor]
INIT = 0.3  # every coefficient at step 0
KEPT = 0.2  # share of a task vector that the `_pp` runs of AdaMerging keep


def features(weights: Arrays, images: Tensor) -> Tensor:
    """The tiny encoder, its features scaled to length 1."""
    hidden = F.linear(images.flatten(1), weights["stem.weight"], weights["stem.bias"])
    norm = (weights["norm.weight"], weights["norm.bias"])
    hidden = F.layer_norm(hidden, hidden.shape[1:], *norm)
    hidden = hidden + F.gelu(
        F.linear(hidden, weights["mid.weight"], weights["mid.bias"])
    )
    found = F.linear(hidden, weights["out.weight"])
    return found / found.norm(dim=-1, keepdim=True)


class Run:
    """A recorded test-time run in one precision: its weights, data and schedule."""

    def __init__(self, arrays: Arrays, names: tuple[str, ...], dtype: torch.dtype):
        self.names, self.dtype = names, dtype
        self.images = arrays["images"].to(dtype)
        self.tasks = range(len(self.images))
        self.base = {n: arrays[f"base/{n}"] for n in names}
        self.vectors = [
            {n: arrays[f"task{t}/{n}"] - self.base[n] for n in names}
            for t in self.tasks
        ]
        self.heads = [
            [arrays[f"head{t}/{part}"].to(dtype) for part in ("weight", "bias")]
            for t in self.tasks
        ]
        self.visits = list(
            zip(arrays["order"].tolist(), arrays["schedule"], strict=True)
        )

    def trim(self) -> None:
        """TIES: the largest entries of each vector that agree with the elected sign."""
        flat = torch.stack(
            [torch.cat([v[n].flatten() for n in self.names]) for v in self.vectors]
        )
        rank = flat.shape[1] - int(flat.shape[1] * KEPT)
        threshold = flat.abs().kthvalue(rank, dim=1, keepdim=True).values
        flat = torch.where(flat.abs() >= threshold, flat, 0)
        sign = flat.sum(0).sign()
        sign = torch.where(sign == 0, sign.sum().sign(), sign)
        flat = torch.where(flat.sign() == sign, flat, 0)
        for vector, row in zip(self.vectors, flat, strict=True):
            parts = row.split([vector[n].numel() for n in self.names])
            for name, part in zip(self.names, parts, strict=True):
                vector[name] = part.view_as(vector[name])

    def merged(self, lambdas: Tensor) -> Arrays:
        """base + sum of the task vectors, each times its clamped coefficient."""
        rows = lambdas.clamp(0, 1).expand(len(self.names), -1)
        return {
            name: self.base[name].to(self.dtype)
            + sum(
                c * v[name].to(self.dtype)
                for c, v in zip(row, self.vectors, strict=True)
            )
            for name, row in zip(self.names, rows, strict=True)
        }

    def start(self, rows: int) -> Tensor:
        shape = (rows, len(self.tasks))
        return torch.full(shape, INIT, dtype=self.dtype, requires_grad=True)

    def logits(self, weights: Arrays, task: int, samples: Tensor) -> Tensor:
        return F.linear(
            features(weights, self.images[task][samples]), *self.heads[task]
        )


def adamerging(run: Run, task_wise: bool, trimmed: bool) -> Tensor:
    """Raw coefficients, (layers, tasks) or (1, tasks)."""
    if trimmed:
        run.trim()
    lambdas = run.start(1 if task_wise else len(run.names))
    adam = torch.optim.Adam([lambdas], lr=1e-3)
    tasks = len(run.tasks)
    for first in range(0, len(run.visits), tasks):
        merged, loss = run.merged(lambdas), 0
        for task, batches in run.visits[first : first + tasks]:
            for samples in batches:
                log_p = run.logits(merged, task, samples).log_softmax(dim=-1)
                loss = loss - (log_p.exp() * log_p).sum(dim=-1).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return lambdas.detach()


def tinting(run: Run, by_confidence: bool) -> tuple[Tensor, list[list[Tensor]]]:
    """Raw coefficients, and each task's trained [weight, bias]."""
    experts = [
        {n: (run.base[n] + v[n]).to(run.dtype) for n in run.names} for v in run.vectors
    ]
    everything = torch.arange(run.images.shape[1])
    teachers = [
        run.logits(e, t, everything).softmax(dim=-1).max(dim=-1)
        for t, e in enumerate(experts)
    ]
    run.heads = [[p.clone().requires_grad_() for p in head] for head in run.heads]
    lambdas = run.start(len(run.names))
    adam = torch.optim.Adam(
        [lambdas, *(p for head in run.heads for p in head)], lr=1e-2
    )
    for task, batches in run.visits:
        merged, loss = run.merged(lambdas), 0
        for samples in batches:
            logits = run.logits(merged, task, samples)
            sure, labels = (values[samples] for values in teachers[task])
            if by_confidence:
                surer, predicted = logits.softmax(dim=-1).max(dim=-1)
                keep = (predicted == labels) | (sure >= surer)
                logits, labels = logits[keep], labels[keep]
            loss = loss + F.cross_entropy(logits, labels)
        adam.zero_grad()
        loss.backward()
        adam.step()
    return lambdas.detach(), [[p.detach() for p in head] for head in run.heads]


def awd_global(arrays: Arrays, steps: int) -> list[tuple[Tensor, Tensor]]:
    """delta and [L, L_O, L_R] after 0, 1, ... `steps` steps, in full space."""
    vectors = arrays["task_vectors"]
    delta = torch.zeros_like(vectors[0]).requires_grad_()
    found = []
    for _ in range(steps + 1):
        rest = F.normalize(vectors - delta, dim=-1)
        cosines = (rest @ rest.T).abs()
        orthogonality = cosines[~torch.eye(len(rest), dtype=torch.bool)].mean()
        redundancy = delta.norm()
        loss = orthogonality + arrays["alpha"] * redundancy
        losses = torch.stack([loss, orthogonality, redundancy]).detach()
        found.append((delta.detach().clone(), losses))
        (slope,) = torch.autograd.grad(loss, delta)
        delta.data -= arrays["lr"] * slope
    return found


def awd_row(arrays: Arrays, kind: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The common part of one matrix, and the cosines before the first and last step.

    `row`: cosines per row, their mean over rows and pairs. `none`: one cosine over the
    flattened matrix, its pairs' sum divided by all T x T entries.
    """
    vectors = arrays["task_vectors"].to(dtype)
    tasks, alpha = len(vectors), arrays["alpha"].item()
    common = torch.zeros_like(vectors[0]).requires_grad_()
    names = ("lr", "momentum", "weight_decay")
    descent = torch.optim.SGD([common], **{n: arrays[n].item() for n in names})
    cosines = []
    for _ in range(int(arrays["iters"])):
        rest = vectors - common
        if kind == "none":
            rest = rest.flatten(1)[:, None]
        rest = rest / rest.norm(dim=-1, keepdim=True)
        pairs = torch.einsum("irc,jrc->rij", rest, rest).tril(-1).abs().sum((-1, -2))
        count = tasks**2 if kind == "none" else tasks * (tasks - 1) / 2
        cosine = (pairs / count).mean()
        loss = cosine + alpha * common.norm(dim=-1).sum()
        descent.zero_grad()
        loss.backward()
        descent.step()
        cosines.append(cosine.item())
    ends = torch.tensor([cosines[0], cosines[-1]], dtype=torch.float64)
    return common.detach(), ends
