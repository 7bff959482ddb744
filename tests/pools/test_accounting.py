"""Every tensor of every family is accounted for: right to the bit, or refused."""

import json
import os
import re
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import transformers
from fusion_bench.method import SimpleAverageAlgorithm
from fusion_bench.modelpool import (
    CausalLMPool,
    CLIPVisionModelPool,
    GPT2ForSequenceClassificationPool,
    Seq2SeqLMPool,
    SequenceClassificationModelPool,
    nyuv2_modelpool,
)
from fusion_bench.modelpool.nyuv2_modelpool import NYUv2ModelPool
from fusion_bench.utils import LazyStateDict
from omegaconf import OmegaConf
from packaging.version import Version
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from fusion_plugins import ConvNextPool, Dinov2Pool, ResNetPool
from fusion_plugins.modelpool.folders import accounted
from fusion_plugins.pools.loading import (
    load_model,
    load_task_vectors,
)
from fusion_plugins.pools.replaced import with_experts
from fusion_plugins.pools.task_heads import load_own_head
from fusion_plugins.task_vectors import as_coefficients, merge_into
from fusion_plugins.task_vectors.names import fitted_names

NAMES = ("_pretrained_", "aa", "bb")
BERT = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2}
BERT |= {"num_hidden_layers": 2}
TEXT = {"vocab_size": 18, "max_position_embeddings": 20}
VISION = {"image_size": 16, "patch_size": 8}


class TinyResNet(ResNet):
    """torchvision's, narrow."""

    def __init__(self, num_classes: int = 3, weights: None = None):
        super().__init__(BasicBlock, [1, 1, 1, 1])
        self.fc = nn.Linear(16, num_classes)

    def _make_layer(self, block, planes: int, blocks: int, *args, **kwargs):
        return super()._make_layer(block, planes // 32, blocks, *args, **kwargs)


def named(path: str) -> str:
    return path


def pretrained(target: str) -> Callable[[str], dict]:
    return lambda path: {
        "_target_": f"transformers.{target}.from_pretrained",
        "pretrained_model_name_or_path": path,
    }


def make_clip():
    sizes = BERT | {"projection_dim": 8}
    text = transformers.CLIPTextConfig(**sizes, **TEXT)
    vision = transformers.CLIPVisionConfig(**sizes, **VISION)
    config = transformers.CLIPConfig(
        text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8
    )
    return transformers.CLIPModel(config)


def make_gpt2():
    sizes = {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 20}
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=18, **sizes, bos_token_id=1, eos_token_id=2)
    )


def make_t5():
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 2, "num_heads": 2}
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=18, **sizes, decoder_start_token_id=0)
    )


def make_bert():
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(**BERT, **TEXT)
    )


def make_roberta():
    return transformers.RobertaForSequenceClassification(
        transformers.RobertaConfig(**BERT, **TEXT)
    )


def make_llama():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**BERT, **TEXT))


def make_resnet():
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    config = transformers.ResNetConfig(**sizes, layer_type="basic")
    return transformers.ResNetForImageClassification(config)


def make_convnext():
    sizes = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}
    config = transformers.ConvNextConfig(**sizes)
    return transformers.ConvNextForImageClassification(config)


def make_dinov2():
    return transformers.Dinov2ForImageClassification(
        transformers.Dinov2Config(**(BERT | VISION))
    )


class LazyPool(CLIPVisionModelPool):
    """Gives lazy state dicts, as FusionBench's pools of language models can."""

    def load_model(self, name, *args, **kwargs):
        kind = transformers.CLIPVisionModel
        return LazyStateDict(self._models[name], meta_module_class=kind)


def text_pool(kind):
    return lambda models: kind(OmegaConf.create(models), tokenizer=None)


def gpt2_pool(models):
    tokenizer = OmegaConf.create({"_target_": "builtins.dict"})
    models = OmegaConf.create(models)
    return GPT2ForSequenceClassificationPool(tokenizer, models=models)


def image_pool(kind, **options):
    return lambda models: kind(OmegaConf.create(models), **options)


