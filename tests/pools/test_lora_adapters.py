"""Experts that are LoRA adapters equal the models they were merged into."""

import json
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import transformers
from fusion_bench.modelpool import SequenceClassificationModelPool
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from test_accounting import (
    CLASSIFIER,
    FAMILIES,
    gpt2_pool,
    make_bert,
    make_gpt2,
    merged,
    move,
    prefixed,
    same,
    text_pool,
)
from torch import nn

from fusion_plugins import AWDAlgorithm
from fusion_plugins.pools.family import family_of
from fusion_plugins.pools.loading import load_model
from fusion_plugins.pools.task_heads import load_own_head

# Family -> the layers that are adapted.
TARGETS = {
    "clip": ["q_proj", "v_proj"],
    "clip config": ["fc1"],
    "lazy": ["q_proj"],
    "folders": ["q_proj", "visual_projection"],
    "bert": ["query", "value"],
    "roberta": ["query", "intermediate.dense"],
    "gpt2": ["c_attn"],
    "t5": ["q", "v"],
    "llama": ["q_proj", "down_proj"],
    "resnet": ["convolution"],
    "convnext": ["pwconv1"],
    "dinov2": ["query", "q_proj"],  # of transformers 4 and 5
}
HEADS = {"bert": ["classifier"], "roberta": ["classifier"], "dinov2": ["classifier"]}


def train_adapter(base: nn.Module, folder: Path, **options) -> nn.Module:
    """Save a random adapter; what it makes of the base."""
    options = {"r": 2, "lora_alpha": 3} | options
    model = get_peft_model(base, LoraConfig(**options))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model.merge_and_unload()


@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_equal_whole_models(name, tmp_path):
    make, pool_of, config, _ = FAMILIES[name]
    torch.manual_seed(0)
    base = make()
    base.save_pretrained(tmp_path / "base")
    move(base).save_pretrained(tmp_path / "aa")
    fresh = type(base).from_pretrained(tmp_path / "base")
    options = {"target_modules": TARGETS[name], "modules_to_save": HEADS.get(name)}
    whole = train_adapter(fresh, tmp_path / "adapter", **options)
    whole.save_pretrained(tmp_path / "whole")

    def pool(expert: str):
        places = {"_pretrained_": "base", "aa": "aa", "bb": expert}
        return pool_of({n: config(str(tmp_path / p)) for n, p in places.items()})

    want = merged(pool("whole"))
    plain = merged(pool("base"))
    assert any(not torch.equal(t, plain[n]) for n, t in want.items())
    same(merged(pool("adapter")), want)
    with pytest.raises(ValueError, match=r"^the base \('_pretrained_'\) is an adapter"):
        places = {"_pretrained_": "adapter", "aa": "aa"}
        merged(pool_of({n: config(str(tmp_path / p)) for n, p in places.items()}))


@pytest.fixture
def bert(tmp_path):
    """A bare encoder as the base, an adapter with a head of three classes, their pool."""
    torch.manual_seed(0)
    make_bert().bert.save_pretrained(tmp_path / "base")
    config = transformers.BertConfig.from_pretrained(tmp_path / "base", num_labels=3)
    base = transformers.BertForSequenceClassification.from_pretrained(
        tmp_path / "base", config=config
    )
    options = {"target_modules": ["query"], "task_type": "SEQ_CLS"}
    model = train_adapter(base, tmp_path / "adapter", **options)
    names = {"_pretrained_": "base", "bb": "adapter"}
    models = {name: CLASSIFIER(str(tmp_path / path)) for name, path in names.items()}
    return tmp_path, model, text_pool(SequenceClassificationModelPool)(models)


def test_an_adapter_brings_its_own_head(bert):
    _, model, pool = bert
    got = load_model(pool, "bb")
    same(got.state_dict(), model.state_dict())
    head = load_own_head(pool, "bb", "classifier")
    assert head.out_features == 3 and torch.equal(head.weight, model.classifier.weight)


def change_config(folder: Path, **values) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_an_adapter_without_head_on_a_base_without_head(bert):
    root, _, pool = bert
    file = root / "adapter" / "adapter_model.safetensors"
    content = {n: t for n, t in load_file(file).items() if "classifier" not in n}
    save_file(content, file)
    with pytest.raises(
        ValueError, match=r"^expert 'bb': .*does not fit.*classifier[^\n]*$"
    ):
        load_model(pool, "bb")
    change_config(root / "adapter", modules_to_save=None, task_type=None)
    with pytest.raises(ValueError, match="^expert 'bb' has no trained head"):
        load_model(pool, "bb")


