"""Text pools by FusionBench's own program: shipped configs and those of the guide."""

import csv
import json
import re
from pathlib import Path

import fusion_bench
import pytest
import yaml
from fusion_bench.programs import FabricModelFusionProgram
from hydra import compose, initialize_config_dir
from lightning import Fabric
from omegaconf import OmegaConf
from toy_text import family, make_bert, make_tokenizer, save, sentences

from fusion_plugins import TintedModel
from fusion_plugins.demo.recipe import TextRecipe
from fusion_plugins.demo.text_build import build_text_pool
from fusion_plugins.demo.text_data import TextTask
from fusion_plugins.demo.text_pools import demo_text_taskpool

SITE = Path(fusion_bench.__file__).resolve().parents[1]
CONFIG = next(p for p in (SITE / "fusion_bench_config", SITE / "config") if p.is_dir())
GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "text.md"
SAME = {"sst2": 2, "mnli": 2}  # upstream merges heads only if they agree in shape


def run(config, **options) -> dict:
    parts = (config.method, config.modelpool, config.taskpool)
    program = FabricModelFusionProgram(*parts, print_config=False, **options)
    program._fabric_instance = Fabric(devices=1, accelerator="cpu")
    return program.run()


def composed(*overrides: str):
    with initialize_config_dir(str(CONFIG), version_base=None):
        return compose("fabric_model_fusion", overrides=list(overrides))


def test_the_demo_pool_from_config_to_saved_model(tmp_path):
    make_bert(2, 0).bert.save_pretrained(tmp_path / "encoder")
    make_tokenizer().save_pretrained(tmp_path / "encoder")
    tasks = [TextTask(t, sentences(t, 32), sentences(t, 16)) for t in ("aa", "bb")]
    recipe = TextRecipe(epochs=1, max_length=12, batch_size=16)
    root = build_text_pool(tmp_path / "encoder", tasks, tmp_path / "pool", recipe)
    names = [f"modelpool.root={root}", f"taskpool.root={root}", "method.rounds=2"]
    names += ["method.num_workers=0", "method.checkpoint_dir=null"]
    config = composed(
        "method=tinting_pp", "modelpool=demo-text", "taskpool=demo-text", *names
    )
    saved = tmp_path / "model"
    report_file = tmp_path / "report.json"
    result = run(
        config, merged_model_save_path=str(saved), report_save_path=str(report_file)
    )
    report = json.loads(report_file.read_text())
    assert report["average"] == result["report"]["average"]
    again = TintedModel.from_pretrained(saved)
    got = demo_text_taskpool(root).evaluate(again)
    for task in ("aa", "bb"):
        assert got[task] == pytest.approx(report[task])


@pytest.fixture
def guided(tmp_path) -> OmegaConf:
    """The guide's two configs, with tiny models and sentences in their places."""
    blocks = re.findall(r"^```yaml\n(.*?)^```", GUIDE.read_text(), re.M | re.S)
    modelpool, taskpool = (yaml.safe_load(block) for block in blocks)
    models = family(make_bert, SAME)
    models["base"] = models.pop("_pretrained_")
    save(models, tmp_path / "models")
    make_tokenizer().save_pretrained(tmp_path / "models" / "base")
    for model in (*modelpool["models"].values(), modelpool["tokenizer"]):
        assert model["pretrained_model_name_or_path"].startswith("models/")
        folder = str(tmp_path / model["pretrained_model_name_or_path"])
        model["pretrained_model_name_or_path"] = folder
    modelpool["tokenizer"]["model_max_length"] = 16
    for task, dataset in modelpool["test_datasets"].items():
        assert dataset["_target_"] == "datasets.load_dataset"
        with open(tmp_path / f"{task}.tsv", "w", newline="") as file:
            writer = csv.DictWriter(file, ["label", "text"], dialect="excel-tab")
            writer.writeheader()
            writer.writerows(sentences(task))
        target = "fusion_plugins.modelpool.tsv.TsvDataset"
        dataset.clear()
        dataset |= {"_target_": target, "path": str(tmp_path / f"{task}.tsv")}
    return OmegaConf.create({"modelpool": modelpool, "taskpool": taskpool})


@pytest.mark.parametrize("method", ["awd", "simple_average"])
def test_the_guides_configs_work(method, guided):
    """AWD brings the heads; the average gets them from the program's model pool."""
    guided.method = composed(f"method={method}").method
    result = run(guided)
    tinted = method == "awd"
    assert isinstance(result["merged_model"], TintedModel) == tinted
    assert ("tints" in result["report"]["model_info"]) == tinted
    assert {"sst2", "mnli", "average"} < set(result["report"])
