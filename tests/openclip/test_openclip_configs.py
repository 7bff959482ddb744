"""The aliases are FusionBench's OpenCLIP pools; the demo pool runs from the command."""

import json
import os
import re
from pathlib import Path

import fusion_bench
import pytest
from fusion_bench.programs import FabricModelFusionProgram
from fusion_bench.utils import instantiate
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fusion_plugins import TintedModel
from fusion_plugins.cli import main
from fusion_plugins.demo import (
    demo_openclip_modelpool,
    demo_openclip_taskpool,
    openclip_build,
)
from fusion_plugins.demo.openclip_build import ensure_openclip_pool, export_pool
from fusion_plugins.modelpool.openclip import OpenCLIPModelPool
from fusion_plugins.modelpool.openclip.modelpool import OpenCLIPVisionModelPool
from fusion_plugins.taskpool.openclip import (
    OpenCLIPTaskPool,
    OpenCLIPVisionModelTaskPool,
)

SITE = Path(fusion_bench.__file__).resolve().parents[1]
UPSTREAM = next(
    p for p in (SITE / "fusion_bench_config", SITE / "config") if p.is_dir()
)
SIZES = {"b32": "ViT-B-32", "b16": "ViT-B-16", "l14": "ViT-L-14"}
RENAMED = {"mnist": "ylecun/mnist", "svhn": "ufldl-stanford/svhn"}


def composed(*overrides, config_name="fabric_model_fusion"):
    with initialize_config_dir(str(UPSTREAM), version_base=None):
        return compose(config_name, overrides=list(overrides))


def plain(node) -> dict:
    return OmegaConf.to_container(node, resolve=True)


def alias(size: str):
    name = f"openclip-vit-{size}_TA8"
    return composed("method=awd", f"modelpool={name}", f"taskpool={name}")


@pytest.mark.parametrize("size", SIZES)
def test_both_pools_are_upstreams_but_for_class_trust_and_hub_ids(size):
    job = alias(size)
    upstream = composed(
        f"modelpool=OpenCLIPVisionModelPool/{SIZES[size]}_TA8",
        f"taskpool=OpenCLIPVisionModelTaskPool/{SIZES[size]}_TA8",
    )
    for group in ("modelpool", "taskpool"):
        ours, theirs = plain(job[group]), plain(upstream[group])
        assert ours.pop("trust_pickle") is False
        assert ours.pop("_target_") != theirs.pop("_target_")
        for split in ("train_datasets", "test_datasets"):
            for task, hub_id in RENAMED.items() if split in ours else ():
                ours[split].pop(task), theirs[split].pop(task)
                names = str(job[group][split][task])
                assert hub_id in names
        assert ours == theirs
    assert plain(job.modelpool.classification_heads) == plain(
        job.taskpool.classification_heads
    )


def test_fusion_bench_builds_both_pools_without_any_file():
    job = alias("b32")
    modelpool, taskpool = instantiate(job.modelpool), instantiate(job.taskpool)
    assert type(modelpool) is OpenCLIPModelPool and type(taskpool) is OpenCLIPTaskPool
    assert isinstance(modelpool, OpenCLIPVisionModelPool)
    assert isinstance(taskpool, OpenCLIPVisionModelTaskPool)
    assert len(modelpool.model_names) == 8 and modelpool.has_pretrained
    with pytest.raises(ValueError, match="no file .*ViT-B-32/zeroshot.pt. Download"):
        modelpool.load_model("_pretrained_")
    with pytest.raises(ValueError, match="no file .*ViT-B-32/head_MNIST.pt. Download"):
        modelpool.load_classification_head("mnist")


def test_the_pools_options_are_in_their_saved_config(tmp_path):
    pool = OpenCLIPModelPool(
        {"_pretrained_": "a.pt"}, classification_heads={"x": "h"}, trust_pickle=True
    )
    saved = plain(pool.config)
    assert saved["trust_pickle"] is True and saved["classification_heads"] == {"x": "h"}


def test_the_demo_configs_build_the_demo_pools(openclip_root):
    where = f"modelpool.root={openclip_root}", f"taskpool.root={openclip_root}"
    job = composed("modelpool=demo-openclip", "taskpool=demo-openclip", *where)
    pool = instantiate(job.modelpool)
    assert type(pool) is OpenCLIPModelPool
    assert pool.model_names == ["textures", "colours"]
    for split in ("train", "val", "test"):
        assert getattr(pool, f"{split}_dataset_names") == pool.model_names
    assert len(pool.load_val_dataset("colours")) == 20
    taskpool = instantiate(job.taskpool)
    assert set(taskpool.evaluate(pool.load_model("textures"))) == {
        "model_info",
        "average",
        *pool.model_names,
    }