@pytest.mark.parametrize("named", ["google/another-model", "/old/place/other"])
def test_an_adapter_of_another_base_is_refused(bert, named):
    root, _, pool = bert
    change_config(root / "adapter", base_model_name_or_path=named)
    message = rf"^expert 'bb' is an adapter of '{named}', but the pool's .*base'[^\n]*$"
    with pytest.raises(ValueError, match=message):
        load_model(pool, "bb")


@pytest.mark.parametrize("named", [None, "", "/old/place/base", "someone/Base"])
def test_the_same_base_may_lie_elsewhere(bert, named):
    root, model, pool = bert
    change_config(root / "adapter", base_model_name_or_path=named)
    same(load_model(pool, "bb").state_dict(), model.state_dict())


def test_tensors_that_do_not_fit_are_refused(bert):
    root, _, pool = bert
    file = root / "adapter" / "adapter_model.safetensors"
    content = load_file(file)
    save_file(prefixed("module.")(content), file)
    with pytest.raises(
        ValueError, match=r"^expert 'bb': the adapter .*does not fit a [^\n]*$"
    ):
        load_model(pool, "bb")
    deeper = {n.replace("layer.1", "layer.5"): t + 1 for n, t in content.items()}
    save_file(content | deeper, file)
    with pytest.raises(ValueError, match=r"^expert 'bb'.*layer.5[^\n]*$"):
        load_model(pool, "bb")
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"^expert 'bb': [^\n]*$"):
        load_model(pool, "bb")
    (root / "adapter" / "adapter_config.json").write_text("{")
    with pytest.raises(
        ValueError, match="^expert 'bb': .*adapter_config.json is damag"
    ):
        load_model(pool, "bb")


def test_an_adapter_without_its_weights_does_not_ask_the_hub(bert):
    root, _, pool = bert
    (root / "adapter" / "adapter_model.safetensors").unlink()
    message = "^expert 'bb': .*adapter has adapter_config.json, but none of .*Copy the"
    with pytest.raises(ValueError, match=message):
        load_model(pool, "bb")


def test_a_model_with_an_adapter_in_it_is_to_be_merged_first():
    base = nn.Sequential(nn.Linear(2, 2))
    expert = get_peft_model(deepcopy(base), LoraConfig(target_modules=["0"]))
    message = "expert 'a' is a model with an adapter of peft in it. .*merge_and_unload"
    with pytest.raises(ValueError, match=message):
        AWDAlgorithm().run({"_pretrained_": base, "a": expert})


def test_without_peft_one_line_says_what_to_install(bert, monkeypatch):
    _, _, pool = bert
    monkeypatch.setitem(sys.modules, "peft", None)
    message = r"^expert 'bb' is a LoRA adapter .*pip install 'fusion-plugins\[peft\]'"
    with pytest.raises(ModuleNotFoundError, match=message):
        load_model(pool, "bb")


def test_gpt2_classifiers_may_be_adapters(tmp_path):
    """Their trunks are merged; the heads come from the same adapters."""
    torch.manual_seed(0)
    make_gpt2().save_pretrained(tmp_path / "base")
    options = {"num_labels": 3, "pad_token_id": 0}
    base = transformers.GPT2ForSequenceClassification.from_pretrained(
        tmp_path / "base", **options
    )
    options = {"target_modules": ["c_proj"], "task_type": "SEQ_CLS"}
    model = train_adapter(base, tmp_path / "adapter", **options, fan_in_fan_out=True)
    config = FAMILIES["gpt2"][2]
    names = {"_pretrained_": "base", "bb": "adapter"}
    pool = gpt2_pool({n: config(str(tmp_path / path)) for n, path in names.items()})
    same(load_model(pool, "bb").state_dict(), model.transformer.state_dict())
    adapter = family_of(pool)(pool)
    adapter.device = torch.device("cpu")
    assert torch.equal(adapter.heads()["bb"].weight, model.score.weight)


def test_models_in_memory_are_not_changed_by_an_adapter(bert):
    root, model, pool = bert
    base = transformers.BertForSequenceClassification.from_pretrained(root / "base")
    before = {n: t.clone() for n, t in base.state_dict().items()}
    models = {"_pretrained_": base, "bb": pool._models["bb"]}
    pool = SequenceClassificationModelPool(models, tokenizer=None)
    same(load_model(pool, "bb").state_dict(), model.state_dict())
    same(base.state_dict(), before)