CLIP_VISION = pretrained("CLIPVisionModel")
CLASSIFIER = pretrained("AutoModelForSequenceClassification")
# Family -> how to make a model, a pool, and a model's config; and a layer to leave out.
FAMILIES = {
    "clip": (make_clip, CLIPVisionModelPool, named, "vision_model.encoder.layers.1."),
    "clip config": (make_clip, CLIPVisionModelPool, CLIP_VISION, "vision_model.enc"),
    "lazy": (make_clip, LazyPool, named, "vision_model.encoder.layers.1."),
    "folders": (make_clip, dict, named, "vision_model.encoder.layers.1."),
    "bert": (
        make_bert,
        text_pool(SequenceClassificationModelPool),
        CLASSIFIER,
        "bert.encoder.layer.1.",
    ),
    "roberta": (
        make_roberta,
        text_pool(SequenceClassificationModelPool),
        CLASSIFIER,
        "roberta.encoder.layer.1.",
    ),
    "gpt2": (make_gpt2, gpt2_pool, pretrained("GPT2Model"), "transformer.h.1."),
    "t5": (
        make_t5,
        text_pool(Seq2SeqLMPool),
        pretrained("AutoModelForSeq2SeqLM"),
        "decoder.block.1.",
    ),
    "llama": (make_llama, text_pool(CausalLMPool), named, "model.layers.1."),
    "resnet": (
        make_resnet,
        image_pool(ResNetPool, type="transformers"),
        named,
        "resnet.encoder.stages.1.",
    ),
    "convnext": (
        make_convnext,
        image_pool(ConvNextPool),
        named,
        "convnext.encoder.stages.1.",
    ),
    "dinov2": (make_dinov2, image_pool(Dinov2Pool), named, "dinov2.encoder.layer.1."),
}
PREFIXES = ["module.", "_orig_mod.", "clip_model.", "model.", "module._orig_mod."]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """A family's folders, its pool, and its merge as it should be."""
    make, pool_of, config, layer = FAMILIES[request.param]
    root = tmp_path_factory.mktemp(request.param.replace(" ", "_"))
    torch.manual_seed(0)
    base = make()
    for name in NAMES:
        move(base).save_pretrained(root / name)

    def pool(**folders: Path):
        places = {name: str(root / name) for name in NAMES}
        places |= {name: str(path) for name, path in folders.items()}
        return pool_of({name: config(path) for name, path in places.items()})

    return pool, root, layer, merged(pool())


def move(model: nn.Module) -> nn.Module:
    model = deepcopy(model)
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def merged(pool) -> dict[str, torch.Tensor]:
    module, task_vectors = load_task_vectors(pool)
    weights = as_coefficients(task_vectors, torch.tensor([0.3, 0.6]))
    return deepcopy(merge_into(module, task_vectors, weights).state_dict())


def same(got: dict, want: dict) -> None:
    assert list(got) == list(want)
    for name, value in want.items():
        assert torch.equal(got[name], value), name


def rewritten(
    source: Path, target: Path, change: Callable[[dict], dict], pickle: bool = False
) -> Path:
    """A copy of a model folder whose tensors are changed."""
    target.mkdir(parents=True)
    (target / "config.json").write_text((source / "config.json").read_text())
    tensors = change(load_file(source / "model.safetensors"))
    if pickle:
        torch.save(tensors, target / "pytorch_model.bin")
    else:
        save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


def prefixed(prefix: str) -> Callable[[dict], dict]:
    return lambda tensors: {prefix + name: t.clone() for name, t in tensors.items()}


def without(layer: str) -> Callable[[dict], dict]:
    return lambda ts: {name: t for name, t in ts.items() if not name.startswith(layer)}


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_known_prefix_changes_nothing(family, tmp_path, prefix):
    pool, root, _, want = family
    change = prefixed(prefix)
    expert = rewritten(root / "aa", tmp_path / "aa", change)
    same(merged(pool(aa=expert)), want)
    base = rewritten(root / "_pretrained_", tmp_path / "base", change, pickle=True)
    same(merged(pool(aa=expert, _pretrained_=base)), want)


def test_a_missing_layer_is_refused(family, tmp_path):
    pool, root, layer, _ = family
    for name, label in (("bb", "expert 'bb'"), ("_pretrained_", "the base")):
        folder = rewritten(root / name, tmp_path / name, without(layer))
        with pytest.raises(ValueError, match=refusal(label, folder, "lack", layer)):
            merged(pool(**{name: folder}))


def refusal(label: str, folder: Path, verb: str, layer: str) -> str:
    bare = re.escape(layer.partition(".")[2])
    return rf"^{label}.*{re.escape(str(folder))} {verb} \d+ tensor.*{bare}[^\n]*$"


