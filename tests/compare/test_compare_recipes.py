"""Recipes compose, name what they are compared with, and run on any pool."""

import functools
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from running import compose_compare, make_program, program_of, read_cells

from fusion_plugins.compare import inputs, methods
from fusion_plugins.compare.published import published_data, published_for

CONFIG = Path(__file__).resolve().parents[2] / "config"
RECIPES = sorted(path.stem for path in (CONFIG / "recipe").glob("*.yaml"))
UNPUBLISHED = {"tall14_b16", "tall20_b16", "glue_gpt2", "glue_flan_t5", "nyuv2"}
LOCAL = ["path.output_dir=out", "path.log_dir=log", "path.work_dir=."]


OWN = {"pickle_path": "mine/ViT-B-32/DTD/better.pt"}


def published_of(job: dict) -> dict:
    return published_for(job["published"], job["modelpool"], job["taskpool"])


@functools.cache
def job(name: str, *overrides: str):
    """A recipe's; nobody changes it."""
    return compose_compare(f"recipe={name}", *LOCAL, *overrides)


def composed(name: str, *overrides: str) -> dict:
    return OmegaConf.to_container(job(name, *overrides))


def by_its_header(name: str):
    """The job of the command in a recipe's header."""
    text = (CONFIG / "recipe" / f"{name}.yaml").read_text()
    (command,) = re.findall(
        r"^#   \$ fusion_bench --config-name compare (.+)$", text, flags=re.MULTILINE
    )
    first, *overrides = command.split()
    assert first == f"recipe={name}"
    return job(name, *overrides)


