import dataclasses
import json

import killed_builds
import pytest
from forked import assert_nothing_lost, call
from killed_builds import RECIPE, files

from fusion_plugins.demo import build_pool, ensure_pool
from fusion_plugins.demo.pool_folder import ROOT_VARIABLE, cached_root


def test_the_same_recipe_gives_the_same_bytes(tmp_path):
    first = files(ensure_pool(RECIPE, tmp_path / "a"))
    again = files(ensure_pool(RECIPE, tmp_path / "b"))
    other = files(ensure_pool(dataclasses.replace(RECIPE, seed=1), tmp_path / "c"))
    assert first == again
    weights = [name for name in first if name.endswith(".safetensors")]
    assert len(weights) == 3
    assert all(first[name] != other[name] for name in weights)


def test_a_pool_starts_from_the_same_weights_with_every_release_of_transformers():
    """Releases draw in orders of their own; these are what transformers 4 drew."""
    import torch

    from fusion_plugins.demo import DemoRecipe
    from fusion_plugins.demo.clip import make_model, make_tokenizer

    torch.manual_seed(0)
    model = make_model(DemoRecipe(), make_tokenizer())
    vision, text = model.vision_model, model.text_model
    drawn = [
        (text.embeddings.token_embedding.weight, [0.018235, 0.029056, -0.03138]),
        (text.encoder.layers[1].mlp.fc2.weight, [-0.112146, -0.056143, -0.009273]),
        (vision.embeddings.class_embedding, [-0.0265, -0.027679, -0.141509]),
        (model.visual_projection.weight, [0.19604, 0.020582, -0.059334]),
    ]
    for tensor, first in drawn:
        assert tensor.flatten()[:3].tolist() == pytest.approx(first, abs=1e-6)
    layer = vision.encoder.layers[0]
    assert not layer.mlp.fc1.bias.any() and (layer.layer_norm1.weight == 1).all()
    # Where training goes on from.
    assert torch.rand(1).item() == pytest.approx(0.870230, abs=1e-6)


def test_building_leaves_the_callers_random_state_and_threads(tmp_path):
    import torch

    torch.manual_seed(3)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        ensure_pool(RECIPE, tmp_path / "pool")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(state, torch.get_rng_state())


def test_the_cache_folder_follows_the_environment_and_the_recipe(tmp_path, monkeypatch):
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    root = cached_root("demo", RECIPE)
    assert root.parent == tmp_path and root.name == f"demo-{RECIPE.hash()}"
    assert ensure_pool(RECIPE) == root
    changed = dataclasses.replace(RECIPE, expert_steps=5)
    assert ensure_pool(changed) != root
    found = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert found == sorted([root.name, f"demo-{changed.hash()}"])


def test_an_existing_pool_is_not_built_again(tmp_path):
    root = ensure_pool(RECIPE, tmp_path / "pool")
    before = (root / "pool.json").stat().st_mtime_ns

    def never():
        raise AssertionError("built again")

    assert build_pool(RECIPE, never, root) == root
    assert (root / "pool.json").stat().st_mtime_ns == before


def test_an_error_leaves_nothing_behind(tmp_path):
    def fail():
        raise RuntimeError("no data")

    with pytest.raises(RuntimeError, match="no data"):
        build_pool(RECIPE, fail, tmp_path / "pool")
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_other_peoples_folders_are_not_touched(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not an empty folder"):
        ensure_pool(RECIPE, tmp_path)
    with pytest.raises(ValueError, match="is not an empty folder"):
        ensure_pool(RECIPE, tmp_path / "notes.txt")
    with pytest.raises(ValueError, match="cannot create"):
        ensure_pool(RECIPE, tmp_path / "notes.txt" / "deeper" / "pool")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_pool_of_another_recipe_is_not_taken_for_it(tmp_path):
    root = ensure_pool(RECIPE, tmp_path / "pool")
    with pytest.raises(ValueError, match="pool holds a pool of another recipe; choose"):
        ensure_pool(dataclasses.replace(RECIPE, seed=1), root)
    (tmp_path / "link").symlink_to(root)
    assert ensure_pool(RECIPE, tmp_path / "link") == tmp_path / "link"


def test_what_killed_builds_left_is_replaced(tmp_path):
    clean = files(ensure_pool(RECIPE, tmp_path / "clean"))
    for mark in (RECIPE.hash(), "0123456789ab"):
        left = tmp_path / f".pool[1].building-{mark}"
        (left / "experts" / ".textures.unfinished").mkdir(parents=True)
        (left / "pretrained").mkdir()
        (left / "pretrained" / "model.safetensors").write_bytes(b"half")
        (left / "pool.json").write_text("{")
    assert files(ensure_pool(RECIPE, tmp_path / "pool[1]")) == clean
    folders = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert folders == {"clean", "pool[1]"}


@pytest.mark.slow
def test_a_killed_build_leaves_no_half_pool(tmp_path):
    assert_nothing_lost(call(killed_builds.kill, tmp_path))


@pytest.mark.slow
def test_two_processes_build_one_pool(tmp_path):
    call(killed_builds.build_twice_at_once, tmp_path)
    assert len({"one", "other"} & {path.name for path in tmp_path.iterdir()}) == 1
    assert json.loads((tmp_path / "pool" / "pool.json").read_text())["tasks"]
