"""A streamed merge in a process of its own; for test_streaming_program."""

import importlib
import os
import re
import signal
from pathlib import Path

import torch
from forked import fork
from fusion_bench.method import TiesMergingAlgorithm

from fusion_plugins.streaming import StreamingAWDAlgorithm, module
from fusion_plugins.streaming.folders import read_folder
from fusion_plugins.streaming.output import OutputFolder


def memory(what: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(what + ":[^0-9]+([0-9]+) kB", status)[1]) * 1024


def kill_after(count: int) -> None:
    """Kill this process once it has `count` shards and is about to name another."""
    publish, done = OutputFolder.publish, []

    def publishing(self, shard):
        if len(done) >= count:
            os.kill(os.getpid(), signal.SIGKILL)
        publish(self, shard)
        done.append(shard.file)

    OutputFolder.publish = publishing


def merge_pool(root: Path, output: Path) -> None:
    """AWD and TIES, in files of 10 MB."""
    ties = TiesMergingAlgorithm(0.3, 20, [], "sum")
    StreamingAWDAlgorithm(
        base=ties, output=str(output), shard_gb=0.01, alpha=1e-4, iterations=50
    ).run(folders(root))


def folders(root: Path) -> dict[str, str]:
    return {folder.name: str(folder) for folder in sorted(root.iterdir())}


def killed_merge(root: Path, output: Path) -> int:
    """Merge, and die while the third shard is finished; the signal that killed it."""

    def work() -> None:
        kill_after(2)
        merge_pool(root, output)

    return os.WTERMSIG(os.waitpid(fork(work), 0)[1])


def peak_memory(root: Path, output: Path) -> int:
    """Merge; the memory that this added at its peak, in bytes."""
    torch.set_num_threads(2)
    root, output = Path(root), Path(output)
    # Load the classes first: their code is no part of what a merge adds.
    base = Path(folders(root)["_pretrained_"])
    read_folder(base, "the base", {})
    module.load_mapped(base, {})
    importlib.import_module("jinja2")  # of the model card
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    merge_pool(root, output)
    return memory("VmHWM") - before
