"""State dicts, safetensors, folders and conversion: the right network, and clear errors."""

import json
import os
import time
from importlib.metadata import version

import open_clip
import pytest
import torch
from fusion_bench.models.open_clip import ClassificationHead, ImageEncoder
from old_pickles import ClassificationHead as OldHead
from old_pickles import ImageEncoder as OldEncoder
from old_pickles import save_old, tensors_as
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from packaging.version import Version
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fusion_plugins.cli import main
from fusion_plugins.modelpool.folders import FolderModelPool
from fusion_plugins.modelpool.openclip import (
    OpenCLIPImageEncoder,
    OpenCLIPModelPool,
    convert_checkpoint,
    load_encoder,
    load_head,
)
from fusion_plugins.modelpool.openclip.architecture import (
    Architecture,
    named_architecture,
)
from fusion_plugins.modelpool.openclip.checkpoints import save_head
from fusion_plugins.modelpool.openclip.trust import converted
from fusion_plugins.pools.loading import expert_checkpoint


def activations(module) -> set[str]:
    return {type(m).__name__ for m in module.modules() if "GELU" in type(m).__name__}


@pytest.fixture
def encoder(openclip_root) -> OpenCLIPImageEncoder:
    return load_encoder(openclip_root / "pretrained")


@pytest.fixture
def name(openclip_root) -> str:
    """An architecture by its folder; a real name would be a large model."""
    return str(openclip_root / "pretrained")


def same(got, want) -> bool:
    ours, theirs = got.state_dict(), want.state_dict()
    assert list(ours) == list(theirs)
    return all(torch.equal(ours[k], theirs[k]) for k in ours)


# -- architectures ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "model_name, activation",
    [
        ("ViT-B-32", "QuickGELU"),
        ("ViT-B-16", "QuickGELU"),
        ("ViT-L-14", "QuickGELU"),
        ("ViT-B-32-quickgelu", "QuickGELU"),
        ("ViT-B-32__pretrained__laion2b_s34b_b79k", "GELU"),
    ],
)
def test_the_activation_is_that_of_the_weights(model_name, activation):
    assert activations(named_architecture(model_name).build()) == {activation}


def test_a_named_network_is_open_clips_without_the_text_transformer():
    with torch.device("meta"):
        whole = open_clip.model.CLIP(**open_clip.get_model_config("ViT-B-32"))
    want = {k: v for k, v in whole.state_dict().items() if "transformer" not in k}
    want |= {k: v for k, v in whole.state_dict().items() if k.startswith("visual.")}
    got = named_architecture("ViT-B-32").build().state_dict()
    assert {k: v.shape for k, v in got.items()} == {k: v.shape for k, v in want.items()}


def test_building_does_not_disturb_the_random_numbers():
    torch.manual_seed(3)
    want = torch.rand(2)
    torch.manual_seed(3)
    named_architecture("ViT-B-32").build()
    assert torch.equal(torch.rand(2), want)


def test_images_are_prepared_as_openai_did():
    image = Image.effect_noise((300, 260), 50).convert("RGB")
    train, test = named_architecture("ViT-B-32").transforms()
    assert test(image).shape == train(image).shape == (3, 224, 224)
    normalise = test.transforms[-1]
    assert tuple(normalise.mean) == OPENAI_DATASET_MEAN
    assert tuple(normalise.std) == OPENAI_DATASET_STD


@pytest.mark.parametrize(
    "model_name, message",
    [
        ("ViT-B-33", "model_name is 'ViT-B-33', which open_clip does not know"),
        ("ViT-B-32__pretrained__nothing", "'ViT-B-32' has no tag 'nothing'"),
        ("roberta-ViT-B-32", "not those with a text tower of another kind"),
    ],
)
def test_names_that_cannot_be_built(model_name, message):
    with pytest.raises(ValueError, match=message):
        named_architecture(model_name)


# -- encoders ---------------------------------------------------------------------------


