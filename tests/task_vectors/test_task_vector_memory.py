"""A merge of files holds one model and a window of each expert."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

LAYERS, WIDTH = 40, 1000  # 40M parameters
MODEL_BYTES = LAYERS * WIDTH * WIDTH * 2  # saved in float16
# What each further expert may cost: a window of its file, its block in float32, slack.
WINDOW_BYTES = (16 + 4 + 12) * 2**20

PROGRAM = """
import re, sys
from pathlib import Path
import torch
from fusion_plugins.task_vectors import (
    TaskVectors, as_coefficients, gram_matrices, merged_state_dict)

torch.set_num_threads(1)

def memory(what):
    status = Path("/proc/self/status").read_text()
    return int(re.search(what + ":[^0-9]+([0-9]+) kB", status)[1]) * 1024

base, *experts = sys.argv[1:]
# Imports peak higher than what they leave behind; getrusage would even count the parent.
Path("/proc/self/clear_refs").write_text("5")
before = memory("VmRSS")
pool = TaskVectors.from_checkpoints(base, dict(enumerate(experts)))
gram = gram_matrices(pool, "tensor")
weights = torch.full((len(experts),), 0.3)
state = merged_state_dict(pool, as_coefficients(pool, weights))
total = sum(float(v.double().sum()) for v in state.values())
print(memory("VmHWM") - before, total)
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A base and ten experts; every second expert is the same file."""
    folder = tmp_path_factory.mktemp("experts")
    generator = torch.Generator().manual_seed(0)
    paths = []
    for index in range(3):
        layer = torch.randn(WIDTH, WIDTH, generator=generator).half()
        state = {f"layer{k}.weight": layer + k for k in range(LAYERS)}
        paths.append(str(folder / f"model{index}.safetensors"))
        save_file(state, paths[-1])
    return [paths[0], *paths[1:] * 5]


def growth(files: list[str], experts: int) -> float:
    """Peak memory a merge added, in bytes."""
    command = [sys.executable, "-c", PROGRAM, *files[: experts + 1]]
    output = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert output.returncode == 0, output.stderr
    added, total = output.stdout.split()
    assert float(total) != 0
    return float(added)


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs Linux's peak memory"
)
def test_more_experts_cost_a_window_each_and_not_a_model(files):
    few, many = growth(files, 2), growth(files, 10)
    assert few >= 0.8 * MODEL_BYTES, "the measurement does not see the merged model"
    per_expert = (many - few) / 8
    assert per_expert < WINDOW_BYTES < 0.5 * MODEL_BYTES
    assert many < MODEL_BYTES + 11 * WINDOW_BYTES
