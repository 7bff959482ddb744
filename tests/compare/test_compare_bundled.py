"""FusionBench's own methods in a comparison: which run, and what the guide says of them."""

import re
import shutil
from pathlib import Path

import pytest
from fusion_bench.method import SimpleAverageAlgorithm
from fusion_bench.modelpool import CLIPVisionModelPool
from omegaconf import OmegaConf
from running import ToyTaskPool, make_program, read_cells
from safetensors.torch import load_file, save_file

from fusion_plugins.compare.bundled import NOT_RUNNING
from fusion_plugins.compare.cells import Cell
from fusion_plugins.compare.execution import Bench, run_cell
from fusion_plugins.compare.methods import Method

ROOT = Path(__file__).resolve().parents[2]
METHODS = [
    "{adamerging/clip: {max_steps: 1, num_workers: 0}}",
    "{awd: {base: opcm/opcm}}",
    "{awd: {base: singular_value_calibration/simple_average}}",
]


def test_the_guide_lists_every_bundled_method_and_which_fail(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from bundled_methods import bundled

    guide = (ROOT / "docs" / "compare.md").read_text()
    rows = re.findall(r"^\| `(\S+)` \| (runs|fails|not tried) \|", guide, re.MULTILINE)
    assert [name for name, _ in rows] == bundled()
    assert {name for name, alone in rows if alone == "fails"} == set(NOT_RUNNING)


@pytest.mark.slow
def test_learned_and_continual_methods_run(tiny_pool_root, tmp_path, monkeypatch):
    monkeypatch.setattr("fusion_plugins.compare.gathering._write_report", lambda *_: 0)
    pools = ("modelpool", "taskpool")
    tiny = [f"{p}=demo" for p in pools] + [f"{p}.root={tiny_pool_root}" for p in pools]
    tiny += [f"{pool}.tasks=[digits,colours]" for pool in pools]
    make_program(tmp_path, *tiny, f"methods=[{','.join(METHODS)}]").run()
    cells = {c["label"]: c for c in read_cells(tmp_path / "results").values()}
    errors = {label: cell["error"] for label, cell in cells.items()}
    assert len(cells) == len(METHODS) and not any(errors.values()), errors


def test_no_model_is_completed_with_random_weights(tiny_pool_root, tmp_path):
    whole, expert = tiny_pool_root / "pretrained", tiny_pool_root / "experts/digits"
    bad_base = without_a_tensor(whole, tmp_path / "base")
    bad_expert = without_a_tensor(expert, tmp_path / "expert")

    def bench(base: Path, expert: Path) -> Bench:
        pool = CLIPVisionModelPool({"_pretrained_": str(base), "digits": str(expert)})
        built = SimpleAverageAlgorithm(), OmegaConf.create({})
        return Bench(pool, ToyTaskPool(["digits"]), lambda cell: built)

    with pytest.raises(ValueError, match=r"the base .*layers\.1\.mlp\.fc1\.weight"):
        bench(bad_base, expert)
    for name in ("experts", "simple_average"):
        (record,) = run_cell(Cell(Method(name), 0), bench(whole, bad_expert))
        message = record["error"]["message"]
        assert re.search(r"expert 'digits'.*layers\.1\.mlp\.fc1\.weight", message)


def without_a_tensor(folder: Path, copied: Path) -> Path:
    shutil.copytree(folder, copied, dirs_exist_ok=True)
    tensors = load_file(folder / "model.safetensors")
    del tensors[next(k for k in tensors if k.endswith("layers.1.mlp.fc1.weight"))]
    save_file(tensors, copied / "model.safetensors", {"format": "pt"})
    return copied
