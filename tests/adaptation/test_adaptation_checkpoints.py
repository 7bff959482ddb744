"""A run killed at any moment ends as if nothing had happened."""

import shutil

import killed_runs
import pytest
import torch
from forked import call
from toy_engine import learned, make_engine, make_guard, make_predictor

from fusion_plugins.adaptation import Checkpoints
from fusion_plugins.common.options import settings_hash

TIMINGS = ("seconds/", "samples_per_second")


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """(what happened in each run, the unbroken run's result, the last run's)."""
    folder = tmp_path_factory.mktemp("killed")
    (folder / "unbroken").mkdir()
    report = call(killed_runs.kill, folder)
    results = [torch.load(folder / f"{n}.pt") for n in ("unbroken", "ended")]
    return report, *results


def without_timings(history: list[dict]) -> list[dict]:
    return [
        {k: v for k, v in entry.items() if not k.startswith(TIMINGS)}
        for entry in history
    ]


@pytest.mark.slow
def test_the_runs_were_killed_and_continued(killed):
    report, *_ = killed
    assert [run["killed"] for run in report] == [True] * 7 + [False]
    # Each starts at the newest checkpoint of the one before; the first one at 0.
    starts = [run["first"] for run in report]
    assert starts[0] == 0 and starts == sorted(starts) and starts[4] >= 9
    for before, run in zip(report[:6], report[1:7], strict=True):
        assert run["first"] % 3 == 0 and run["first"] > before["last"] - 3
    assert report[-1]["last"] == 60 and report[-1]["left"] == []


@pytest.mark.slow
def test_a_checkpoint_half_written_is_never_read(killed):
    report, *_ = killed
    interrupted, after = report[5], report[6]
    assert any(name.startswith(".partial_") for name in interrupted["left"])
    newest = max(n for n in interrupted["left"] if n.startswith("step_"))
    assert after["first"] == int(newest.removeprefix("step_"))
    assert not any(name.startswith(".partial_") for name in report[-1]["left"])


@pytest.mark.slow
def test_a_checkpoint_half_removed_is_never_read(killed):
    report, *_ = killed
    cleared, after = report[6], report[7]
    assert cleared["last"] == 60 and cleared["left"] == [
        "step_00000057",
        "step_00000060",
    ]
    assert after["first"] == 57  # the newest had lost its tensors


@pytest.mark.slow
def test_killed_and_resumed_equals_unbroken_bit_for_bit(killed):
    _, unbroken, resumed = killed
    assert (unbroken["raw"] - 0.3).abs().max() > 0.1
    assert torch.equal(resumed["raw"], unbroken["raw"])
    for name, value in unbroken["weights"].items():
        assert torch.equal(resumed["weights"][name], value), name
    for name in ("exp_avg", "exp_avg_sq", "step"):
        states = [r["optimizer"]["state"][0][name] for r in (resumed, unbroken)]
        assert torch.equal(*states), name


@pytest.mark.slow
def test_history_and_guard_are_whole_after_a_kill(killed):
    _, unbroken, resumed = killed
    assert [entry["step"] for entry in resumed["history"]] == list(range(60))
    assert without_timings(resumed["history"]) == without_timings(unbroken["history"])
    assert [entry["step"] for entry in resumed["guard"]] == [*range(0, 60, 7), 60]
    assert resumed["guard"] == unbroken["guard"]
    assert resumed["best"] == unbroken["best"]


def saved_run(folder, steps=10, identity=None, predictor=None, **options):
    saver = Checkpoints(folder, identity or {"lr": 1, "tasks": ["a"]}, **options)
    callbacks = [saver.restorer(), *saver.extra.values(), saver]
    engine = make_engine(steps=steps, callbacks=callbacks, predictor=predictor)
    return engine, saver


def names(saver: Checkpoints) -> list[str]:
    return sorted(path.name for path in saver.folder.glob("step_*"))


def test_the_last_few_are_kept_until_the_results_are_saved(tmp_path):
    engine, saver = saved_run(tmp_path, every=2, keep=3, steps=9)
    engine.run()
    assert names(saver) == ["step_00000006", "step_00000008", "step_00000009"]
    saver.forget()
    assert not saver.folder.exists()


def test_one_that_a_kill_left_half_removed_goes_with_the_next(tmp_path):
    first, saver = saved_run(tmp_path, every=2, steps=4)
    first.run()
    (saver.folder / "step_00000002" / "state.safetensors").unlink()
    again, _ = saved_run(tmp_path, every=2, steps=8)
    again.run()
    assert names(saver) == ["step_00000006", "step_00000008"]


def test_a_run_killed_while_saving_its_results_has_nothing_to_learn_again(tmp_path):
    first, _ = saved_run(tmp_path, every=4)
    want, seen = learned(first), []
    again, later = saved_run(tmp_path, every=4)
    later.on_step = lambda engine, report: seen.append(report.step)
    assert torch.equal(learned(again), want) and seen == []


