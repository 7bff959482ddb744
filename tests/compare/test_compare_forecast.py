"""What a dry run says of time, memory and downloads."""

from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from running import compose_compare

from fusion_plugins.compare import inputs
from fusion_plugins.compare.cells import make_cells
from fusion_plugins.compare.inputs import downloads
from fusion_plugins.compare.methods import read_methods
from fusion_plugins.compare.plan import Costs, costs, totals

LOCAL = ["path.output_dir=out", "path.log_dir=log", "path.work_dir=."]


def finished(cell, seconds: float, mib: float, device: str = "cpu", **known) -> dict:
    """What a forecast reads of a record."""
    peaks = {"cpu": mib, "cuda": None} if device == "cpu" else {"cpu": 1.0, "cuda": mib}
    return {
        "status": "done",
        "label": cell.method.label,
        "method": cell.method.name,
        "device": device,
        "seconds": {"merge": seconds - 1, "evaluate": 1.0},
        "peak_memory_mib": peaks,
        **known,
    }


@pytest.fixture(scope="module")
def cells():
    methods = [{"awd": {"alpha": 0.1}}, {"awd": {"alpha": 0.2}}, "tinting", "dummy"]
    return make_cells(read_methods(methods, None), [0])


def test_cells_cost_what_their_row_took_or_else_their_method(cells):
    first, second, tinting, dummy = cells
    records = [
        finished(first, 10, 100),
        finished(first, 20, 300),
        finished(first, 4, 80, "cuda:0"),
        finished(tinting, 7200, 2000, status="failed"),
    ]
    expected = {"cpu": Costs(15.0, 200.0), "cuda:0": Costs(4.0, 80.0)}
    assert costs(first, records) == costs(second, records) == expected
    assert costs(tinting, records) == costs(dummy, records) == {}
    own = [*records, finished(second, 100, 50)]
    assert costs(second, own) == {"cpu": Costs(100.0, 50.0)}


def test_the_totals_count_every_cell_and_take_the_highest_peak(cells):
    first, second, tinting, _ = cells
    records = [finished(first, 10, 100), finished(tinting, 3600, 2**10)]
    lines = totals(cells, records)
    assert lines[0] == "3 of 4 cells on cpu: 1:00:20, 1.1 GB."
    assert lines[1].startswith("1 of 4 cells: not known until")
    assert totals([first, second], records) == [
        "2 of 2 cells on cpu: 0:00:20, 104.9 MB."
    ]


def pools_of(recipe: str) -> list[dict]:
    job = OmegaConf.to_container(compose_compare(f"recipe={recipe}", *LOCAL))
    return [job["modelpool"], job["taskpool"]]


class Hub:
    """Answers for every repository: weights in two formats, a folder beside."""

    def repo_info(self, name, repo_type, files_metadata, timeout):
        files = {"model.safetensors": 9000, "pytorch_model.bin": 9000, "x.json": 2000}
        if repo_type == "dataset":
            files = {"data/train.parquet": 10**5, "data/test.parquet": 20000}
        if name == "vanillaOVO/roberta_base_glue_ckpts":
            folders = ("cola", "mnli")
            files = {f"{f}/roberta-base_lr1e-05/model.safetensors": 7 for f in folders}
        listed = [SimpleNamespace(rfilename=n, size=s) for n, s in files.items()]
        return SimpleNamespace(siblings=listed)


def test_downloads_count_each_repository_once_and_one_format(monkeypatch):
    monkeypatch.setattr(inputs, "HfApi", Hub)
    monkeypatch.setattr(inputs, "cached_repository", lambda name: None)
    said = downloads(*pools_of("ta8_b32"))
    assert said == "Downloads: 8 datasets and 9 models, 1.1 MB."  # 8 * 120 + 9 * 11 kB
    # A repository with a folder for each expert; two of them are there.
    said = downloads(*pools_of("glue_roberta"))
    assert said == "Downloads: 1 dataset and 9 models, 131.0 kB."  # 120 + 11 kB


def test_what_is_in_the_cache_or_on_the_disk_is_no_download(monkeypatch, tmp_path):
    monkeypatch.setattr(inputs, "HfApi", Hub)
    monkeypatch.setattr(inputs, "cached_repository", lambda name: name)
    assert downloads(*pools_of("ta8_b32")) == "Downloads: none."
    monkeypatch.setattr(inputs, "cached_repository", lambda name: None)
    assert (
        downloads({"models": {"a": str(tmp_path), "b": "./x/y/z"}})
        == "Downloads: none."
    )


def test_a_hub_that_does_not_answer_is_said(monkeypatch):
    class Silent:
        def repo_info(self, *args, **options):
            raise ConnectionError("no route")

    monkeypatch.setattr(inputs, "HfApi", Silent)
    said = downloads({"models": {"a": "someone/model"}})
    assert said == "Downloads: 1 model, of unknown size (ConnectionError from the hub)."