def test_a_layer_too_many_is_refused(family, tmp_path):
    pool, root, layer, _ = family
    deeper = re.sub(r"\.(1|enc)\.?$", ".7.weight", layer)
    deeper = "vision_model.encoder.layers.7.weight" if "enc" in layer[-4:] else deeper

    def change(tensors: dict) -> dict:
        return tensors | {deeper: torch.ones(1)}

    folder = rewritten(root / "bb", tmp_path / "bb", change)
    with pytest.raises(ValueError, match=refusal("expert 'bb'", folder, "hold", ".7.")):
        merged(pool(bb=folder))


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("damage", ["truncated", "pointer"])
def test_a_damaged_file_is_named(family, tmp_path, kind, damage):
    pool, root, _, _ = family
    folder = rewritten(root / "bb", tmp_path / "bb", dict, kind == "bin")
    file = next(f for f in folder.iterdir() if f.suffix in (".safetensors", ".bin"))
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    file.write_bytes(file.read_bytes()[:-99] if damage == "truncated" else pointer)
    with pytest.raises(ValueError, match=r"^expert 'bb'[^\n]*git lfs pull") as caught:
        merged(pool(bb=folder))
    assert str(file) in str(caught.value)


# -- what single families have of their own ----------------------------------------------


@pytest.fixture
def bert(tmp_path):
    """Folders of BERT classifiers, and their pool."""
    torch.manual_seed(0)
    base = make_bert()
    for name in NAMES:
        move(base).save_pretrained(tmp_path / name)
    models = {name: CLASSIFIER(str(tmp_path / name)) for name in NAMES}
    return tmp_path, text_pool(SequenceClassificationModelPool)(models)


@pytest.fixture
def clip(tmp_path):
    torch.manual_seed(0)
    base = make_clip()
    for name in NAMES:
        move(base).save_pretrained(tmp_path / name)
    return tmp_path, {name: str(tmp_path / name) for name in NAMES}


@pytest.mark.parametrize("names", [["aa"], ["_pretrained_"], list(NAMES)])
def test_clip_folders_of_transformers_5_have_no_tower_in_their_names(
    clip, tmp_path, names, caplog
):
    """Before, random weights took the place of all of them."""
    root, folders = clip
    want = merged(CLIPVisionModelPool(folders))

    def vision_alone(tensors: dict) -> dict:
        tower = "vision_model."
        return {n.removeprefix(tower): t for n, t in tensors.items() if tower in n}

    new = {n: str(rewritten(root / n, tmp_path / "5" / n, vision_alone)) for n in names}
    with caplog.at_level("DEBUG", "fusion_plugins"):
        same(merged(CLIPVisionModelPool(folders | new)), want)
    if next(iter(want)).startswith("vision_model."):  # transformers 4
        assert "differ by a known prefix; '" in caplog.text


def test_names_with_a_tower_fit_classes_without():
    stored = ["vision_model.a", "module.vision_model.b", "text_model.a", "c"]
    fitted = fitted_names(stored, ["a", "b", "c", "d"])
    assert fitted == {"a": "vision_model.a", "b": "module.vision_model.b", "c": "c"}


def test_two_tensors_for_one_place_are_refused(clip, tmp_path):
    root, folders = clip

    def both(tensors: dict) -> dict:
        half = dict(list(tensors.items())[5:])
        return half | prefixed("module.")({n: t + 1 for n, t in tensors.items()})

    folders |= {"aa": str(rewritten(root / "aa", tmp_path / "x", both))}
    with pytest.raises(ValueError, match="expert 'aa'.* could be the tensor"):
        merged(CLIPVisionModelPool(folders))


def test_the_text_tower_of_the_heads_must_be_there_too(clip, tmp_path):
    root, _ = clip
    rewritten(root / "_pretrained_", tmp_path / "vision", without("text_model."))
    with pytest.raises(ValueError, match=r"the base:.*lack \d+ tensor.*text_model"):
        with accounted("the base"):
            pool = CLIPVisionModelPool({"_pretrained_": str(tmp_path / "vision")})
            pool.load_clip_model("_pretrained_")


