"""What FusionBench's program saves at the end is looked at before any work."""

from types import SimpleNamespace

import pytest
from fusion_bench import BaseModelPool

from fusion_plugins import AWDAlgorithm
from fusion_plugins.common.folders import check_end

BAD = {
    "merged_model_save_path={tmp}/file/model": "{tmp}/file is a file",
    "merged_model_save_path={tmp}/file": "{tmp}/file is a file",
    "merged_model_save_path={tmp}/dangling/model": "{tmp}/dangling is a link to nothing",
    "report_save_path={tmp}/file/report.json": "{tmp}/file is a file",
    "report_save_path={tmp}": "{tmp} is a folder",
    "report_save_path=report.json": "FusionBench wants a folder in it",
}


def program(**paths):
    wanted = {"report_save_path": None, "merged_model_save_path": None} | paths
    return SimpleNamespace(**wanted)


@pytest.mark.parametrize("given", BAD)
def test_what_cannot_be_saved_is_refused_before_a_model_is_loaded(given, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    option, value = given.format(tmp=tmp_path).split("=")
    method = AWDAlgorithm()
    method._program = program(**{option: value})
    with pytest.raises(ValueError) as error:
        method.run({"_pretrained_": "no/such/folder", "a": "none"})
    problem = BAD[given].format(tmp=tmp_path)
    assert str(error.value).startswith(f"{option}={value}: {problem}. Choose another")
    assert "\n" not in str(error.value)


@pytest.fixture
def pool(tmp_path):
    """Models in a folder, a subfolder, a file, and a folder of links."""
    for name in ("a/model.bin", "b/step/model.bin", "c/model.pt", "d/model.bin"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "model.bin").symlink_to(tmp_path / "d" / "model.bin")
    models = {
        "a": str(tmp_path / "a"),
        "b": {"source": str(tmp_path / "b"), "subfolder": "step"},
        "c": {"_target_": "load", "arguments": {"path": str(tmp_path / "c/model.pt")}},
        "d": str(tmp_path / "links"),
    }
    return BaseModelPool(models)


@pytest.mark.parametrize("place", ["a", "b/step", "c", "c/model.pt", "d", "links"])
def test_the_result_is_not_saved_over_a_model_of_the_pool(place, pool, tmp_path):
    given = program(merged_model_save_path=f"{tmp_path}/{place}", modelpool=pool)
    name = "d" if place == "links" else place[0]
    with pytest.raises(ValueError, match=f"'{name}' is read from there.*outputs/"):
        check_end(given, None)


@pytest.mark.parametrize("place", [".", "b", "a/merged", "new"])
def test_the_result_may_be_saved_beside_the_models(place, pool, tmp_path):
    given = program(merged_model_save_path=f"{tmp_path}/{place}", modelpool=pool)
    check_end(given, None)


def test_what_can_be_saved_is_not(tmp_path):
    (tmp_path / "model.pt").touch()  # is written anew
    good = program(
        report_save_path="{log_dir}/new/report.json",
        merged_model_save_path=tmp_path / "model.pt",
    )
    check_end(good, str(tmp_path))
    check_end(program(merged_model_save_path="model"), None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt"]
