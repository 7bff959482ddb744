"""Comparisons of toy methods, killed again and again; for test_compare_killed."""

import json
import os
from collections import Counter
from pathlib import Path

from forked import kill_often
from running import ToyMethods, read_cells, toy_program

from fusion_plugins.compare import gathering, program

METHODS = ("pretrained", "experts", "DrawWeights", "Several")


def run(folder: Path) -> None:
    """A comparison; keeps what it found of an earlier one."""
    folder.mkdir(exist_ok=True)
    os.chdir(folder)  # in a checkout, every cell would ask git
    cells = read_cells(folder / "results")
    parts = Counter(cell["cell"] for cell in cells.values())
    # Half of several models is no finished cell: it runs again.
    found = {
        name: cell["finished"]
        for name, cell in cells.items()
        if parts[cell["cell"]] == len(cell["parts"])
    }
    program.read_methods = ToyMethods(*METHODS)
    # These take most of the time, and are made anew from the cells by every run.
    gathering._write_report = lambda *_: None
    gathering.latex_table = lambda *_: ""
    toy_program(folder / "results", seeds=(0, 1)).run()
    (folder / "found.json").write_text(json.dumps(found))


def lasting(cell: dict) -> dict:
    """What of a cell no clock decides."""
    passing = ("seconds", "finished", "peak_memory_mib", "memory_before_mib")
    return {key: value for key, value in cell.items() if key not in passing}


def differences(folder: Path, unbroken: Path) -> list[str]:
    ours, whole = (read_cells(f / "results") for f in (folder, unbroken))
    found = [name for name in whole if lasting(ours[name]) != lasting(whole[name])]
    kept = json.loads((folder / "found.json").read_text())
    return found + [name for name, at in kept.items() if ours[name]["finished"] != at]


def kill(folder: Path) -> list[dict]:
    return kill_often(run, folder, differences)
