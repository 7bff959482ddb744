"""Pickled modules: refused unless trusted, read without running what they name."""

import io
import pickle
import sys

import pytest
import torch
from old_pickles import (
    EMBEDDING,
    FORMATS,
    IMAGE,
    MEAN,
    STD,
    ClassificationHead,
    Harm,
    ImageClassifier,
    ImageEncoder,
    save_old,
)
from torch import nn

from fusion_plugins.modelpool.openclip import OpenCLIPModelPool, load_encoder, load_head
from fusion_plugins.modelpool.openclip.unpickle import read_pickle

IMAGES = torch.rand(4, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return ImageEncoder().eval()


@pytest.fixture
def head():
    torch.manual_seed(1)
    return ClassificationHead(True, 3 * torch.randn(6, EMBEDDING), torch.randn(6))


@torch.no_grad()
def outputs(model, inputs=IMAGES):
    return model(inputs)


@pytest.mark.parametrize("form", FORMATS)
def test_a_trusted_encoder_computes_what_it_did_then(tmp_path, encoder, form):
    path = save_old(encoder, tmp_path / "zeroshot.pt", form)
    loaded = load_encoder(path, trust_pickle=True)
    assert not [n for n in sys.modules if n == "src" or n.startswith("src.")]
    torch.testing.assert_close(outputs(loaded), outputs(encoder), rtol=0, atol=1e-5)
    want = encoder.state_dict()
    assert list(loaded.state_dict().keys() ^ want.keys()) == []
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, want[name])


def test_a_record_has_the_state_dict_the_module_had(tmp_path, encoder):
    record = read_pickle(save_old(encoder, tmp_path / "a.pt"))
    assert "attn_mask" in record.child("model").__dict__["_buffers"]  # not persistent
    assert record.kind == "ImageEncoder"
    assert record.state_dict().keys() == encoder.state_dict().keys()


def test_the_activation_is_the_pickled_ones(tmp_path):
    torch.manual_seed(0)
    old = ImageEncoder(nn.GELU).eval()
    path = save_old(old, tmp_path / "gelu.pt")
    loaded = load_encoder(path, trust_pickle=True)
    assert loaded.architecture.model["quick_gelu"] is False
    torch.testing.assert_close(outputs(loaded), outputs(old), rtol=0, atol=1e-5)
    quick = ImageEncoder().eval()
    quick.load_state_dict(old.state_dict())
    assert (outputs(quick) - outputs(old)).abs().max() > 1e-3  # it matters here


def test_images_are_prepared_as_they_were(tmp_path, encoder):
    from PIL import Image

    loaded = load_encoder(save_old(encoder, tmp_path / "a.pt"), trust_pickle=True)
    steps = loaded.val_preprocess.transforms
    assert tuple(steps[-1].mean) == MEAN and tuple(steps[-1].std) == STD
    values = torch.randint(256, (21, 30, 3), dtype=torch.uint8).numpy()
    image = Image.fromarray(values)
    assert torch.equal(loaded.val_preprocess(image), encoder.val_preprocess(image))