def test_buffers_and_towers_that_hub_files_hold_are_no_mistake(tmp_path, monkeypatch):
    """Such files are still read in place: nothing is loaded but the base."""
    torch.manual_seed(0)
    base = make_gpt2()
    folders = {}

    def as_on_the_hub(tensors: dict) -> dict:
        mask = torch.ones(1, 1, 20, 20, dtype=torch.uint8)
        tensors = {n.removeprefix("transformer."): t for n, t in tensors.items()}
        return tensors | {f"h.{i}.attn.bias": mask.clone() for i in range(2)}

    for name in NAMES:
        move(base).save_pretrained(tmp_path / "new" / name)
        source = tmp_path / "new" / name
        folders[name] = rewritten(source, tmp_path / "hub" / name, as_on_the_hub)
    config = FAMILIES["gpt2"][2]
    want = merged(gpt2_pool({n: config(str(tmp_path / "new" / n)) for n in NAMES}))
    pool, asked = gpt2_pool({n: config(str(p)) for n, p in folders.items()}), []
    load = type(pool).load_model
    monkeypatch.setattr(
        type(pool), "load_model", lambda self, n, *a: asked.append(n) or load(self, n)
    )
    same(merged(pool), want)
    assert asked == ["_pretrained_"]


def test_a_base_may_have_a_new_head_but_an_expert_may_not(bert):
    root, pool = bert
    want = merged(pool)
    base = transformers.BertForMaskedLM(transformers.BertConfig(**BERT, **TEXT))
    trunk = transformers.BertForSequenceClassification.from_pretrained(
        root / "_pretrained_"
    ).bert
    # Cloned: the file that they may be mapped from is written over.
    state = {f"bert.{n}": t.clone() for n, t in trunk.state_dict().items()}
    heads = {n: t for n, t in base.state_dict().items() if n.startswith("cls.")}
    for name in ("_pretrained_", "bb"):
        save_file(state, root / name / "model.safetensors", {"format": "pt"})
        if name == "_pretrained_":  # as on the hub: the head of its own pretraining
            content = {n: t.clone() for n, t in (state | heads).items()}
            save_file(content, root / name / "model.safetensors", {"format": "pt"})
            got = merged(pool)
            assert all(torch.equal(got[n], want[n]) for n in want if "bert." in n)
    with pytest.raises(ValueError, match="^expert 'bb' has no trained head: .*classif"):
        merged(pool)
    with pytest.raises(ValueError, match="^expert 'bb' has no trained head: .*classif"):
        load_own_head(pool, "bb", "classifier")


def test_another_shape_is_one_line(bert):
    root, pool = bert
    narrow = transformers.BertConfig(**(BERT | {"intermediate_size": 6}), **TEXT)
    state = transformers.BertForSequenceClassification(narrow).state_dict()
    save_file(state, root / "bb" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"^expert 'bb'[^\n]*intermediate[^\n]*$"):
        load_model(pool, "bb")


def test_methods_of_fusion_bench_get_accounted_models_from_a_view(bert, tmp_path):
    root, pool = bert
    # Copies: older transformers map tensors from the files that are written over here.
    want = deepcopy(SimpleAverageAlgorithm().run(pool).state_dict())
    file = root / "_pretrained_" / "model.safetensors"
    base = deepcopy(pool.load_model("_pretrained_")).state_dict()
    save_file(prefixed("module.")(load_file(file)), file, {"format": "pt"})
    view = with_experts(pool, lambda name: load_model(pool, name))
    same(view.load_model("_pretrained_").state_dict(), base)
    for name in ("aa", "bb"):
        file = root / name / "model.safetensors"
        save_file(prefixed("_orig_mod.")(load_file(file)), file, {"format": "pt"})
    same(SimpleAverageAlgorithm().run(view).state_dict(), want)


def torchvision_pool(root: Path, monkeypatch) -> ResNetPool:
    import torchvision

    monkeypatch.setattr(torchvision.models, "narrow", TinyResNet, raising=False)
    torch.manual_seed(0)
    base, models = TinyResNet(), {}
    for name in NAMES:
        file = root / f"{name}.pt"
        torch.save(move(base).state_dict(), file)
        models[name] = {
            "model_name": "narrow",
            "num_classes": 3,
            "checkpoint": str(file),
        }
    return ResNetPool(OmegaConf.create(models), type="torchvision")


