"""The method on two processes; for test_tinting_runs."""

from pathlib import Path

import torch
from lightning import Fabric
from toy_tinting import BLOCK, make, tint

CASES = {
    "head": {"sampling": "confidence_gap"},
    "odd batches": {"batch_size": 7},
    "one sample more": {"batch_size": 3, "sampling": "top_p", "top_p": 1.0},
    "block": {"tint": BLOCK, "sampling": "confidence_gap"},
    "projection": {"tint": "projection", "labels": "soft"},
    "joint": {"schedule_kind": "joint", "tint": ["head", "blocks.0.norm"]},
}


def run_case(fabric: Fabric, options: dict) -> dict:
    settings = {"rounds": 6, "guard_every": 5, "guard_samples": 20} | options
    algorithm = make(**settings)
    algorithm.fabric = fabric
    model = tint(algorithm)
    labelled = {
        n: int((t.labels >= 0).sum())
        for n, t in algorithm.watch.learner.teachers.items()
    }
    return {
        "coefficients": algorithm.result.raw,
        "model": {n: p.detach() for n, p in model.named_parameters()},
        "losses": [entry["loss"] for entry in algorithm.history],
        "kept": algorithm.watch.learner.selection.kept,
        "agreement": [entry["agreement"] for entry in algorithm.guard_history],
        "labelled": labelled,
    }


def everything(fabric: Fabric, folder: Path) -> None:
    torch.set_num_threads(1)
    results = {name: run_case(fabric, options) for name, options in CASES.items()}
    torch.save(results, folder / f"rank{fabric.global_rank}.pt")


def main(folder: Path) -> None:
    """Each process writes `rank<n>.pt`."""
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp_fork")
    fabric.launch(everything, folder)
