"""The results folder: resuming, changed configs, several processes, added results."""

import json
import threading
import time

import pytest
from running import make_method, read_cells, run_toy

from fusion_plugins.compare import gather, store
from fusion_plugins.compare.cells import Cell
from fusion_plugins.compare.files import write_text
from fusion_plugins.compare.store import Results


def count_runs(monkeypatch) -> list[str]:
    from fusion_plugins.compare import missing

    ran, real = [], missing.run_cell

    def run_cell(cell, bench):
        ran.append(cell.id)
        return real(cell, bench)

    monkeypatch.setattr(missing, "run_cell", run_cell)
    return ran


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_finished_cells_do_not_run_again(monkeypatch, tmp_path):
    ran = count_runs(monkeypatch)
    run_toy(monkeypatch, tmp_path, "DrawWeights", "Several")
    assert ran == ["DrawWeights-seed0", "Several-seed0"]
    first = (tmp_path / "cells/DrawWeights-seed0.json").read_bytes()
    del ran[:]
    run_toy(monkeypatch, tmp_path, "DrawWeights", "Several", seeds=[0, 1])
    assert ran == ["DrawWeights-seed1", "Several-seed1"]
    assert (tmp_path / "cells/DrawWeights-seed0.json").read_bytes() == first


def test_half_of_several_models_is_not_finished(monkeypatch, tmp_path):
    ran = count_runs(monkeypatch)
    run_toy(monkeypatch, tmp_path, "Several")
    (tmp_path / "cells/Several-seed0.models.left.json").unlink()
    run_toy(monkeypatch, tmp_path, "Several")
    assert len(ran) == 2 and len(read_cells(tmp_path)) == 2


@pytest.mark.parametrize("retry", [True, False])
def test_failed_cells_run_again_unless_told_not_to(monkeypatch, tmp_path, retry):
    ran = count_runs(monkeypatch)
    for options in ({}, {"retry_failed": retry}):
        with pytest.raises(RuntimeError, match="All 1 cells failed; the first: Broken"):
            run_toy(monkeypatch, tmp_path, "Broken", **options)
    assert len(ran) == 1 + retry