def test_torchvision_checkpoints(tmp_path, monkeypatch):
    pool = torchvision_pool(tmp_path, monkeypatch)
    want, file = merged(pool), tmp_path / "bb.pt"
    state = torch.load(file)
    torch.save({"state_dict": prefixed("module.")(state), "epoch": 3}, file)
    same(merged(pool), want)
    torch.save(without("layer2.")(state), file)
    message = r"^expert 'bb'.*bb.pt lack \d+ tensor.*layer2[^\n]*$"
    with pytest.raises(ValueError, match=message):
        merged(pool)
    file.write_bytes(file.read_bytes()[:-999])
    with pytest.raises(ValueError, match=r"^expert 'bb'.*bb.pt is truncated[^\n]*$"):
        merged(pool)


class TinyEncoder(nn.Sequential):
    """Stands for FusionBench's dilated ResNet-50."""

    def __init__(self, name: str = "tiny"):
        super().__init__(nn.Conv2d(3, 2, 3), nn.Conv2d(2, 2, 1))


def test_nyuv2_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setattr(nyuv2_modelpool, "resnet_dilated", TinyEncoder)
    monkeypatch.setattr(
        nyuv2_modelpool,
        "DeepLabHead",
        lambda features, channels: nn.Linear(2, channels),
    )
    models = {"_pretrained_": {"encoder": "tiny", "decoders": ["depth", "normal"]}}
    for name in ("depth", "normal"):
        path = tmp_path / f"{name}.ckpt"
        models[name] = {"encoder": "tiny", "decoders": [name], "ckpt_path": str(path)}
    pool = NYUv2ModelPool(OmegaConf.create(models))
    whole = NYUv2ModelPool.load_model
    for name in ("depth", "normal"):
        saved = {k: v for k, v in models[name].items() if k != "ckpt_path"}
        model = whole(pool, OmegaConf.create(saved), encoder_only=False)
        torch.save(model.state_dict(), tmp_path / f"{name}.ckpt")
    want = load_model(pool, "normal", encoder_only=False).state_dict()
    path = tmp_path / "normal.ckpt"
    state = torch.load(path)
    torch.save({"state_dict": prefixed("model.")(state)}, path)
    same(load_model(pool, "normal", encoder_only=False).state_dict(), want)
    torch.save(without("encoder.1")(state), path)
    with pytest.raises(ValueError, match="^expert 'normal'.*lack 2 tensor.*encoder.1"):
        load_model(pool, "normal")
    torch.save(without("decoders.")(state), path)
    load_model(pool, "normal")  # the encoder alone is there
    with pytest.raises(ValueError, match="^expert 'normal' has no trained head"):
        load_model(pool, "normal", encoder_only=False)


def test_a_damaged_index_of_shards_is_named(bert):
    root, pool = bert
    transformers.AutoModelForSequenceClassification.from_pretrained(
        root / "bb"
    ).save_pretrained(root / "bb", max_shard_size="2KB")
    index = root / "bb" / "model.safetensors.index.json"
    (root / "bb" / "model.safetensors").unlink(missing_ok=True)
    load_model(pool, "bb")
    contents = ("{", "[]", "{}", '{"metadata": {}, "weight_map": {}}')
    for content in (*contents, '{"metadata": {}, "weight_map": ["a"]}'):
        index.write_text(content)
        message = rf"^expert 'bb'[^\n]*{re.escape(str(index))}[^\n]*again[^\n]*$"
        with pytest.raises(ValueError, match=message):
            merged(pool)


QUANTISATION = {"quant_method": "gptq", "bits": 4}