PREFIXES = ["model.", "", "image_encoder.model.", "module.model.", "module."]
PREFIXES += ["_orig_mod.model.", "module.image_encoder.model."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_state_dicts_with_any_prefix(tmp_path, encoder, name, prefix, kind):
    tensors = tensors_as(prefix, encoder)
    tensors[f"{prefix}transformer.resblocks.0.ln_1.bias"] = torch.ones(3)  # of the text
    path = tmp_path / f"model.{kind}"
    torch.save(tensors, path) if kind == "pt" else save_file(tensors, path)
    assert same(load_encoder(path, name), encoder)


def test_a_prefixed_expert_of_a_pool_is_streamed_like_any(tmp_path, encoder, name):
    source = {"model_name": name, "state_dict_path": str(tmp_path / "a.safetensors")}
    save_file(tensors_as("module.model.", encoder), tmp_path / "a.safetensors")
    pool = OpenCLIPModelPool({"_pretrained_": encoder, "a": source})
    read = expert_checkpoint(pool, "a", encoder)
    for key, want in encoder.state_dict().items():
        assert torch.equal(read.read(key), want)
    half = dict(list(tensors_as("module.model.", encoder).items())[:-2])
    save_file(half, tmp_path / "a.safetensors")
    with pytest.raises(
        ValueError, match=r"^expert 'a': .*a.safetensors: .* 2 are miss"
    ):
        expert_checkpoint(pool, "a", encoder)


def converted_pair(tmp_path, encoder, name):
    """A state dict, and what it was converted to."""
    source, target = tmp_path / "model.pt", tmp_path / "model.safetensors"
    torch.save(encoder.state_dict(), source)
    convert_checkpoint(source, target, name)
    return source, target


def test_a_converted_file_knows_its_source(tmp_path, encoder, name):
    source, target = converted_pair(tmp_path, encoder, name)
    assert converted(source) == target
    os.utime(source, (1, 1))  # copied anew, but the same
    assert converted(source) == target
    state = encoder.state_dict()
    state["model.visual.proj"] = state["model.visual.proj"] + 1
    for seconds in (2, time.time() + 9):  # older or newer, it is another
        torch.save(state, source)
        os.utime(source, (seconds, seconds))
        message = r"^[^\n]*model.safetensors was made from another version of model.pt"
        with pytest.raises(ValueError, match=message):
            load_encoder(source, name)
        pool = OpenCLIPModelPool({"a": str(source)})
        with pytest.raises(ValueError, match=message):
            pool.load_model("a")
    target.unlink()
    assert not same(load_encoder(source, name), encoder)
    convert_checkpoint(source, target, name)
    assert converted(source) == target
    source.unlink()
    assert converted(source) == target


def test_a_converted_file_of_unknown_source_must_be_newer(tmp_path, encoder, name):
    source, target = converted_pair(tmp_path, encoder, name)
    with safe_open(target, framework="pt") as file:
        metadata = {k: v for k, v in file.metadata().items() if k != "source"}
    save_file(load_file(target), target, metadata)
    os.utime(target, (100, 100))
    os.utime(source, (99, 99))
    assert same(load_encoder(source), encoder)
    os.utime(source, (101, 101))
    with pytest.raises(ValueError, match="made from another version of model.pt"):
        load_encoder(source)


def test_a_state_dict_inside_a_training_checkpoint(tmp_path, encoder, name):
    path = tmp_path / "epoch.pt"
    torch.save({"epoch": 3, "state_dict": encoder.state_dict()}, path)
    assert same(load_encoder(path, name), encoder)


def test_it_is_a_trainable_float32_encoder_of_fusion_bench(tmp_path, encoder, name):
    path = tmp_path / "half.pt"
    torch.save({k: v.half() for k, v in encoder.state_dict().items()}, path)
    loaded = load_encoder(path, name)
    assert isinstance(loaded, ImageEncoder)
    for parameter in loaded.parameters():
        assert parameter.dtype == torch.float32 and parameter.requires_grad
    assert not any(t.is_meta for t in (*loaded.parameters(), *loaded.buffers()))


def test_a_saved_folder_is_read_back_by_all_readers(tmp_path, encoder):
    encoder.save_pretrained(tmp_path / "saved")
    folder = str(tmp_path / "saved")
    pool = FolderModelPool({"_pretrained_": folder})
    for loaded in (load_encoder(folder), pool.load_model("_pretrained_")):
        assert same(loaded, encoder)
        assert loaded.architecture == encoder.architecture


def test_folders_of_earlier_releases_have_fusion_benchs_names(tmp_path, encoder):
    encoder.save_pretrained(tmp_path)
    save_file(encoder.state_dict(), tmp_path / "model.safetensors")
    assert same(load_encoder(tmp_path), encoder)


@pytest.mark.skipif(
    Version(version("open_clip_torch")).major < 3, reason="open_clip 2 reads no folders"
)
def test_open_clip_itself_loads_a_saved_folder(tmp_path, encoder, monkeypatch):
    monkeypatch.undo()  # nothing is downloaded: the folder holds it all
    encoder.save_pretrained(tmp_path)
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    size = encoder.architecture.model["vision_cfg"]["image_size"]
    images = torch.rand(3, 3, size, size)
    with torch.no_grad():
        want = encoder.eval()(images)
        assert torch.equal(model.eval().encode_image(images), want)
    means = [t.transforms[-1].mean for t in (transform, encoder.val_preprocess)]
    assert list(means[0]) == list(means[1])


def changed(tensors, kind):
    tensors, first = dict(tensors), "model.visual.conv1.weight"
    if kind == "missing":
        del tensors[first]
    elif kind == "extra":
        tensors["model.head"] = torch.ones(2)
    else:
        tensors[first] = tensors[first][:5]
    return tensors


@pytest.mark.parametrize(
    "kind, message",
    [
        ("missing", r"1 are missing \['model.visual.conv1.weight'\], 0 have no place"),
        ("extra", r"0 are missing \[\], 1 have no place \['model.head'\]"),
        ("shape", r"'model.visual.conv1.weight' has shape \(5, .* Is model_name right"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path, encoder, name, kind, message):
    path = tmp_path / "odd.pt"
    torch.save(changed(encoder.state_dict(), kind), path)
    with pytest.raises(ValueError, match=message) as error:
        load_encoder(path, name)
    assert str(path) in str(error.value)


def test_other_wrong_files(tmp_path, encoder):
    with pytest.raises(ValueError, match="There is no file .*set modelpool.model_dir"):
        load_encoder(tmp_path / "none.pt")
    torch.save(encoder.state_dict(), tmp_path / "nameless.pt")
    with pytest.raises(ValueError, match="do not tell the activation.*model_name: ViT"):
        load_encoder(tmp_path / "nameless.pt")
    (tmp_path / "text.safetensors").write_text("version https://git-lfs")
    with pytest.raises(ValueError, match="text.safetensors is truncated or not a safe"):
        load_encoder(tmp_path / "text.safetensors")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list, not a state dict or a module"):
        load_encoder(tmp_path / "list.pt")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="no config.json and no model.safetensors"):
        load_encoder(tmp_path / "folder")
    with pytest.raises(ValueError, match=r"no model_cfg, only \['a'\]"):
        Architecture.from_json('{"a": 1}')


# -- heads ------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_heads_from_state_dicts_and_safetensors(tmp_path, bias):
    weight, shift = torch.randn(4, 8), torch.randn(4)
    tensors = {"weight": weight} | ({"bias": shift} if bias else {})
    torch.save(tensors, tmp_path / "head.pt")
    save_file(tensors, tmp_path / "other.safetensors")
    for file in ("head.pt", "other.safetensors"):
        head = load_head(tmp_path / file)
        assert isinstance(head, ClassificationHead) and head.normalize is True
        assert torch.equal(head.weight, weight)
        assert torch.equal(head.bias, shift if bias else torch.zeros(4))


@pytest.mark.parametrize("normalize", [True, False])
def test_saved_heads_keep_whether_they_normalise(tmp_path, normalize):
    head = ClassificationHead(normalize, torch.randn(4, 8), torch.randn(4))
    save_head(head, tmp_path / "head.safetensors")
    loaded = load_head(tmp_path / "head.safetensors")
    assert loaded.normalize is normalize
    features = torch.randn(3, 8)
    assert torch.equal(loaded(features), head(features))


def test_a_file_that_is_no_head(tmp_path):
    torch.save({"weight": torch.ones(3)}, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match=r"is not a classification head.*\['weight'\]"):
        load_head(tmp_path / "odd.pt")


# -- conversion -------------------------------------------------------------------------


def test_converted_files_give_the_same_and_are_found_beside(tmp_path, capsys):
    torch.manual_seed(0)
    old = OldEncoder().eval()
    head = OldHead(False, torch.randn(3, 8), torch.randn(3))
    (tmp_path / "mnist").mkdir()
    save_old(old, tmp_path / "mnist" / "finetuned.pt")
    save_old(head, tmp_path / "head_mnist.pt")
    assert main(["convert", str(tmp_path), "--trust-pickle"]) == 0
    printed = capsys.readouterr().out
    assert "image encoder" in printed and "classification head" in printed
    pool = OpenCLIPModelPool(
        {"mnist": str(tmp_path / "mnist" / "finetuned.pt")},
        classification_heads={"mnist": str(tmp_path / "head_mnist.pt")},
    )
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        got = pool.load_model("mnist").eval()(images)
        torch.testing.assert_close(got, old(images), rtol=0, atol=1e-5)
        loaded = pool.load_classification_head("mnist")
        assert torch.equal(loaded(got), head(got))
    assert main(["convert", str(tmp_path), "--trust-pickle"]) == 0  # nothing left to do
    assert capsys.readouterr().out == ""


def test_a_state_dict_is_converted_with_its_architectures_name(
    tmp_path, encoder, name, capsys
):
    source, target = tmp_path / "plain.pt", tmp_path / "out" / "plain.safetensors"
    torch.save(encoder.state_dict(), source)
    assert main(["convert", str(source), str(target)]) == 2
    assert "do not tell the activation" in capsys.readouterr().err
    assert main(["convert", str(source), str(target), "--model", name]) == 0
    assert same(load_encoder(target), encoder)
    assert load_encoder(target).architecture == encoder.architecture


def test_conversion_refuses_what_it_should(tmp_path, capsys):
    source = save_old(OldEncoder(), tmp_path / "a.pt")
    target = tmp_path / "a.safetensors"
    assert main(["convert", str(source), str(target)]) == 2
    assert "--trust-pickle" in capsys.readouterr().err
    assert not target.exists()
    with pytest.raises(ValueError, match=r"b.pt must end in .safetensors"):
        convert_checkpoint(source, tmp_path / "b.pt", trust_pickle=True)
    target.touch()
    with pytest.raises(ValueError, match="exists already"):
        convert_checkpoint(source, target, trust_pickle=True)
    assert main(["convert", str(tmp_path), "x.safetensors"]) == 2
    assert "drop OUT" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["convert", str(tmp_path / "empty")]) == 2
    assert "There is no .pt file" in capsys.readouterr().err


def test_a_killed_conversion_leaves_no_half_file(tmp_path, encoder, monkeypatch):
    source, target = tmp_path / "a.pt", tmp_path / "a.safetensors"
    save_old(OldHead(True, torch.ones(3, 8)), source)

    def killed(head, path, *metadata):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fusion_plugins.modelpool.openclip.checkpoints.save_head", killed)
        with pytest.raises(KeyboardInterrupt):
            convert_checkpoint(source, target, trust_pickle=True)
    assert not target.exists()
    assert (
        convert_checkpoint(source, target, trust_pickle=True) == "classification head"
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pt", "a.safetensors"]
    (tmp_path / "b.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(ValueError, match="b.safetensors exists already"):
        convert_checkpoint(source, tmp_path / "b.safetensors", trust_pickle=True)
    assert not (tmp_path / "elsewhere.safetensors").exists()


# -- the pool ---------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["state_dict_path", "pickle_path"])
def test_the_pool_takes_upstreams_forms(tmp_path, encoder, name, key):
    path = tmp_path / "model.pt"
    torch.save(encoder.state_dict(), path)
    pool = OpenCLIPModelPool({"a": {"model_name": name, key: str(path)}, "b": name})
    assert same(pool.load_model("a"), encoder) and same(pool.load_model("b"), encoder)
    assert pool.test_processor.transforms[-1].mean == (0.5, 0.5, 0.5)
    in_memory = OpenCLIPModelPool({"a": encoder})
    assert in_memory.load_model("a") is encoder
    with pytest.raises(ValueError, match="No classification heads are defined"):
        pool.load_classification_head("a")


def test_the_pool_saves_folders_it_can_read(tmp_path, encoder, pool):
    pool.save_model(encoder, str(tmp_path / "merged"))
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["architectures"] == ["OpenCLIPImageEncoder"]
    assert same(load_encoder(tmp_path / "merged"), encoder)
    pool.save_model(torch.nn.Linear(2, 1), str(tmp_path / "other.pt"))
    assert set(torch.load(tmp_path / "other.pt")) == {"weight", "bias"}