def test_all_of_a_cell_or_nothing_is_written(tmp_path, monkeypatch):
    path = tmp_path / "cell.json"
    write_text(path, "old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_text(path, "new")
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_changed_method_config_is_run_again_and_the_old_cells_set_aside(
    monkeypatch, tmp_path
):
    run_toy(monkeypatch, tmp_path, "DrawWeights", seeds=[0, 1])
    for seed in (0, 1):  # as if an older release had run them
        path = tmp_path / f"cells/DrawWeights-seed{seed}.json"
        identity = json.loads(path.read_text())["identity"]
        edit(path, identity=identity | {"method": "0123abcd"}, average={"accuracy": 9})
    cells = run_toy(monkeypatch, tmp_path, "DrawWeights", seeds=[1])
    assert list(cells) == ["DrawWeights-seed1"]
    assert cells["DrawWeights-seed1"]["average"]["accuracy"] < 1
    stale = {path.name for path in (tmp_path / "stale").iterdir()}
    assert stale == {f"DrawWeights-seed{s}-0123abcd.json" for s in (0, 1)}


@pytest.mark.parametrize("changed", [{"metric": "loss"}, {"fast_dev_run": True}])
def test_what_else_decides_a_result_makes_cells_run_again(
    monkeypatch, tmp_path, changed
):
    ran = count_runs(monkeypatch)
    run_toy(monkeypatch, tmp_path, "DrawWeights")
    run_toy(monkeypatch, tmp_path, "DrawWeights", **changed)
    assert len(ran) == 2 and len(list((tmp_path / "stale").iterdir())) == 1


def test_other_pools_are_refused_with_what_differs(monkeypatch, tmp_path):
    run_toy(monkeypatch, tmp_path, "pretrained")
    with pytest.raises(ValueError) as raised:
        run_toy(monkeypatch, tmp_path, "pretrained", taskpool={"tasks": ["left"]})
    assert "they differ in ['taskpool.tasks']" in str(raised.value)
    assert "results=<another folder>" in str(raised.value)


def test_a_cell_another_process_works_on_is_waited_for(monkeypatch, tmp_path):
    ran = count_runs(monkeypatch)
    cell = Cell(make_method("DrawWeights"), 0)
    held, seen = threading.Event(), []

    def work_elsewhere():  # until the program is done with the next cell
        with Results(tmp_path).claimed(cell, wait=False) as mine:
            assert mine
            held.set()
            while not list((tmp_path / "cells").glob("pretrained*")):
                time.sleep(0.01)
            seen.extend(ran)

    thread = threading.Thread(target=work_elsewhere, daemon=True)
    thread.start()
    held.wait()
    cells = run_toy(monkeypatch, tmp_path, "DrawWeights", "pretrained")
    thread.join()
    assert seen == ["pretrained-seed0"]
    # The holder left nothing: it died, and its cell is taken over.
    assert ran == ["pretrained-seed0", "DrawWeights-seed0"]
    assert cells[cell.id]["status"] == "done"


def test_added_results_join_the_tables(monkeypatch, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    run_toy(monkeypatch, first, "pretrained", "DrawWeights", seeds=[0, 1])
    cells = run_toy(monkeypatch, second, "experts", "DrawWeights", add=[str(first)])
    assert set(cells) == {
        "experts-seed0",
        "pretrained-seed0",
        "DrawWeights-seed0",
        "DrawWeights-seed1",
    }
    assert cells["pretrained-seed0"]["added_from"] == str(first)
    assert cells["pretrained-seed0"]["normalised_average"] == 0.0
    assert [row.label for row in gather(second).listed()] == [
        "pretrained",
        "experts",
        "DrawWeights",
    ]


def test_added_results_with_other_settings_are_rows_of_their_own(monkeypatch, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    # Another setting of the task pool, which does not change the tasks.
    run_toy(monkeypatch, first, "pretrained", taskpool={"metric": "accuracy"})
    cells = run_toy(monkeypatch, second, "pretrained", add=[str(first)])
    assert set(cells) == {"pretrained-seed0", "pretrained-seed0--first"}
    assert cells["pretrained-seed0--first"]["label"] == "pretrained [first]"


@pytest.mark.parametrize(
    "names",
    [("run 1", "run_1"), ("実験一", "実験二"), ("x" * 99 + "1", "x" * 99 + "2")],
)
def test_added_folders_of_any_names_keep_all_their_rows(monkeypatch, tmp_path, names):
    other = {"metric": "accuracy"}
    for name in names:
        run_toy(monkeypatch, tmp_path / name, "pretrained", taskpool=other)
    added = {"add": [str(tmp_path / name) for name in names]}
    cells = run_toy(monkeypatch, tmp_path / "third", "experts", **added)
    rows = {f"pretrained [{name}]" for name in names}
    assert {cell["label"] for cell in cells.values()} == {"experts", *rows}


def test_a_copy_to_which_another_release_gave_another_id_is_not_kept_twice(
    monkeypatch, tmp_path
):
    first, second = tmp_path / "run 1", tmp_path / "second"
    run_toy(monkeypatch, first, "pretrained", taskpool={"metric": "accuracy"})
    cells = run_toy(monkeypatch, second, "experts", add=[str(first)])
    (id,) = set(cells) - {"experts-seed0"}
    former = second / "cells/pretrained-seed0--run_1.json"
    (second / "cells" / f"{id}.json").rename(former)
    edit(former, id=former.stem)
    assert run_toy(monkeypatch, second, "experts", add=[str(first)]).keys() == {
        "experts-seed0",
        id,
    }


def test_added_results_on_other_tasks_are_refused(monkeypatch, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    run_toy(monkeypatch, first, "pretrained", taskpool={"tasks": ["left"]})
    with pytest.raises(ValueError, match=r"is on the tasks \['left'\]"):
        run_toy(monkeypatch, second, "pretrained", add=[str(first)])


def test_a_folder_cannot_be_added_to_itself(monkeypatch, tmp_path):
    run_toy(monkeypatch, tmp_path, "pretrained")
    with pytest.raises(ValueError, match="is the results folder itself"):
        run_toy(monkeypatch, tmp_path, "pretrained", add=[str(tmp_path)])


def test_damaged_and_foreign_files_are_named(monkeypatch, tmp_path):
    run_toy(monkeypatch, tmp_path, "pretrained")
    path = tmp_path / "cells/pretrained-seed0.json"
    edit(path, format=99)
    with pytest.raises(ValueError, match="has format 99, this release reads 1"):
        gather(tmp_path)
    path.write_text("{")
    with pytest.raises(ValueError, match="pretrained-seed0.json is not a file of a"):
        gather(tmp_path)


def test_a_description_without_tasks_is_named(tmp_path):
    (tmp_path / "compare.json").write_text('{"format": 1, "title": "x"}')
    with pytest.raises(ValueError, match="compare.json is damaged: no title or no t"):
        Results(tmp_path).described()


def test_all_that_a_results_folder_holds_is_looked_at_before(monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        run_toy(patch, tmp_path, "DrawWeights")
    gather(tmp_path)
    found = {path.name for path in tmp_path.iterdir()}
    assert found <= {*store._FILES, *store._FOLDERS} and "report.html" in found


def test_gathering_nothing_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no results of a comparison"):
        gather(tmp_path)
    assert not list(tmp_path.iterdir())