@pytest.mark.parametrize("file", ["state.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    tmp_path, file, damage, caplog
):
    first, saver = saved_run(tmp_path, every=3)
    want, seen = learned(first), []
    path = saver.folder / "step_00000010" / file
    data = bytearray(path.read_bytes())
    if damage == "flip":  # a digit or a weight: still a file of its format
        digits = [i for i, byte in enumerate(data) if 48 < byte < 57]
        place = digits[-1] if file.endswith("json") else len(data) - 3
        data[place] += 1
    path.write_bytes(data if damage == "flip" else data[: len(data) // 2])
    again, later = saved_run(tmp_path, every=3)
    with pytest.raises(ValueError, match="step_00000010 is damaged"):
        later.restore(again, saver.folder / "step_00000010")
    later.on_step = lambda engine, report: seen.append(report.step)
    assert torch.equal(learned(again), want) and seen == [9]
    assert f"The checkpoint {saver.folder / 'step_00000010'} is damaged" in caplog.text


def test_two_runs_cannot_share_a_folder(tmp_path):
    _, one = saved_run(tmp_path)
    _, other = saved_run(tmp_path)
    with one:
        with pytest.raises(
            ValueError, match="checkpoint_dir: another run with the same"
        ):
            other.__enter__()
        _, different = saved_run(tmp_path, identity={"lr": 2})
        with different:
            pass
    with other:
        other.forget()
    assert not other.folder.exists()


def test_never_starts_anew_and_is_not_fooled_by_what_lies_there(tmp_path):
    first, saver = saved_run(tmp_path, every=2)
    first.run()
    seen = []
    again, anew = saved_run(tmp_path, steps=5, every=2, resume="never")
    anew.on_step = lambda e, r: (seen.append(r.step), Checkpoints.on_step(anew, e, r))
    again.run()
    assert seen == [0, 1, 2, 3, 4]
    assert names(anew) == ["step_00000004", "step_00000005"]


def test_a_path_continues_from_that_step(tmp_path):
    first, saver = saved_run(tmp_path, every=2, keep=9)
    want = learned(first)
    path = saver.folder / "step_00000004"
    seen = []
    again, later = saved_run(tmp_path, every=100, resume=str(path))
    later.on_step = lambda engine, report: seen.append(report.step)
    assert torch.equal(learned(again), want)
    assert seen == [4, 5, 6, 7, 8, 9]
    kept = ["step_00000002", "step_00000004", "step_00000010"]
    assert names(later) == kept[1:]


def test_another_identity_has_a_folder_of_its_own(tmp_path):
    _, one = saved_run(tmp_path, identity={"lr": 1})
    _, other = saved_run(tmp_path, identity={"lr": 2})
    assert one.folder != other.folder
    assert settings_hash({"a": 1, "b": [2]}) == settings_hash({"b": [2], "a": 1})


def test_the_guards_best_state_survives_exactly(tmp_path):
    def guarded(steps, resume):
        predictor = make_predictor()
        guard = make_guard(predictor, every=1, drop=0.03, stop=True)
        options = {"every": 1, "extra": {"guard": guard}, "resume": resume}
        return saved_run(tmp_path, steps=steps, predictor=predictor, **options), guard

    (whole, _), guard = guarded(60, "never")
    want = learned(whole)
    best = guard.best["step"]
    assert 0 < best < whole.step - 1
    (broken, _), before = guarded(whole.step - 1, "never")  # best is behind it
    broken.run()
    (resumed, _), after = guarded(60, "auto")
    assert torch.equal(learned(resumed), want)
    assert after.history == guard.history and after.best == guard.best
    assert len(before.history) < len(after.history)


def test_a_stopped_run_leaves_no_checkpoint_of_the_state_it_went_back_to(tmp_path):
    predictor = make_predictor()
    guard = make_guard(predictor, every=1, drop=0.03, stop=True)
    options = {"every": 1, "extra": {"guard": guard}}
    engine, saver = saved_run(tmp_path, steps=60, predictor=predictor, **options)
    engine.run()
    assert engine.stopped
    assert max(names(saver)) == f"step_{engine.step - 1:08d}"


def test_what_others_have_put_beside_checkpoints_stays_and_stops_nothing(tmp_path):
    first, saver = saved_run(tmp_path, every=2, steps=4)
    first.run()
    copies = ["step_00000004 (copy)", "step_copy", "step_9.zip"]
    for name in copies[:2]:
        shutil.copytree(saver.folder / "step_00000004", saver.folder / name)
    (saver.folder / copies[2]).touch()
    again, _ = saved_run(tmp_path, every=2, steps=8)
    again.run()
    assert names(saver) == sorted([*copies, "step_00000006", "step_00000008"])


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_one_that_is_asked_for_is_refused_before_anything(tmp_path, damage):
    first, saver = saved_run(tmp_path, every=2, steps=4)
    first.run()
    path = saver.folder / "step_00000002"
    file = path / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-9]) if damage == "cut" else file.unlink()
    with pytest.raises(ValueError, match=f"{path} is damaged .*resume=never"):
        saved_run(tmp_path, resume=str(path))


def test_a_path_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="resume: .*holds no checkpoint.*'auto', or"):
        Checkpoints(tmp_path, {}, resume=str(tmp_path / "nothing"))


def test_a_checkpoint_of_other_settings_is_refused_with_their_names(tmp_path):
    engine, saver = saved_run(tmp_path, steps=4, every=2, identity={"lr": 1, "seed": 0})
    engine.run()
    path = str(saver.folder / "step_00000002")
    message = r"other settings \(lr: 1 -> 0.5\).*resume=never"
    with pytest.raises(ValueError, match=message):
        Checkpoints(tmp_path, {"lr": 0.5, "seed": 0, "trim": 0.2}, resume=path)
    # What an older version did not know of is no difference.
    Checkpoints(tmp_path, {"lr": 1, "seed": 0, "trim": 0.2}, resume=path)
