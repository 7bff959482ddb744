"""TIES from files reads them twice; what a sample of rows predicts decides no number."""

import io
from pathlib import Path

import pytest
import torch
from fusion_bench.method import TiesMergingAlgorithm
from tiny_llamas import merge, merged_files, replace_weights
from torch import Tensor, nn

from fusion_plugins import TaskVectors
from fusion_plugins.streaming import counting, rules, ties
from fusion_plugins.task_vectors import checkpoint
from fusion_plugins.task_vectors.ties import magnitude_threshold, ties_trim_

TASKS = ("math", "code", "chat")
ROWS, COLUMNS = 256, 128


def task_vectors_of(tensors: dict[str, Tensor]) -> TaskVectors:
    """Task vectors of these values, (tasks, rows, columns) for each tensor."""
    base = nn.ParameterDict({k: torch.zeros(v.shape[1:]) for k, v in tensors.items()})
    experts = {
        task: nn.ParameterDict({k: v[number] for k, v in tensors.items()})
        for number, task in enumerate(TASKS)
    }
    return TaskVectors.from_modules(base, experts)


def lattice(seed: int = 0, sign: int = 1) -> Tensor:
    """Few different values, as differences of bfloat16 have: many exact draws."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(len(TASKS), ROWS, COLUMNS, generator=generator)
    return sign * (4 * values + 0.1).round() / 64


def continuous() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(len(TASKS), ROWS, COLUMNS, generator=generator)


def want_of(values: Tensor, keep_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
    """Thresholds, majority sign and merged task vector, all in memory."""
    stack = values.flatten(1).clone()
    found = torch.stack([magnitude_threshold([row], keep_ratio) for row in stack])
    kept = torch.where(stack.abs() < found[:, None], 0, stack)
    ties_trim_([stack], keep_ratio)
    return found, kept.sum(0).sign().sum().sign(), stack.sum(0)


@pytest.fixture
def walks(monkeypatch) -> list[str]:
    """What was walked over for statistics: everything, or a sample."""
    seen, real = [], counting.counted

    def counted(task_vectors, count, shapes, sample=None, **options):
        seen.append("everything" if sample is None else "sample")
        return real(task_vectors, count, shapes, sample, **options)

    monkeypatch.setattr(ties, "counted", counted)
    monkeypatch.setattr(counting, "_SAMPLE_PLACE", COLUMNS)
    return seen


@pytest.mark.parametrize("keep_ratio", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("values", [lattice(), continuous()], ids=["lattice", "floats"])
def test_one_walk_gives_thresholds(walks, monkeypatch, values, keep_ratio):
    monkeypatch.setattr(counting, "_SAMPLE", ROWS * COLUMNS // 2)
    monkeypatch.setattr(counting, "_WINDOW", 2**19)  # for a small sample
    monkeypatch.setattr(counting, "_STEP_BITS", 12)
    got = ties.ties_statistics(task_vectors_of({"a": values}), keep_ratio)
    thresholds, majority, _ = want_of(values, keep_ratio)
    assert torch.equal(got.thresholds, thresholds)
    assert walks == ["sample", "sample", "everything"]
    exact = len(values.unique()) < 1000
    assert got.majority == majority if exact else got.majority.isnan()


@pytest.mark.parametrize("sampled", ["large", "small"])
@pytest.mark.parametrize("scale, count", [(1.03, 2), (8, 4)], ids=["near", "far"])
def test_a_prediction_that_misses_costs_walks(
    walks, monkeypatch, sampled, scale, count
):
    """One more, or three where it is far off."""
    values = continuous()
    large, small = scale * values, values
    task_vectors = task_vectors_of({"large": large, "small": small})
    rows = {sampled: [slice(0, ROWS if count == 2 else 4)]}
    monkeypatch.setattr(counting, "sampled_rows", lambda _: rows)
    got = ties.ties_statistics(task_vectors, 0.4)
    thresholds, *_ = want_of(torch.cat([large, small], 1), 0.4)
    assert torch.equal(got.thresholds, thresholds)
    assert walks == ["sample"] * 2 + ["everything"] * count
    assert got.majority.isnan()


def test_a_task_that_was_found_keeps_its_threshold_while_others_are_searched(
    walks, monkeypatch
):
    values = lattice()
    values[1, :4] = 100 * values[1, :4].abs() + 50  # what the sample sees
    monkeypatch.setattr(counting, "sampled_rows", lambda _: {"a": [slice(0, 4)]})
    got = ties.ties_statistics(task_vectors_of({"a": values}), 0.2)
    assert torch.equal(got.thresholds, want_of(values, 0.2)[0])
    assert walks.count("everything") == 4


@pytest.mark.parametrize("merge_function", ties.MERGE_FUNCTIONS)
@pytest.mark.parametrize("sign", [-1, 1])
def test_draws_ask_for_the_majority_once_it_is_needed(sign, merge_function):
    values = lattice(sign=sign)
    thresholds, majority, merged = want_of(values, 0.2)
    assert majority == sign
    asked = []

    def count_majority() -> Tensor:
        asked.append(True)
        return ties.majority_sign(task_vectors_of({"a": values}), thresholds)

    unknown = ties.TiesStatistics(thresholds, torch.tensor(torch.nan))
    known = ties.TiesStatistics(thresholds, majority)
    stack = values.flatten(1)
    got = ties.ties_block_(stack.clone(), unknown, merge_function, count_majority)
    assert torch.equal(got, ties.ties_block_(stack.clone(), known, merge_function))
    assert asked == [True]
    if merge_function == "sum":
        torch.testing.assert_close(got, merged, rtol=0, atol=1e-6)
    ties.ties_block_(continuous().flatten(1), unknown, "sum", count_majority)
    assert len(asked) == 1


def on_lattice(llamas: dict[str, str], root: Path) -> dict[str, str]:
    """The models with weights of few values, in files."""
    folders = {}
    for seed, (name, folder) in enumerate(llamas.items()):
        folders[name] = str(root / name)
        Path(folders[name]).mkdir()
        config = Path(folder) / "config.json"
        (root / name / "config.json").write_bytes(config.read_bytes())
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            key: (4 * torch.randn(value.shape, generator=generator) + 0.1).round() / 64
            for key, value in sorted(merged_files(Path(folder)).items())
        }
        replace_weights(folders[name], {k: v.bfloat16() for k, v in tensors.items()})
    return folders


def test_all_files_are_read_twice(bfloat16_llamas, tmp_path, monkeypatch):
    folders = on_lattice(bfloat16_llamas, tmp_path)
    monkeypatch.setattr(counting, "_SAMPLE", 2**11)
    monkeypatch.setattr(counting, "_SAMPLE_PLACE", 32)
    real, counts = checkpoint._OpenFile.read_into, io.StringIO()

    def reading(self, content, start, name):
        counts.write(f"{len(content)} ")
        real(self, content, start, name)

    monkeypatch.setattr(checkpoint._OpenFile, "read_into", reading)
    base = TiesMergingAlgorithm(0.3, 20, [], "sum")
    merge(folders, tmp_path / "out", base=base, iterations=0)
    stored = sum(
        value.nbytes for f in folders.values() for value in merged_files(f).values()
    )
    share = sum(map(int, counts.getvalue().split())) / stored
    sampled = 2 * 2**11 / (stored / 2 / len(folders))
    assert 2 < share < 2 + 2 * sampled


@pytest.mark.parametrize("merge_func, threads", [("sum", 1), ("max", 2)])
def test_a_majority_counted_late_merges_the_same(
    bfloat16_llamas, tmp_path, monkeypatch, merge_func, threads
):
    folders = on_lattice(bfloat16_llamas, tmp_path)
    base = TiesMergingAlgorithm(0.3, 20, [], merge_func)
    options = {"base": base, "iterations": 0, "dtype": "float32"}
    merge(folders, tmp_path / "known", **options)
    calls, real = [], rules.majority_sign
    rows = {"model.embed_tokens.weight": [slice(0, 1)]}
    monkeypatch.setattr(counting, "sampled_rows", lambda _: rows)
    monkeypatch.setattr(
        rules, "majority_sign", lambda *given: calls.append(1) or real(*given)
    )
    torch.set_num_threads(threads)
    try:
        merge(folders, tmp_path / "late", **options)
    finally:
        torch.set_num_threads(1)
    assert calls == [1]
    want = merged_files(tmp_path / "known")
    for name, value in merged_files(tmp_path / "late").items():
        assert torch.equal(value, want[name]), name
