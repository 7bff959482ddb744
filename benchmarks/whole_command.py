"""What a user waits for: whole `fusion_bench` commands, as processes.

    python benchmarks/whole_command.py [modelpool=demo taskpool=demo ...] [--steps 500]
                                       [--methods NAME ...] [--repeats 2] [--threads 1]
                                       [--out whole_command.json]

Each command runs in a process of its own, from the start of the interpreter to its exit.
Its time is split into: start (until the program runs), loading of models, preprocessing
of samples, learning, the rest of the merge, evaluation, and everything else (building
pools, saving). AdaMerging runs at equal steps: FusionBench's own class, ours with the
settings of its port, and ours with the authors'; the fast preset has steps of its own.
Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

from common import (
    alternate,
    in_fresh_process,
    limit_threads,
    machine,
    peak_memory_mib,
    quiet,
    save,
)

_POOLS = ["modelpool=demo", "taskpool=demo"]
# What the methods' own profilers call the parts of a merge.
_PARTS = {
    "loading": ("load base", "load task vectors", "construct the wrapped model"),
    "samples": ("prepare data", "teacher", "data loading"),
    "learning": ("adapt", "test-time adaptation"),
}
_COLUMNS = ("start", *_PARTS, "merge", "evaluation", "other", "all", "peak_mib")


def commands(steps: int) -> dict[str, list[str]]:
    """Row -> overrides."""
    return {
        "task_arithmetic": ["method=task_arithmetic"],
        "awd": ["method=awd"],
        "adamerging/clip": [
            "method=adamerging/clip",
            f"method.max_steps={steps}",
            "method.num_workers=0",
        ],
        "adamerging, its settings": [
            "method=adamerging",
            "method.preset=fusion_bench",
            f"method.steps={steps}",
        ],
        "adamerging, official": [
            "method=adamerging",
            "method.preset=official",
            f"method.steps={steps}",
        ],
        "adamerging, fast": ["method=adamerging", "method.preset=fast"],
        "tinting_pp": ["method=tinting_pp", f"method.rounds={steps}"],
    }


class Watch:
    """Seconds spent in wrapped calls, by part."""

    def __init__(self, started: float):
        self.started = started
        self.parts: dict[str, float] = {}
        self.profiles: list[Mapping[str, list[float]]] = []

    def wrap(self, call: Callable, part: str) -> Callable:
        """The call, timed; a method's own profile is kept."""

        @wraps(call)
        def timed(*args: Any, **options: Any) -> Any:
            begun = time.perf_counter()
            try:
                return call(*args, **options)
            finally:
                self.parts[part] = time.perf_counter() - begun
                profiler = getattr(args[0] if args else None, "profiler", None)
                if part == "merge" and profiler is not None:
                    self.profiles.append(dict(profiler.recorded_durations))

        return timed

    def report(self) -> dict[str, float]:
        """Parts that add up to the whole, whose end is now."""
        found = dict(self.parts)
        whole = time.time() - self.started
        recorded = {k: sum(v) for p in self.profiles for k, v in p.items()}
        for part, names in _PARTS.items():
            found[part] = sum(recorded.get(name, 0.0) for name in names)
        if "test-time adaptation" in recorded:  # FusionBench's includes its samples
            found["learning"] -= found["samples"]
        found["merge"] -= sum(found[part] for part in _PARTS)
        found["other"] = found.pop("program") - found["evaluation"]
        found["other"] -= found["merge"] + sum(found[part] for part in _PARTS)
        found["start"] = whole - sum(found[p] for p in _COLUMNS[1:-2])
        return found | {"all": whole, "peak_mib": peak_memory_mib()}


def worker(job: Mapping[str, Any]) -> dict[str, float]:
    """Run one command in this process."""
    watch = Watch(job["started"])
    sys.argv = ["fusion_bench", *job["overrides"]]
    from fusion_bench.programs import FabricModelFusionProgram
    from fusion_bench.scripts import cli

    evaluate = FabricModelFusionProgram.evaluate_merged_model
    FabricModelFusionProgram.evaluate_merged_model = watch.wrap(evaluate, "evaluation")
    set_up = FabricModelFusionProgram._instantiate_and_setup

    def watched(program: Any, config: Any, *args: Any, **options: Any) -> Any:
        made = set_up(program, config, *args, **options)
        if hasattr(made, "run"):
            kind = type(made)
            kind.run = watch.wrap(kind.run, "merge")
        return made

    FabricModelFusionProgram._instantiate_and_setup = watched
    run = FabricModelFusionProgram.run
    FabricModelFusionProgram.run = watch.wrap(run, "program")
    with quiet():
        cli._hydra_main()
    return watch.report()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("overrides", nargs="*", default=_POOLS)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--methods", nargs="+", metavar="NAME")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args(arguments)
    limit_threads(asked.threads)
    rows = commands(asked.steps)
    rows = {name: rows[name] for name in asked.methods or rows}

    def measure(name: str) -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            overrides = [*rows[name], *asked.overrides, f"path.log_dir={folder}"]
            job = {"overrides": overrides, "started": time.time()}
            return in_fresh_process(__file__, "--worker", json.dumps(job))

    header = machine()
    found = alternate(list(rows), measure, asked.repeats)
    print(f"| {' | '.join(('seconds', *_COLUMNS))} |")
    print("|---" * (len(_COLUMNS) + 1) + "|")
    for name, figures in found.items():
        cells = (f"{figures[column]['min']:.1f}" for column in _COLUMNS)
        print(f"| {' | '.join((name, *cells))} |")
    save({"machine": header, "steps": asked.steps, "commands": found}, asked.out)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        told = json.loads(sys.argv[2])
        print(json.dumps(worker(told)))
        sys.stdout.flush()
        os._exit(0)  # what a report leaves running is not part of it
    main()
