"""What the Python blocks of a page take as given: names, folders, and their makers."""

import importlib.util
import sys
from copy import deepcopy
from pathlib import Path

import torch
from documented import REPOSITORY
from transformers import LlamaConfig, LlamaForCausalLM

from fusion_plugins import TintedModel
from fusion_plugins.merged.heads import ClassificationHead
from fusion_plugins.modelpool.folders import FolderModelPool


def given(page: Path, folder: Path) -> dict:
    """Names for one page; `folder` is the working folder, with models/ in it."""
    names = {"base": "base", "expert_a": "mnist", "expert_b": "svhn"}
    pool = FolderModelPool({n: str(folder / "models" / n) for n in names.values()})
    found = {name: pool.load_model(model) for name, model in names.items()}
    heads = {t: ClassificationHead(torch.ones(2, 3)) for t in ("mnist", "svhn")}
    found["model"] = TintedModel(deepcopy(found["base"]), {"head": heads})
    found["__name__"] = "documented"
    return found | _OF_PAGE.get(page.stem, lambda folder: {})(folder)


def _image_models(folder: Path) -> dict:
    images = _load(REPOSITORY / "tests" / "image" / "tiny_image_pools.py")
    heads = {"mnist": ClassificationHead(torch.ones(2, 3))}
    base = FolderModelPool({"base": str(folder / "models/base")}).load_model("base")
    TintedModel(base, {"head": heads}).save_pretrained(folder / "merged")
    return {"pool": images.make_pool("resnet", folder)}


def _large_models(folder: Path) -> dict:
    size = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16}
    config = LlamaConfig(num_hidden_layers=1, num_attention_heads=2, **size)
    for seed, name in enumerate(("base", "math", "code")):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder / "llm" / name)
    return {}


def _new_pool(folder: Path) -> dict:
    example = _load(REPOSITORY / "docs" / "examples" / "new_pool.py")
    models = {"_pretrained_": example.SensorNet(3), "task": example.SensorNet(3)}
    return {"models": models, "readings": {"task": torch.randn(20, 16).tolist()}}


def _compare(folder: Path) -> dict:
    samples = _load(REPOSITORY / "tests" / "compare" / "sample_results.py")
    if not (folder / "outputs/compare/demo").exists():
        samples.write_sample(folder / "outputs/compare/demo", layers=6)
    return {}


_OF_PAGE = {
    "compare": _compare,
    "image_models": _image_models,
    "large_models": _large_models,
    "new_pool": _new_pool,
}


def _load(path: Path):
    if path.stem not in sys.modules:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        sys.modules[path.stem] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[path.stem])
    return sys.modules[path.stem]
