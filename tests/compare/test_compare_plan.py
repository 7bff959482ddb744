"""What is asked for: methods, options, seeds, and the mistakes in them."""

import pytest
from omegaconf import OmegaConf
from running import make_program

from fusion_plugins.compare.cells import make_cells, read_seeds
from fusion_plugins.compare.methods import read_baseline, read_methods
from fusion_plugins.compare.plan import resolve_method
from fusion_plugins.compare.published import published_for
from fusion_plugins.compare.store import results_folder

DEMO = ("modelpool=demo", "taskpool=demo")


def options(method) -> dict:
    return OmegaConf.to_container(method.config)


def test_entries_are_names_or_names_with_options():
    listed = [
        "pretrained",
        "wudi/wudi",
        {"awd": {"alpha": 0.2}},
        {"ties_merging": None},
    ]
    pretrained, wudi, awd, ties = read_methods(listed)
    assert pretrained.is_reference and not options(pretrained)
    assert options(wudi)["_target_"] == "fusion_bench.method.WUDIMerging"
    assert options(awd)["alpha"] == 0.2 and options(awd)["iterations"] == 300
    assert ties.label == ties.slug == "ties_merging"
    assert awd.label == "awd (alpha=0.2)"


def test_options_reach_into_parts_and_common_ones_yield_to_an_entrys_own():
    listed = [
        {"awd": {"base.scaling_factor": 0.4}},
        {"awd": {"base": {"scaling_factor": 0.5}, "lr": 0.1}},
    ]
    first, second = read_methods(listed, {"awd": {"alpha": 0.3, "lr": 0.2}})
    assert options(first)["base"]["scaling_factor"] == 0.4
    assert options(second)["base"]["scaling_factor"] == 0.5
    assert (options(first)["lr"], options(second)["lr"]) == (0.2, 0.1)
    assert options(first)["alpha"] == options(second)["alpha"] == 0.3
    assert first.label == "awd (alpha=0.3, lr=0.2, base.scaling_factor=0.4)"


def test_a_method_inside_a_method_is_chosen_by_name():
    (awd,) = read_methods([{"awd": {"base": "wudi/wudi", "alpha": 0.2}}])
    assert options(awd)["base"]["_target_"] == "fusion_bench.method.WUDIMerging"
    assert options(awd)["alpha"] == 0.2


@pytest.mark.parametrize(
    ("own", "common"),
    [
        ({"base": "ties_merging", "base.scaling_factor": 0.5}, None),
        ({"base.scaling_factor": 0.5, "base": "ties_merging"}, None),
        ({"base": "ties_merging"}, {"awd": {"base": {"scaling_factor": 0.5}}}),
        ({"base": {"scaling_factor": 0.5}}, {"awd": {"base": "ties_merging"}}),
    ],
)
def test_a_method_chosen_by_name_takes_options_too(own, common):
    (awd,) = read_methods([{"awd": own}], common)
    base = options(awd)["base"]
    assert base["_target_"] == "fusion_bench.method.TiesMergingAlgorithm"
    assert (base["scaling_factor"], base["threshold"]) == (0.5, 20)
    assert "base=ties_merging" in awd.label and "base.scaling_factor=0.5" in awd.label


def test_methods_are_chosen_inside_chosen_methods():
    chosen = {"base.base.scaling_factor": 0.6, "base.base": "ties_merging"}
    (awd,) = read_methods([{"awd": {"base": "awd", "alpha": 0.2, **chosen}}])
    inner = options(awd)["base"]
    assert options(awd)["alpha"] == 0.2 and inner["alpha"] == 0.1
    assert inner["base"]["_target_"] == "fusion_bench.method.TiesMergingAlgorithm"
    assert inner["base"]["scaling_factor"] == 0.6


def test_an_option_that_a_config_leaves_open_can_be_set():
    (method,) = read_methods([{"rankone_moe/rankone_moe": {"name": "rankone_moe"}}])
    assert options(method)["name"] == "rankone_moe"


def test_ids_tell_rows_apart_and_are_file_names():
    listed = ["wudi/wudi", "awd", {"awd": {"alpha": 0.2}}, {"awd": {"alpha": 0.3}}]
    cells = make_cells(read_methods(listed), [0])
    ids = [cell.id for cell in cells]
    assert len(set(ids)) == len(ids) == 4
    assert "awd-seed0" in ids and not any(set(i) & set("/ .*()") for i in ids)
    again = make_cells(read_methods(listed), [0])
    assert [cell.id for cell in again] == ids