def quantise(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = QUANTISATION
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("name", ["_pretrained_", "bb"])
def test_quantised_models_are_refused(family, tmp_path, name):
    pool, root, _, _ = family
    folder = rewritten(root / name, tmp_path / name, dict)
    quantise(folder)
    label = "the base" if name == "_pretrained_" else "expert 'bb'"
    message = rf"^{label}[^\n]*is quantised \(gptq\)[^\n]*dequantise it[^\n]*$"
    with pytest.raises(ValueError, match=message):
        merged(pool(**{name: folder}))


def test_modules_that_were_loaded_quantised_are_refused():
    models = {name: make_bert() for name in NAMES}
    models["bb"].config.quantization_config = QUANTISATION
    with pytest.raises(
        ValueError, match=r"^expert 'bb'.*in memory is quantised \(gptq"
    ):
        merged(models)


def test_options_that_quantise_are_refused(bert):
    root, _ = bert
    models = {name: CLASSIFIER(str(root / name)) for name in NAMES}
    models["bb"]["load_in_4bit"] = True
    pool = text_pool(SequenceClassificationModelPool)(models)
    with pytest.raises(ValueError, match="^expert 'bb' is loaded with load_in_4bit"):
        merged(pool)


# -- which weights, and which folder ---------------------------------------------------


def test_two_sets_of_weights_in_a_folder_are_refused(family, tmp_path):
    pool, root, _, _ = family
    expert = rewritten(root / "aa", tmp_path / "aa", dict)
    shards = {"weight_map": dict.fromkeys(load_file(expert / "model.safetensors"), "s")}
    (expert / "s").touch()
    (expert / "model.safetensors.index.json").write_text(json.dumps(shards))
    message = (
        "expert 'aa': .* holds two sets of weights, .*Delete the one that is out of"
    )
    with pytest.raises(ValueError, match=message):
        merged(pool(aa=expert))


@pytest.mark.parametrize("index", ["", "{", '{"weight_map": {"a": "consolidated-1"}}'])
def test_an_index_that_transformers_does_not_read_is_left(family, tmp_path, index):
    """Mistral's models are on the hub in two forms."""
    pool, root, _, want = family
    expert = rewritten(root / "aa", tmp_path / "aa", dict)
    (expert / "consolidated-1").touch()
    (expert / "consolidated.safetensors.index.json").write_text(index)
    same(merged(pool(aa=expert)), want)


@pytest.mark.parametrize("hours", [0, 2])
def test_newer_weights_that_nobody_reads_are_said(family, tmp_path, caplog, hours):
    pool, root, _, want = family
    expert = rewritten(root / "aa", tmp_path / "aa", dict)
    pickled = rewritten(root / "bb", tmp_path / "bb", dict, pickle=True)
    newer = (pickled / "pytorch_model.bin").rename(expert / "pytorch_model.bin")
    time = newer.stat().st_mtime + 3600 * hours
    os.utime(newer, (time, time))
    same(merged(pool(aa=expert)), want)
    said = "pytorch_model.bin is newer than model.safetensors, which is read"
    assert (said in caplog.text) == bool(hours)


def in_two_shards(folder: Path) -> None:
    first, last = sorted(folder.glob("*.safetensors"))[::2][:2]
    save_file(load_file(first) | load_file(last), last, {"format": "pt"})


def from_elsewhere(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    shard = next(folder.glob("*.safetensors"))
    shard.rename(folder.parent / "elsewhere.safetensors")
    named = index.read_text().replace(shard.name, "../elsewhere.safetensors")
    index.write_text(named)


def under_two_names(folder: Path) -> None:
    shard = next(folder.glob("*.safetensors"))
    tensors = load_file(shard)
    name = next(iter(tensors))
    tensors["model." + name] = tensors[name] + 5
    save_file(tensors, shard, {"format": "pt"})


def as_codes(dtype: torch.dtype) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for shard in folder.glob("*.safetensors"):
            tensors = {name: t.to(dtype) for name, t in load_file(shard).items()}
            save_file(tensors, shard, {"format": "pt"})

    return change


BAD_WEIGHTS = {
    "in two shards": (in_two_shards, "is both in .* and in .*each tensor once"),
    "from elsewhere": (from_elsewhere, r"names '\.\./elsewhere.safetensors', which is"),
    "two names": (under_two_names, "both '.*' and '.*' could be the tensor '.*Remove"),
    "int8": (as_codes(torch.int8), "is torch.int8, .*in (a floating dtype|bfloat16)"),
    "bool": (as_codes(torch.bool), "is torch.bool, .*in (a floating dtype|bfloat16)"),
    "float8": (as_codes(torch.float8_e4m3fn), "is torch.float8_e4m3fn.*bfloat16"),
    "uint16": (as_codes(torch.uint16), "has dtype U16, known are"),
    "complex": (as_codes(torch.complex64), "has dtype C64, known are"),
}


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    torch.manual_seed(0)
    root, base = tmp_path_factory.mktemp("sharded"), make_llama()
    for name in NAMES:
        move(base).save_pretrained(root / name, max_shard_size="1KB")
    return root


@pytest.mark.filterwarnings("ignore:Casting complex values")
@pytest.mark.parametrize("name", ["_pretrained_", "aa"])
@pytest.mark.parametrize(
    ("spoil", "message"), BAD_WEIGHTS.values(), ids=list(BAD_WEIGHTS)
)
def test_weights_that_are_not_the_models_own_are_refused(
    sharded, tmp_path, name, spoil, message
):
    root = tmp_path / "models"
    shutil.copytree(sharded, root)
    spoil(root / name)
    label = "expert 'aa'" if name == "aa" else r"the base \('_pretrained_'\)"
    if Version(transformers.__version__).major < 5:  # which may say it itself
        message = f"({message}|cannot be loaded.*While copying)"
    with pytest.raises(ValueError, match=f"^{label}: [^\n]*{message}[^\n]*$"):
        merged({name: str(root / name) for name in NAMES})


def test_an_index_without_metadata_is_named(sharded, tmp_path):
    root = tmp_path / "models"
    shutil.copytree(sharded, root)
    index = root / "_pretrained_" / "model.safetensors.index.json"
    kept = json.loads(index.read_text())
    index.write_text(json.dumps({"weight_map": kept["weight_map"]}))
    message = rf"^the base .*{re.escape(str(index))} has no 'metadata'.*Put .*$"
    with pytest.raises(ValueError, match=message):
        merged({name: str(root / name) for name in NAMES})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("dtype", "float99", "cannot be loaded: .*float99"),
        ("architectures", [3], r"names the architectures \[3\], none of which"),
        (
            "architectures",
            ["pipeline"],
            r"names the architectures \['pipeline'\], none",
        ),
    ],
)
def test_an_odd_value_in_a_config_is_one_line(sharded, tmp_path, key, value, message):
    root = tmp_path / "models"
    shutil.copytree(sharded, root)
    file = root / "_pretrained_" / "config.json"
    odd = {key: value, f"torch_{key}": value}  # dtype in older releases
    file.write_text(json.dumps(json.loads(file.read_text()) | odd))
    with pytest.raises(ValueError, match=f"^the base [^\n]*{message}[^\n]*$"):
        merged({name: str(root / name) for name in NAMES})