def test_an_encoder_inside_a_classifier_is_found(tmp_path, encoder, head):
    path = save_old(ImageClassifier(encoder, head), tmp_path / "classifier.pt")
    loaded = load_encoder(path, trust_pickle=True)
    torch.testing.assert_close(outputs(loaded), outputs(encoder), rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", FORMATS)
def test_a_trusted_head_computes_what_it_did_then(tmp_path, head, form):
    features = torch.randn(5, EMBEDDING)
    loaded = load_head(save_old(head, tmp_path / "head.pt", form), trust_pickle=True)
    assert type(loaded).__module__ == "fusion_bench.models.open_clip.modeling"
    assert torch.equal(outputs(loaded, features), outputs(head, features))


def test_a_head_that_does_not_normalise_stays_so(tmp_path, head):
    head.normalize = False
    loaded = load_head(save_old(head, tmp_path / "head.pt"), trust_pickle=True)
    assert loaded.normalize is False


@pytest.mark.parametrize("form", FORMATS)
def test_refused_without_trust_with_risk_and_command(tmp_path, encoder, form):
    path = save_old(encoder, tmp_path / "finetuned.pt", form)
    with pytest.raises(ValueError, match="pickle of a whole module") as error:
        load_encoder(path)
    message = str(error.value)
    assert str(path) in message and "can run any code" in message
    assert f"convert {path} {tmp_path}/finetuned.safetensors --trust-pickle" in message
    assert "modelpool.trust_pickle=true" in message
    with pytest.raises(ValueError, match="pickle of a whole module"):
        load_head(path)


def harmful(tmp_path, form):
    trace, path = tmp_path / "trace", tmp_path / "harm.pt"
    if form in FORMATS[:2]:
        protocol = None if form == "pickle" else 2
        path.write_bytes(pickle.dumps({"weight": Harm(trace)}, protocol))
    elif form == "storage":  # inside what torch itself unpickles without a limit
        inner = io.BytesIO()
        torch.save(Harm(trace), inner)
        path.write_bytes(pickle.dumps(_Nested(inner.getvalue())))
    else:
        torch.save(Harm(trace), path, _use_new_zipfile_serialization=form == "archive")
    return path, trace


class _Nested:
    def __init__(self, content):
        self.content = content

    def __reduce__(self):
        return torch.storage._load_from_bytes, (self.content,)


@pytest.mark.parametrize("form", [*FORMATS, "storage"])
@pytest.mark.parametrize("load", [load_encoder, load_head])
def test_no_code_of_a_file_runs_trusted_or_not(tmp_path, form, load):
    path, trace = harmful(tmp_path, form)
    with pytest.raises(ValueError, match="pickle of a whole module"):
        load(path)
    with pytest.raises(ValueError, match="cannot be read as a pickled module"):
        load(path, trust_pickle=True)
    assert not trace.exists()


def test_the_harmful_files_do_harm_the_usual_way(tmp_path):
    path, trace = harmful(tmp_path, "pickle")
    pickle.loads(path.read_bytes())  # noqa: S301
    assert trace.exists()


def test_what_a_file_must_not_name_is_said(tmp_path):
    path, _ = harmful(tmp_path, "pickle")
    with pytest.raises(ValueError, match=r"it names (_?io)\.open, which no image"):
        load_encoder(path, trust_pickle=True)


@pytest.mark.parametrize("content", [b"", b"no pickle at all", b"\x80\x04"])
def test_damaged_files(tmp_path, content):
    path = tmp_path / "broken.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"\(or damaged\)"):
        load_encoder(path)
    with pytest.raises(ValueError, match="cannot be read as a pickled module"):
        load_encoder(path, trust_pickle=True)


def test_a_pickle_of_something_else(tmp_path):
    path = save_old({"epoch": 3}, tmp_path / "log.pt")
    with pytest.raises(ValueError, match="holds a dict, not a state dict or a module"):
        load_encoder(path, trust_pickle=True)


def test_the_pool_asks_for_trust_and_reads_both_forms(tmp_path, encoder, head):
    models = {
        "_pretrained_": str(save_old(encoder, tmp_path / "zeroshot.pt")),
        "a": str(save_old(encoder, tmp_path / "a.pt", "archive")),
    }
    heads = {"a": str(save_old(head, tmp_path / "head_a.pt"))}
    careful = OpenCLIPModelPool(models, classification_heads=heads)
    for load in (careful.load_model, careful.load_classification_head):
        with pytest.raises(ValueError, match="was not read"):
            load("a")
    pool = OpenCLIPModelPool(models, classification_heads=heads, trust_pickle=True)
    got = outputs(pool.load_model("a"))
    torch.testing.assert_close(got, outputs(encoder), rtol=0, atol=1e-5)
    assert torch.equal(pool.load_classification_head("a").weight, head.weight)
    with pytest.raises(ValueError, match="trust_pickle is 'yes', expected true or fal"):
        OpenCLIPModelPool(models, trust_pickle="yes")