@pytest.mark.parametrize(
    ("entry", "seeds"),
    [
        ("experts", [0]),
        ("awd", [3]),
        ({"awd": {"base": "wudi/wudi"}}, [3]),
        ("ties_merging", [3]),
        ("emr_merging/emr_merging", [3]),
        ("adamerging", [3, 4]),
        ("tinting_pp", [3, 4]),
        ("dare/task_arithmetic", [3, 4]),
        ({"awd": {"base": "dare/task_arithmetic"}}, [3, 4]),
        ("regmean/clip_regmean", [3, 4]),
        ("adamerging/clip", [3, 4]),
    ],
    ids=str,
)
def test_what_no_seed_changes_runs_once(entry, seeds):
    cells = make_cells(read_methods([entry]), [3, 4])
    assert [cell.seed for cell in cells] == seeds


def test_the_seed_reaches_methods_that_have_one():
    (tinting,) = read_methods(["tinting_pp"])
    surroundings = {"path": {"output_dir": "here"}}
    config = resolve_method(tinting, surroundings, 5)
    assert config.seed == 5 and config.checkpoint_dir == "here/adaptation"


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ([], "methods is [], expected a list of method names"),
        ("awd", "methods is 'awd', expected a list"),
        ([3], "methods holds 3, expected a method's name"),
        ([{"awd": {}, "ties_merging": {}}], "expected a method's name, or one name"),
        ([{"awd": 0.2}], "methods holds {'awd': 0.2}"),
        (["awdd"], "'awdd', which is no method. Did you mean 'awd'"),
        (["wudi"], "'wudi/wudi'"),
        (["fusion_plugins/learned"], "its config names no class to run"),
        ([{"awd": {"alfa": 0.2}}], "awd has no option 'alfa'. Did you mean 'alpha'"),
        ([{"awd": {"base.scaling": 1}}], "Did you mean 'base.scaling_factor'?"),
        (
            [{"awd": {"base": "wudi/wudy"}}],
            "awd: base is 'wudi/wudy', which is no method",
        ),
        (
            [{"awd": {"base": None, "base.scaling_factor": 1}}],
            "awd has no option 'base.scaling_factor'",
        ),
        (
            ["rankone_moe/rankone_moe"],
            "rankone_moe/rankone_moe needs name: list it as {rankone_moe/rankone_moe:"
            " {name: ...}} in methods.",
        ),
        (["weighted_ensembel"], "no method. Did you mean 'linear/weighted_average'"),
        ([{"experts": {"alpha": 1}}], "'experts' is not a method, it has no options"),
        (["awd", "awd"], "lists ['awd'] more than once"),
    ],
)
def test_mistakes_in_methods_are_explained(listed, message):
    with pytest.raises(ValueError) as raised:
        read_methods(listed)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("common", "message"),
    [
        (3, "overrides is 3, expected a mapping"),
        ({"awd": 3}, "overrides is {'awd': 3}"),
        ({"wudi/wudi": {"a": 1}}, "which methods does not list: ['awd']"),
        ({"awd": {"alfa": 1}}, "Did you mean 'alpha'"),
    ],
)
def test_mistakes_in_overrides_are_explained(common, message):
    with pytest.raises(ValueError) as raised:
        read_methods(["awd"], common)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        (0, "seeds is 0, expected a list"),
        ([], "seeds is [], expected a list"),
        (["one"], "seeds: an entry is 'one', expected a whole number >= 0"),
        ([-1], "expected a whole number >= 0"),
        ([0, 0], "listed more than once"),
        ([2**32], "expected a whole number >= 0 and < 2^32"),
    ],
)
def test_mistakes_in_seeds_are_explained(seeds, message):
    with pytest.raises(ValueError) as raised:
        read_seeds(seeds)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("methods=[awdd]", "Did you mean 'awd'"),
        ("methods=[{awd: {alpha: -1}}]", "alpha is -1, expected a number in [0, inf)"),
        (
            "methods=[{task_arithmetic: {scaling_factor: null}}]",
            "TaskArithmeticAlgorithm: scaling_factor is None, expected a number.",
        ),
        ("methods=[{tinting: {rounds: some}}]", "rounds is 'some'"),
        ("seeds=[a]", "seeds: an entry is 'a'"),
        ("add=somewhere", "add is 'somewhere', expected a list"),
        ("add=[nowhere]", "add: nowhere is not a results folder"),
        ("dry_run=maybe", "dry_run is 'maybe', expected one of [True, False]"),
        ("save_models=1", "save_models is 1, expected one of [True, False]"),
        ("results=''", "results is '', expected the name of a folder"),
        ("tables=average", "tables is 'average', expected a mapping of sort, columns"),
        ("baseline=[awd]", "baseline is ['awd'], expected the name of one row of the"),
        ("results=/dev/null/x", "but /dev/null is a file, not a folder"),
    ],
)
def test_mistakes_stop_the_run_before_a_pool_is_loaded(override, message, tmp_path):
    program = make_program(tmp_path, *DEMO, override)
    program._load_pools = lambda plan: pytest.fail("a pool was loaded")
    with pytest.raises(ValueError) as raised:
        program.run()
    assert message in str(raised.value)
    assert not (tmp_path / "results").exists()


