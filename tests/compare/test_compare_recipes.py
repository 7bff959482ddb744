"""Recipes compose, name what they are compared with, and run on any pool."""

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from running import compose_compare, make_program, read_cells

CONFIG = Path(__file__).resolve().parents[2] / "config"
RECIPES = sorted(path.stem for path in (CONFIG / "recipe").glob("*.yaml"))
LOCAL = ["path.output_dir=out", "path.log_dir=log", "path.work_dir=."]


def composed(name: str, *overrides: str) -> dict:
    return OmegaConf.to_container(compose_compare(f"recipe={name}", *LOCAL, *overrides))


def test_the_recipes_that_the_guide_lists():
    guide = (CONFIG.parent / "docs" / "recipes.md").read_text()
    assert RECIPES == sorted(re.findall(r"^\| `(\w+)` \|", guide, flags=re.MULTILINE))
    assert len(RECIPES) == 11


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_dry_runs(name, tmp_path, capsys):
    program = make_program(tmp_path, f"recipe={name}", "dry_run=true")
    cells = program.run()["cells"]
    said = capsys.readouterr().out
    assert cells >= 7 and said.count("to run") == cells
    assert program.title.startswith(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_names_the_published_numbers_and_what_differs(name):
    job = composed(name)
    published = job["published"]
    assert published["source"] and published["checkpoints"] and published["differs"]
    tasks = set(job["taskpool"]["test_datasets"])
    names = [m if isinstance(m, str) else next(iter(m)) for m in job["methods"]]
    assert published["rows"]
    for row in published["rows"]:
        assert row["method"] is None or row["method"] in names
        assert 0 < row["average"] <= 100
        if row["tasks"] is not None:
            assert set(row["tasks"]) == tasks
            mean = sum(row["tasks"].values()) / len(tasks)
            assert mean == pytest.approx(row["average"], abs=0.1)
    linked = [row["method"] for row in published["rows"] if row["method"]]
    assert linked and len(set(linked)) == len(linked)


@pytest.mark.parametrize("name", RECIPES)
def test_the_command_in_the_header_is_the_recipes_own(name):
    text = (CONFIG / "recipe" / f"{name}.yaml").read_text()
    (command,) = re.findall(
        r"^#   \$ fusion_bench --config-name compare (.+)$", text, flags=re.MULTILINE
    )
    first, *overrides = command.split()
    assert first == f"recipe={name}"
    assert composed(name, *overrides)


def test_unseen_tasks_are_those_without_an_expert():
    unseen, seen = composed("unseen_b32"), composed("seen_b32")
    assert unseen["modelpool"] == seen["modelpool"]
    merged = set(seen["modelpool"]["models"]) - {"_pretrained_"}
    assert set(seen["taskpool"]["test_datasets"]) == merged and len(merged) == 6
    assert set(unseen["taskpool"]["test_datasets"]) == {"mnist", "eurosat"}
    assert not merged & {"mnist", "eurosat"}
    assert unseen["taskpool"]["test_datasets"]["mnist"]["path"] == "ylecun/mnist"


@pytest.mark.parametrize(
    ("corruption", "task_arithmetic", "adamerging"),
    [("gaussian_noise", 61.1, 66.9), ("motion_blur", 69.4, 80.6), ("test", 79.8, 88.0)],
)
def test_a_corruption_chooses_images_and_published_numbers(
    corruption, task_arithmetic, adamerging
):
    job = composed("corrupted_b32", f"settings.corruption={corruption}")
    for pool in ("modelpool", "taskpool"):
        splits = {d["split"] for d in job[pool]["test_datasets"].values()}
        assert splits == {corruption}
    averages = [row["average"] for row in job["published"]["rows"]]
    assert averages == [task_arithmetic, adamerging]
    assert job["results"].startswith(f"out/compare/corrupted_b32_{corruption}/recipe/")


@pytest.mark.slow
def test_a_recipe_runs_on_another_pool(tiny_pool_root, tmp_path, capsys):
    program = make_program(
        tmp_path,
        "recipe=ta8_b32",
        "modelpool=demo",
        "taskpool=demo",
        f"modelpool.root={tiny_pool_root}",
        f"taskpool.root={tiny_pool_root}",
        "methods=[experts,simple_average]",
    )
    program.run()
    cells = read_cells(tmp_path / "results")
    assert [cell["status"] for cell in cells.values()] == ["done", "done"]
    table = (tmp_path / "results" / "results.md").read_text()
    assert "| simple\\_average |" in table
    assert "(published)" not in table and "75.2" not in table
    assert "Published numbers left out: other pool." in table
    assert table.startswith("# ta8\\_b32 on demo\n")
    assert "left out: other pool" in capsys.readouterr().out
    folder = composed("ta8_b32", "modelpool=demo")["results"]
    assert folder == "out/compare/ta8_b32/demo"


@pytest.mark.parametrize(
    ("overrides", "shown"),
    [
        ([], True),
        (["modelpool.models.mnist=someone/else"], False),
        (["~modelpool.models.mnist"], False),
        (["~taskpool.test_datasets.mnist"], False),
        (["seeds=[0,1]"], True),
    ],
)
def test_published_numbers_stand_beside_their_own_models_and_tasks(
    overrides, shown, tmp_path
):
    about = make_program(tmp_path, "recipe=ta8_b32", *overrides).plan().description
    assert ("rows" in about["published"]) == shown