def test_the_command_exports_a_pool_and_says_how_to_use_it(clip_root, tmp_path, capsys):
    out = tmp_path / "new"
    assert (
        main(["demo", "build-openclip", "--from", str(clip_root), "--out", str(out)])
        == 0
    )
    printed = capsys.readouterr().out
    assert f"modelpool=demo-openclip modelpool.root={out}" in printed
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")] == ["new"]
    pool = demo_openclip_modelpool(out, tasks="colours")
    assert pool.model_names == ["colours"]
    assert main(["demo", "build-openclip", "--from", str(clip_root)]) == 2
    assert "--from needs --out" in capsys.readouterr().err


def test_a_killed_export_does_not_stop_the_next(clip_root, openclip_root, tmp_path):
    recipe = json.loads((clip_root / "pool.json").read_text())["recipe_hash"]
    for mark in (recipe, os.getpid()):
        left = tmp_path / f".new.building-{mark}" / "heads"
        left.mkdir(parents=True)
        (left / "colours.safetensors").write_bytes(b"half")
    root = export_pool(clip_root, tmp_path / "new")
    assert {p.name for p in tmp_path.iterdir()} == {"new", ".new.lock"}
    for name in ("pretrained", "experts/colours"):
        ours, theirs = (r / name / "model.safetensors" for r in (root, openclip_root))
        assert ours.read_bytes() == theirs.read_bytes()


def test_the_built_in_pool_is_made_once_in_the_cache(clip_root, tmp_path, monkeypatch):
    monkeypatch.setenv("FUSION_PLUGINS_DEMO_ROOT", str(tmp_path))
    built = []
    monkeypatch.setattr(
        openclip_build, "ensure_pool", lambda recipe: built.append(recipe) or clip_root
    )
    first = ensure_openclip_pool()
    assert first.parent == tmp_path and first.name.startswith("demo-openclip-")
    assert demo_openclip_modelpool()._models["colours"].startswith(str(first))
    assert built == [openclip_build.OPENCLIP_RECIPE]
    demo_openclip_taskpool(seed=7, tasks=["colours"])
    assert [recipe.seed for recipe in built] == [0, 7]


def test_wrong_folders_and_tasks(clip_root, openclip_root, tmp_path):
    with pytest.raises(
        ValueError, match="format 1, not openclip.*build-openclip --help"
    ):
        demo_openclip_modelpool(clip_root)
    with pytest.raises(match="is a pool of format 'openclip', not 1"):
        export_pool(openclip_root, tmp_path / "new")
    with pytest.raises(ValueError, match="exists and is not an empty folder"):
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "file").touch()
        export_pool(clip_root, tmp_path / "full")
    with pytest.raises(ValueError, match=r"unknown tasks \['x'\].*available"):
        demo_openclip_modelpool(openclip_root, tasks=["x"])
    with pytest.raises(
        ValueError, match="batch_size is 0, expected a whole number >= 1"
    ):
        demo_openclip_taskpool(openclip_root, batch_size=0)


def test_fusion_benchs_program_runs_saves_and_reports(openclip_root, tmp_path):
    job = composed(
        "method=tinting",
        "method.rounds=1",
        "method.num_workers=0",
        "method.checkpoint_dir=null",
        "modelpool=demo-openclip",
        "taskpool=demo-openclip",
        f"modelpool.root={openclip_root}",
        f"taskpool.root={openclip_root}",
    )
    program = FabricModelFusionProgram(
        job.method,
        job.modelpool,
        job.taskpool,
        print_config=False,
        merged_model_save_path=str(tmp_path / "model"),
        report_save_path=str(tmp_path / "report.json"),
    )
    program.run()
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["model_info"]["tints"]["per_task"].keys() == {"textures", "colours"}
    saved = TintedModel.from_pretrained(tmp_path / "model")
    again = demo_openclip_taskpool(openclip_root).evaluate(saved)
    for task in ("textures", "colours", "average"):
        assert again[task] == report[task]


def guide() -> str:
    root = Path(openclip_build.__file__).resolve().parents[2]
    return (root / "docs" / "guides" / "openclip.md").read_text(encoding="utf-8")


def test_the_guides_commands_compose():
    commands = re.findall(
        r"^fusion_bench (.+?)(?:\s+#.*)?$", guide(), flags=re.MULTILINE
    )
    assert len(commands) >= 3
    for command in commands:
        name = ["--config-name", "compare"]
        words = command.split()
        if words[:2] == name:
            composed(*words[2:], config_name="compare")
        else:
            composed(*words)


def test_the_guides_example_runs(openclip_root, monkeypatch):
    code = re.search(r"```python\n(.+?)```", guide(), flags=re.DOTALL).group(1)
    monkeypatch.setattr(
        "fusion_plugins.demo.openclip_build.ensure_openclip_pool",
        lambda recipe: openclip_root,
    )
    scope = {}
    exec(code.replace("rounds=50", "rounds=1, num_workers=0"), scope)
    assert scope["report"]["average"].keys() == {"accuracy", "loss", "ece"}