@pytest.fixture(scope="module")
def composed_once():
    """Recipes share most of their methods, and composing is slow."""
    compose = methods.compose_method

    @functools.cache
    def composed(name, chosen):
        return compose(name, dict(chosen))

    def once(name, chosen=None):
        return composed(name, tuple((chosen or {}).items()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods, "method_names", functools.cache(methods.method_names))
        patch.setattr(methods, "compose_method", once)
        patch.setattr(inputs, "HfApi", None)  # asked what is to be fetched: no answer
        yield


def test_the_recipes_that_the_guide_lists():
    guide = (CONFIG.parent / "docs" / "recipes.md").read_text()
    assert RECIPES == sorted(re.findall(r"^\| `(\w+)` \|", guide, flags=re.MULTILINE))
    assert len(RECIPES) == 19


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_dry_runs(name, tmp_path, capsys, composed_once):
    changes = {"dry_run": True, "results": str(tmp_path / "results")}
    program = program_of(OmegaConf.merge(by_its_header(name), changes))
    cells = program.run()["cells"]
    said = capsys.readouterr().out
    assert cells >= 6 and said.count("to run") == cells
    assert program.title.startswith(name)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_names_the_published_numbers_and_what_differs(name):
    """Composed by the command in its header."""
    job = OmegaConf.to_container(by_its_header(name))
    published = published_of(job)
    if name in UNPUBLISHED:
        assert published is None
        return
    assert published["source"] and published["checkpoints"] and published["differs"]
    tasks = set(job["taskpool"]["test_datasets"])
    names = [m if isinstance(m, str) else next(iter(m)) for m in job["methods"]]
    assert published["rows"]
    for row in published["rows"]:
        assert row["method"] is None or row["method"] in names
        assert 0 < row["average"] <= 100
        assert set(row["tasks"] or tasks) == tasks
    linked = [row["method"] for row in published["rows"] if row["method"]]
    assert linked and len(set(linked)) == len(linked)


def test_every_published_number_says_where_it_is_from_and_sums_add_up():
    data = published_data()
    rows = [row for setting in data["settings"].values() for row in setting["rows"]]
    assert set(data["settings"]) == set(RECIPES) - UNPUBLISHED and len(rows) == 66
    for row in rows:
        assert all(row[key] for key in ("label", "source", "table", "protocol"))
        assert row["family"] in data["families"]
        if "tasks" in row:
            mean = sum(row["tasks"].values()) / len(row["tasks"])
            digits = len(str(row["average"]).partition(".")[2])
            # What is summed was rounded to 0.1, and so was the result to its digits.
            assert abs(mean - row["average"]) <= 0.05 + 0.5 * 10**-digits, row["label"]


@pytest.mark.parametrize(
    ("name", "pool", "change"),
    [
        ("ta8_b32", "taskpool", lambda c: c["test_datasets"].pop("mnist")),
        ("ta8_b32", "modelpool", lambda c: c["models"].pop("mnist")),
        ("ta8_b32", "modelpool", lambda c: c["models"].update(dtd="my/own_dtd")),
        ("ta8_l14", "modelpool", lambda c: c["models"].update(_pretrained_="./clip")),
        ("unseen_b32", "taskpool", lambda c: c["test_datasets"].update(dtd={})),
        ("ta8_b32_openclip", "modelpool", lambda c: c["models"]["dtd"].update(OWN)),
        ("glue_roberta", "modelpool", lambda c: c["models"]["rte"].pop("subfolder")),
    ],
)
def test_another_pool_has_no_published_numbers(name, pool, change):
    job = composed(name)
    assert published_of(job)["rows"]
    change(job[pool])
    assert published_of(job) == {"left_out": "other pool"}


def test_an_unknown_setting_is_named():
    with pytest.raises(
        ValueError, match="'ta8_b23', which is no setting. Did you mean"
    ):
        published_for("ta8_b23", {}, {})


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
    averages = [row["average"] for row in published_of(job)["rows"]]
    assert averages == [task_arithmetic, adamerging]
    pool = "recipe/clip-vit-b32_corrupted"
    assert job["results"] == f"out/compare/corrupted_b32_{corruption}/{pool}"


def unquoted(value: object) -> str:
    """As Hydra's command line has it."""
    return str(value).replace("'", "")


SHORT = {
    "adamerging": {"steps": 1},
    "tinting": {"rounds": 1},
    "wudi/wudi": {"iter_num": 2},
}


@pytest.mark.slow
def test_every_row_of_every_recipe_of_images_is_measured(
    tiny_pool_root, tmp_path, monkeypatch
):
    """On a stand-in pool, by one step each: recipes share most of their rows."""
    monkeypatch.setattr("fusion_plugins.compare.gathering._write_report", lambda *_: 0)
    jobs = [
        composed(name) for name in RECIPES if "glue" not in name and name != "nyuv2"
    ]
    listed = [entry for job in jobs for entry in job["methods"]]
    rows = [entry for at, entry in enumerate(listed) if entry not in listed[:at]]
    names = [name for e in rows for name in (e if isinstance(e, dict) else [e])]
    names = [name for name in names if name.split("_")[0] in SHORT]
    short = {name: SHORT[name.split("_")[0]] for name in names}
    program = make_program(
        tmp_path,
        "modelpool=demo",
        "taskpool=demo",
        f"modelpool.root={tiny_pool_root}",
        f"taskpool.root={tiny_pool_root}",
        "modelpool.tasks=[digits,colours]",
        "taskpool.tasks=[digits,colours]",
        f"methods={unquoted(rows)}",
        f"+overrides={unquoted(short)}",
    )
    program.run()
    cells = read_cells(tmp_path / "results")
    assert len(cells) == len(rows) == 13
    assert {c["status"] for c in cells.values()} == {"done"}, cells


@pytest.mark.slow
def test_a_recipe_on_another_pool_shows_no_published_numbers(tiny_pool_root, tmp_path):
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
    assert "# ta8\\_b32/demo" in table
    assert "Published numbers left out: other pool." in table
    assert "75.2" not in table and "family c" not in table
    page = (tmp_path / "results" / "report.html").read_text()
    assert "Published numbers left out: other pool." in page
