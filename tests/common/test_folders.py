"""What FusionBench's program saves at the end is looked at before any work."""

from types import SimpleNamespace

import pytest

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


def test_what_can_be_saved_is_not(tmp_path):
    (tmp_path / "model.pt").touch()  # is written anew
    good = program(
        report_save_path="{log_dir}/new/report.json",
        merged_model_save_path=tmp_path / "model.pt",
    )
    check_end(good, str(tmp_path))
    check_end(program(merged_model_save_path="model"), None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt"]
