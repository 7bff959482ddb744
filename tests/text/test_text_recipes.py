"""The recipes of text models run to their end, with tiny models in the hub's place."""

import sys
from pathlib import Path

import pytest
from toy_text import (
    family,
    make_gpt2,
    make_roberta,
    make_t5,
    make_tokenizer,
    sentences,
    tokenised,
)

sys.path.append(str(Path(__file__).parents[1] / "compare"))
from running import make_program, read_cells  # noqa: E402

pytestmark = pytest.mark.slow

GLUE = {"cola": 2, "mnli": 3, "mrpc": 2, "qnli": 2, "qqp": 2, "rte": 2, "sst2": 2}
GLUE |= {"stsb": 1}
ROWS = 8


def glue(name: str, **options) -> list[dict]:
    """In the place of `datasets.load_dataset`."""
    rows = sentences(name, ROWS)
    for place, row in enumerate(rows):
        row["label"] = float(place) if name == "stsb" else place % GLUE[name]
    return rows


def gpt2_glue(name: str, **options) -> list[dict]:
    """In the place of FusionBench's `load_gpt2_dataset`."""
    rows = tokenised(name)[:ROWS]
    for place, row in enumerate(rows):
        row["labels"] = place % GLUE[name]
    return rows


def flan_glue(name: str, **options) -> list[dict]:
    """In the place of FusionBench's `load_glue_dataset`."""
    length = {"padding": "max_length", "truncation": True}
    read = [make_tokenizer()(row["text"], **length) for row in sentences(name, ROWS)]
    keys = ("input_ids", "attention_mask")
    return [{k: row[k] for k in keys} | {"labels": [4, -100]} for row in read]


RECIPES = {
    "glue_roberta": (make_roberta, {task: task for task in GLUE}, glue, "score"),
    "glue_flan_t5": (make_t5, {t: f"glue-{t}" for t in GLUE}, flan_glue, "score"),
    "glue_gpt2": (
        make_gpt2,
        {t: t for t in GLUE if t != "stsb"},
        gpt2_glue,
        "accuracy",
    ),
}


SHORT = "{adamerging: {steps: 1}, tinting: {rounds: 1}, tinting_pp: {rounds: 1}}"


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_cell_of_a_recipe_is_measured(recipe, tmp_path):
    make, names, loader, metric = RECIPES[recipe]
    make_tokenizer().save_pretrained(tmp_path / "tokenizer")
    models = family(make, {name: GLUE[task] for task, name in names.items()})
    base = next(n for n in models if n.startswith("_"))
    changes = []
    for name, model in models.items():
        name = {base: "_pretrained_"}.get(name, name)
        model.save_pretrained(tmp_path / name)
        at = f"modelpool.models.{name}"
        changes.append(f"{at}.pretrained_model_name_or_path={tmp_path / name}")
        if recipe == "glue_roberta" and name in GLUE:
            changes.append(f"~{at}.subfolder")
    for pool in ("modelpool", "taskpool"):
        for name in names.values():
            target = f"{pool}.test_datasets.{name}._target_"
            changes.append(f"{target}={__name__}.{loader.__name__}")
    words = f"pretrained_model_name_or_path={tmp_path / 'tokenizer'}"
    changes.append(f"modelpool.tokenizer.{words}")
    if recipe != "glue_roberta":
        changes.append(f"taskpool.tokenizer.{words}")
    if recipe == "glue_gpt2":  # its loader takes GPT-2's vocabulary only
        read = "tokenizer._target_=transformers.AutoTokenizer.from_pretrained"
        changes += [f"{pool}.{read}" for pool in ("modelpool", "taskpool")]
        changes.append(f"+overrides={SHORT}")
    program = make_program(tmp_path, f"recipe={recipe}", *changes)
    program.run()
    cells = read_cells(tmp_path / "results")
    assert len(cells) == len(program.methods) >= 6
    for cell in cells.values():
        assert cell["status"] == "done", cell
        assert set(cell["tasks"]) == set(names.values())
        assert all(metric in numbers for numbers in cell["tasks"].values())
    table = (tmp_path / "results" / "results.md").read_text()
    assert "SyMerge" not in table
