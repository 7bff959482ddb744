"""All that a GPU changes, in one command: steps, memory, teachers, the whole training.

    python benchmarks/gpu.py [--out gpu.json] [--sections step large ...] [--tiny]

Random weights of the real shapes and random images; no download. Needs torch, lightning,
transformers, and fusion-bench with what it imports. Every section runs in a fresh process
and every row on its own, so that one failure loses nothing else: a row says what went
wrong. `gpu.json` and `gpu.md`, a table, are written after every section.

- step: AdaMerging on ViT-B/32, 8 tasks of 16 images: the plain model, ours with its
  options, FusionBench's class. `plain` is forward and backward of the merged model alone.
- large: the same on ViT-L/14 with 20 tasks, for its peak memory.
- tinting: Model Tinting on ViT-B/32, 8 tasks, one batch of 32 per step; the teacher.
- awd: inner products of 8 task vectors and their solution; these run on the processor.
- images: preprocessing of pictures for adaptation; also on the processor.
- training: a whole training of 100 steps on ViT-B/32 with everything that comes before.
- profile: kernels per step of ours, and how long the GPU has none to run.

`--tiny` runs everything on the processor in one process, in seconds; its figures mean
nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import adamerging
import adaptation_timing as timing
import common
import tinting

Row = dict  # variant and figures
_HIDDEN = ("variant", "seconds", "least_seconds", "cpu_seconds", "peak_mib")
_BF16 = {"dtype": "bfloat16", "precision": timing.PRECISIONS["bfloat16"]}
_OURS = {
    "ours, float32": {},
    "ours, bfloat16 autocast": _BF16,
    "ours, bfloat16 autocast and task vectors": {
        **_BF16,
        "task_vector_dtype": "bfloat16",
    },
    "ours, bfloat16 autocast, int8 task vectors": {
        **_BF16,
        "task_vector_dtype": "int8",
    },
    "ours, bfloat16 autocast, int4 task vectors": {
        **_BF16,
        "task_vector_dtype": "int4",
    },
    "ours, bfloat16, torch.compile": {**_BF16, "compile": True},
    "ours, bfloat16, task vectors in CPU memory": {**_BF16, "offload": True},
}


def main(arguments: list[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    if options.worker:
        name, job = json.loads(options.worker)
        print(json.dumps({"rows": list(SECTIONS[name](job))}))
        return
    report = {"machine": common.machine(), "sections": {}}
    report["device"] = (
        {"device": "cpu", "name": "the processor"}
        if options.tiny
        else timing.probe(__file__, "auto")
    )
    for name in options.sections:
        print(f"{name} ...", flush=True)
        report["sections"][name] = _section(name, _job(report, options.tiny), options)
        _print(name, report["sections"][name])
        common.save(report, options.out)
        options.out.with_suffix(".md").write_text(_markdown(report))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = list(SECTIONS)
    parser.add_argument("--sections", nargs="+", choices=names, default=names)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument(
        "--tiny", action="store_true", help="on the processor, for tests"
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser


def _job(report: dict, tiny: bool) -> dict:
    """The ViT-B/32 job that every section changes as it needs."""
    job = {"size": "vit-b32", "tasks": 8, "batch": 16, "batches": 4, "steps": 10}
    if tiny:
        job = {"size": "tiny", "tasks": 2, "batch": 2, "batches": 2, "steps": 2}
    job |= {"dtype": "float32", "precision": timing.PRECISIONS["float32"]}
    job |= {"task_vector_dtype": "float32", "memory_cap": None, "tasks_per_forward": 1}
    return job | {"device": report["device"]["device"], "tiny": tiny}


def _section(name: str, job: dict, options: argparse.Namespace) -> dict:
    """A section's rows, or what stopped it."""
    start = time.perf_counter()
    try:
        if options.tiny:
            found = {"rows": list(SECTIONS[name](job))}
        else:
            worker = ("--worker", json.dumps([name, job]))
            found = common.in_fresh_process(__file__, *worker)
    except Exception as error:  # noqa: BLE001 whatever it is, the others go on
        found = {"rows": [{"variant": name, "error": str(error)[-500:]}]}
    return {"job": job, "took": time.perf_counter() - start, **found}


# sections: a job -> rows


def _step(job: dict) -> Iterator[Row]:
    for label, options in (("float32", {}), ("bfloat16 autocast", _BF16)):
        plain = adamerging.plain_at_once_worker
        yield from _rows(f"plain, {label}", plain, job | options)
    for label, options in _OURS.items():
        if not (job["tiny"] and "compile" in options):  # compiling takes a minute
            yield from _rows(label, adamerging.ours_worker, job | options)
    for label, options in (("float32", {}), ("bfloat16 autocast", _BF16)):
        label = f"FusionBench, {label}"
        yield from _rows(label, adamerging.upstream_worker, job | options)


def _large(job: dict) -> Iterator[Row]:
    if not job["tiny"]:
        job = job | {"size": "vit-l14", "tasks": 20, "batches": 2, "steps": 5}
    job |= _BF16
    yield from _rows("plain, bfloat16 autocast", adamerging.plain_at_once_worker, job)
    for label, options in list(_OURS.items())[1:]:
        if "compile" not in options:
            yield from _rows(label, adamerging.ours_worker, job | options)


def _tinting(job: dict) -> Iterator[Row]:
    job = job | {"batch": job["batch"] * 2}
    for label, options in (("float32", {}), ("bfloat16 autocast", _BF16)):
        yield from _rows(f"plain, {label}", tinting.plain_worker, job | options)
        yield from _rows(f"ours, {label}", tinting.ours_worker, job | options)
    worker = tinting.teacher_in_every_step_worker
    yield from _rows("teacher in every step, float32", worker, job)
    yield from _rows("labelling, per sample, float32", _labelling, job)


