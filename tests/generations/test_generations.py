"""Models that transformers 4 and 5 saved merge with each other, to the bit.

`saved/4` holds what `make_folders.py` wrote with transformers 4.57.6, `saved/5` the same
values as 5.24.0 writes them: without `vision_model.` in the tensors' names.
"""

import json
from itertools import product
from pathlib import Path

import pytest
import torch
from fusion_bench.modelpool import CLIPVisionModelPool
from make_folders import NAMES
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPVisionModel

from fusion_plugins import AdaMergingAlgorithm, AWDAlgorithm, TaskVectors, TintedModel
from fusion_plugins.learned.artifacts import SavedCoefficients, save_coefficients
from fusion_plugins.merged.sites import Site, trainable_copy
from fusion_plugins.pools import load_task_vectors
from fusion_plugins.task_vectors import as_coefficients, merge_into
from fusion_plugins.task_vectors.names import TOWER, towerless

SAVED = Path(__file__).parent / "saved"
GENERATIONS = ("4", "5")
MIXED = [dict(zip(NAMES, g, strict=True)) for g in product(GENERATIONS, repeat=3)]
POOLS = {"clip": CLIPVisionModelPool, "folders": dict}


def folders(generations: dict) -> dict[str, str]:
    return {name: str(SAVED / g / name) for name, g in generations.items()}


def same(got: nn.Module | dict, want: dict) -> None:
    got = got.state_dict() if isinstance(got, nn.Module) else got
    assert len(got) >= len(want) == 39
    got = {towerless(name): tensor for name, tensor in got.items()}
    for name, tensor in want.items():
        assert torch.equal(got[name], tensor), name


def tensors_of(name: str, generation: str = "5") -> dict[str, torch.Tensor]:
    return load_file(SAVED / generation / name / "model.safetensors")


def test_the_folders_differ_in_names_only():
    for name in NAMES:
        old, new = (tensors_of(name, generation) for generation in GENERATIONS)
        assert all(n.startswith(TOWER) for n in old) and not old.keys() & new.keys()
        same(old, new)
        versions = [
            json.loads((SAVED / g / name / "config.json").read_text())
            for g in GENERATIONS
        ]
        assert [v["transformers_version"][0] for v in versions] == ["4", "5"]


@pytest.fixture(scope="module")
def awd() -> dict[str, torch.Tensor]:
    """AWD's merge of values under their plain names, without any file."""
    models = {}
    for name in NAMES:
        models[name] = nn.Module()
        for key, tensor in tensors_of(name).items():
            models[name].register_parameter(key.replace(".", "/"), nn.Parameter(tensor))
    merged = AWDAlgorithm(iterations=5).run(models).state_dict()
    return {key.replace("/", "."): tensor for key, tensor in merged.items()}


@pytest.mark.parametrize("kind", POOLS)
@pytest.mark.parametrize("generations", MIXED, ids=lambda g: "".join(g.values()))
def test_every_mixture_merges_to_the_bit(generations, kind, awd):
    """Random weights in place of an expert's put one such merge 0.47 away."""
    pool = POOLS[kind](folders(generations))
    same(AWDAlgorithm(iterations=5).run(pool), awd)
    base, aa, bb = map(tensors_of, NAMES)
    module, task_vectors = load_task_vectors(pool, keep=["vision_model.post_*.bias"])
    got = merge_into(module, task_vectors, as_coefficients(task_vectors, WEIGHTS))
    for name, tensor in got.state_dict().items():
        name = towerless(name)
        want = base[name].double()
        if name != "post_layernorm.bias":
            want = want + 0.3 * (aa[name] - base[name]) + 0.6 * (bb[name] - base[name])
        torch.testing.assert_close(tensor.double(), want, rtol=0, atol=1e-6)


WEIGHTS = torch.tensor([0.3, 0.6])


@pytest.mark.parametrize("base, expert", [*product(GENERATIONS, repeat=2)])
def test_files_are_compared_by_their_tensors(base, expert):
    vectors = TaskVectors.from_checkpoints(
        SAVED / base / "_pretrained_", {"aa": SAVED / expert / "aa"}
    )
    assert len(vectors.keys) == 39
    assert next(iter(vectors.keys)).startswith(TOWER) == (base == "4")
    for block in vectors.blocks():
        name = towerless(block.key)
        want = (tensors_of("aa")[name] - tensors_of("_pretrained_")[name]).flatten()
        assert torch.equal(block.task_vectors.flatten(), want)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_merge_of_either_loads_again(generation, tmp_path, awd):
    merged = AWDAlgorithm(iterations=5).run(folders(dict.fromkeys(NAMES, generation)))
    merged.save_pretrained(tmp_path)
    renamed(tmp_path / "model.safetensors", generation)
    pool = folders(dict.fromkeys(NAMES, "5")) | {"_pretrained_": str(tmp_path)}
    same(load_task_vectors(pool)[0], awd)
    same(CLIPVisionModel.from_pretrained(SAVED / "4" / "aa"), tensors_of("aa"))


def renamed(file: Path, generation: str) -> None:
    """Give the tensors of a file the names of a generation."""
    prefix = TOWER if generation == "4" else ""
    tensors = {prefix + towerless(n): t for n, t in load_file(file).items()}
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    save_file(tensors, file, metadata)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_coefficients_of_either_apply(generation, tmp_path):
    layers = tuple(tensors_of("aa", generation))
    values = torch.rand(2, len(layers), generator=torch.Generator().manual_seed(0))
    module, vectors = load_task_vectors(folders(MIXED[1]))
    order = [towerless(key) for key in vectors.keys]
    layers = tuple(sorted(layers, key=lambda name: order.index(towerless(name))))
    saved = SavedCoefficients(("aa", "bb"), layers, values, values)
    path = save_coefficients(saved, tmp_path)
    merge = AdaMergingAlgorithm(coefficients=str(path), save_model=False)
    got = merge.run(folders(MIXED[2]))
    want = merge_into(module, vectors, as_coefficients(vectors, values)).state_dict()
    for name, tensor in got.state_dict().items():
        torch.testing.assert_close(tensor, want[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_tints_of_either_are_found(generation, tmp_path):
    trunk = CLIPVisionModel.from_pretrained(SAVED / "4" / "aa").eval()
    place = TOWER + "encoder.layers.1" if generation == "4" else "encoder.layers.1"
    layer = trunk.get_submodule(Site.on(trunk, place))
    tints = {"aa": trainable_copy(layer), "bb": trainable_copy(layer)}
    for parameter in tints["bb"].parameters():
        parameter.data += 0.5
    model = TintedModel(trunk, {place: tints})
    model.save_pretrained(tmp_path / "model")
    rewrite_sites(tmp_path / "model", generation)
    again = TintedModel.from_pretrained(tmp_path / "model").eval()
    image = torch.rand(1, 3, 4, 4)
    outputs = []
    for task in tints:
        model.set_task(task)
        again.set_task(task)
        outputs.append(again(image).pooler_output)
        assert torch.equal(outputs[-1], model(image).pooler_output)
    assert not torch.equal(*outputs)


def rewrite_sites(folder: Path, generation: str) -> None:
    """Give the files of a tinted model the names of a generation."""
    prefix = TOWER if generation == "4" else ""
    renamed(folder / "trunk" / "model.safetensors", generation)
    index = json.loads((folder / "tinted.json").read_text())
    index["sites"] = [prefix + towerless(site) for site in index["sites"]]
    (folder / "tinted.json").write_text(json.dumps(index))
    for file in (folder / "tints").iterdir():
        renamed(file, generation)