OWN = {"source": "s", "checkpoints": "c", "rows": [{"label": "Mine", "average": 62.0}]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": None}, "published.source is None, expected a text."),
        ({"checkpoints": 3}, "published.checkpoints is 3, expected a text."),
        ({"surce": "s"}, "published has no 'surce', only source, .* mean 'source'?"),
        ({"differs": "data"}, "published.differs is 'data', expected a list of texts."),
        ({"rows": {"label": "a"}}, "published.rows is .*, expected a list of mappings"),
        ({"rows": ["a"]}, "published.rows is .'a'., expected a list of mappings"),
        ({"label": None}, r"published.rows\[0\].label is None, expected a text"),
        ({"averge": 1}, r"published.rows\[0\] has no 'averge', .* mean 'average'"),
        ({"average": "62"}, r"published.rows\[0\].average is '62', expected a number"),
        ({"tasks": [1]}, r"rows\[0\].tasks is \[1\], expected a mapping from tasks"),
        ({"tasks": {"a": "1"}}, "tasks is .'a': '1'., expected a mapping from tasks"),
    ],
)
def test_mistakes_in_published_numbers_of_ones_own_are_explained(changes, message):
    top = {k: v for k, v in changes.items() if k in (*OWN, "differs", "surce")}
    rows = [OWN["rows"][0] | {k: v for k, v in changes.items() if k not in top}]
    with pytest.raises(ValueError, match=message):
        published_for(OWN | {"rows": rows} | top, {}, {})
    assert published_for(OWN, {}, {}) == OWN


def test_a_dry_run_lists_the_cells_and_writes_nothing(tmp_path, capsys):
    program = make_program(
        tmp_path, *DEMO, "dry_run=true", "methods=[experts,tinting]", "seeds=[0,1]"
    )
    program._load_pools = lambda plan: pytest.fail("a pool was loaded")
    assert program.run()["cells"] == 3
    said = capsys.readouterr().out
    names = "experts-seed0", "tinting-seed0", "tinting-seed1"
    assert all(name in said for name in names)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("kind", ["file", "dangling"])
def test_results_that_cannot_be_a_folder(kind, tmp_path):
    path = tmp_path / "results"
    path.write_text("") if kind == "file" else path.symlink_to(tmp_path / "gone")
    reason = {"file": "is a file, not a folder", "dangling": "is a link to nothing"}
    with pytest.raises(ValueError, match=f"results is .*, but .* {reason[kind]}"):
        results_folder(str(path / "below"))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("figures", "file"), ("cells", "file"), ("results.csv", "folder")],
)
def test_results_that_could_not_be_written_at_the_end(name, kind, tmp_path):
    path = tmp_path / name
    path.touch() if kind == "file" else path.mkdir()
    with pytest.raises(
        ValueError, match=f"results is .*, but .*{name} is a {kind}, not"
    ):
        results_folder(str(tmp_path))


def test_an_option_that_no_one_reads_is_refused(tmp_path):
    program = make_program(tmp_path, *DEMO, "+sedes=[0,1]")
    program._load_pools = lambda plan: pytest.fail("a pool was loaded")
    message = (
        "^The comparison has no option 'sedes'. Did you mean 'seeds'. Known options"
    )
    with pytest.raises(TypeError, match=message):
        program.run()


def test_a_method_for_an_option_keeps_options_of_its_own():
    given = [{"awd": {"base": "ties_merging", "base.scaling_factor": 0.5}}]
    other = [{"awd": {"base.scaling_factor": 0.5, "base": "ties_merging"}}]
    for entries in (given, other):
        (method,) = read_methods(entries)
        assert method.config.base._target_.endswith("TiesMergingAlgorithm")
        assert method.config.base.scaling_factor == 0.5
        assert "base=ties_merging" in method.label and "base." in method.label


def test_options_that_a_config_leaves_open_can_be_given():
    (method,) = read_methods(
        [{"adamerging/clip": {"name": "clip_layer_wise_adamerging"}}]
    )
    assert method.config.name == "clip_layer_wise_adamerging"


def test_a_baseline_may_be_a_row_of_another_job_but_has_to_be_a_method():
    methods = read_methods(["task_arithmetic"])
    for baseline in ("awd (alpha=0.2)", "pretrained", "none", "task_arithmetic"):
        assert read_baseline(baseline, methods) == baseline
    assert read_baseline(None, methods) is None
    with pytest.raises(ValueError, match="baseline is 'awdd', .* mean 'awd'"):
        read_baseline("awdd", methods)