def _labelling(job: dict) -> dict:
    figures = tinting.labelling_worker(job)
    return {"seconds": figures["teacher"], "times a forward": figures["ratio"]}


def _awd(job: dict) -> Iterator[Row]:
    yield from _rows("inner products and 300 iterations", _disentangling, job)


def _disentangling(job: dict) -> dict:
    from adaptation_stand_ins import StandIn

    from fusion_plugins.awd.disentangle import disentangle
    from fusion_plugins.awd.functional import Descent

    task_vectors = StandIn(job | {"device": "cpu"}).task_vectors()
    _, seconds = common.timed(lambda: disentangle(task_vectors, Descent()), 1)
    return {"seconds": seconds["min"], "peak_mib": common.peak_memory_mib()}


def _images(job: dict) -> Iterator[Row]:
    yield from _rows("a picture of 400 x 300 pixels, one core", _encoding, job)


def _encoding(job: dict) -> dict:
    import numpy as np
    from PIL import Image
    from transformers import CLIPImageProcessor

    from fusion_plugins.pools.image_processing import ImageCodec

    codec, count = ImageCodec(CLIPImageProcessor()), 4 if job["tiny"] else 200
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    codec.encode(picture)
    _, seconds = common.timed(lambda: [codec.encode(picture) for _ in range(count)], 1)
    return {"seconds": seconds["min"] / count}


def _training(job: dict) -> Iterator[Row]:
    job = job | {"steps": 2 if job["tiny"] else 100}
    for label, options in (("float32", {}), ("bfloat16 autocast", _BF16)):
        yield from _rows(f"AdaMerging, {label}", _whole_training, job | options)


def _whole_training(job: dict) -> dict:
    def train() -> dict:
        return adamerging.ours_worker(job)

    figures, seconds = common.timed(train, 1)
    return {"seconds": seconds["min"], "peak_mib": figures["peak_mib"]}


def _profile(job: dict) -> Iterator[Row]:
    for label, options in (("float32", {}), ("bfloat16 autocast", _BF16)):
        yield from _rows(f"ours, {label}", _kernels, job | options)


def _kernels(job: dict) -> dict:
    from adaptation_engine import make_engine
    from adaptation_stand_ins import StandIn
    from torch.profiler import ProfilerActivity, profile

    from fusion_plugins import AdaMergingAlgorithm

    steps = timing.WARM_UP + job["steps"]
    algorithm = AdaMergingAlgorithm(preset="fusion_bench", steps=steps)
    engine = make_engine(StandIn(job), algorithm, [])
    for _ in range(timing.WARM_UP):
        engine.train_step()
    cuda = job["device"] == "cuda"
    activity = ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU
    start = time.perf_counter()
    with profile(activities=[activity]) as profiled:
        for _ in range(job["steps"]):
            engine.train_step()
    seconds = time.perf_counter() - start
    entries = profiled.key_averages()
    busy = sum(e.self_device_time_total if cuda else 0 for e in entries) / 1e6
    kernels = sum(e.count for e in entries) / job["steps"]
    return {
        "seconds": seconds / job["steps"],
        "kernels": kernels,
        "idle share": 1 - busy / seconds,
    }


SECTIONS: dict[str, Callable[[dict], Iterator[Row]]] = {
    "step": _step,
    "large": _large,
    "tinting": _tinting,
    "awd": _awd,
    "images": _images,
    "training": _training,
    "profile": _profile,
}


def _rows(label: str, work: Callable[[dict], dict], job: dict) -> Iterator[Row]:
    """One row: the figures of `work`, or why there are none."""
    import torch

    gc.collect()
    if job["device"] == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        yield {"variant": label, **work(job)}
    except Exception as error:  # noqa: BLE001 the other rows go on
        yield {"variant": label, "error": f"{type(error).__name__}: {error}"[:500]}


# what is shown


def _shown(found: dict) -> list[list[str]]:
    """Variant, seconds, ratio to the first row, peak memory, and the rest in words."""
    rows, first = [], found["rows"][0].get("seconds")
    for row in found["rows"]:
        if "error" in row:
            rows.append([row["variant"], "failed", "", "", row["error"]])
            continue
        ratio = f"{row['seconds'] / first:.2f}" if first else ""
        peak = f"{row['peak_mib']:.0f}" if "peak_mib" in row else ""
        rest = [
            f"{key} {value:.3g}"
            for key, value in row.items()
            if key not in _HIDDEN and not key.startswith("part/")
        ]
        rows.append(
            [row["variant"], f"{row['seconds']:.4f}", ratio, peak, ", ".join(rest)]
        )
    return rows


_COLUMNS = ["variant", "s", "times the first row", "peak MiB", "also"]


def _print(name: str, found: dict) -> None:
    common.table(f"{name}, {found['took']:.0f} s", _COLUMNS, _shown(found))


def _markdown(report: dict) -> str:
    """All sections as Markdown tables, with what they were measured on."""
    machine, device = report["machine"], report["device"]["name"]
    versions = ", ".join(f"{n} {v}" for n, v in machine["versions"].items())
    lines = [f"{device}; {machine['cpu']}, {machine['cores']} cores; {versions}.", ""]
    for name, found in report["sections"].items():
        job = found["job"]
        lines += [f"### {name}: {timing.title(job)}", ""]
        lines.append("| " + " | ".join(_COLUMNS) + " |")
        lines.append("|---" * len(_COLUMNS) + "|")
        lines += ["| " + " | ".join(row) + " |" for row in _shown(found)] + [""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