@pytest.mark.parametrize(("key", "value"), [("dtype", "float99"), ("hidden_size", "8")])
def test_an_experts_odd_config_is_said_in_one_line(
    sharded, tmp_path, caplog, key, value
):
    root = tmp_path / "models"
    shutil.copytree(sharded, root)
    file = root / "aa" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    merged({name: str(root / name) for name in NAMES})
    said = [r.getMessage() for r in caplog.records if "not compared" in r.getMessage()]
    assert all("expert 'aa': its config" in line and "\n" not in line for line in said)


# -- threads ----------------------------------------------------------------------------


def test_models_are_loaded_from_several_threads(sharded):
    """Transformers is as it was afterwards, and other threads load as they would."""
    before = transformers.PreTrainedModel.__dict__["from_pretrained"]
    pool = {name: str(sharded / name) for name in NAMES}
    want = merged(pool)
    barrier = threading.Barrier(3, timeout=60)

    def merge(_) -> dict[str, torch.Tensor]:
        barrier.wait()
        return [merged(pool) for _ in range(3)][-1]

    with ThreadPoolExecutor(3) as threads:
        for found in threads.map(merge, range(3)):
            same(found, want)
    assert transformers.PreTrainedModel.__dict__["from_pretrained"] is before


def test_other_threads_load_as_without_us(bert):
    root, _ = bert
    transformers.BertModel(transformers.BertConfig(**BERT, **TEXT)).save_pretrained(
        root / "headless"
    )
    kind = transformers.BertForSequenceClassification
    with accounted("ours"):
        with pytest.raises(ValueError, match="^ours"):
            with accounted("ours"):
                kind.from_pretrained(root / "headless")
        with ThreadPoolExecutor(1) as thread:
            loading = thread.submit(kind.from_pretrained, root / "headless")
            assert loading.result().classifier is not None


def test_a_folder_that_is_not_there_is_named(family, tmp_path):
    pool = family[0]
    with pytest.raises(ValueError, match="^expert 'aa': ") as error:
        merged(pool(aa=tmp_path / "gone"))
    assert str(tmp_path / "gone") in str(error.value)
    assert "\n" not in str(error.value)
