"""Every kind of pool gives the task vectors of the models it would load."""

import os
import re
import signal
import tempfile
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from fusion_bench.modelpool import (
    BaseModelPool,
    CausalLMPool,
    CLIPVisionModelPool,
    Seq2SeqLMPool,
)
from fusion_bench.utils import LazyStateDict
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
)

from fusion_plugins.pools import as_modelpool, load_base, load_task_vectors
from fusion_plugins.pools import loading as pool_loading
from fusion_plugins.pools.model_files import code_options, pool_dtype, tokenizer_source
from fusion_plugins.task_vectors import (
    SafetensorsCheckpoint,
    TaskVectors,
    as_coefficients,
    gram_matrices,
    merge_into,
)
from fusion_plugins.task_vectors.checkpoint import SpilledCheckpoint

NAMES = ("_pretrained_", "mnist", "svhn")
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
SIZES |= {"num_hidden_layers": 2, "projection_dim": 8}


def tiny_clip(seed: int) -> CLIPModel:
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(image_size=16, patch_size=8, **SIZES)
    text = CLIPTextConfig(vocab_size=50, max_position_embeddings=10, **SIZES)
    config = CLIPConfig(
        text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8
    )
    return CLIPModel(config).eval()


@pytest.fixture(scope="module")
def clips() -> dict[str, CLIPModel]:
    return {name: tiny_clip(seed) for seed, name in enumerate(NAMES)}


@pytest.fixture(scope="module")
def folders(clips, tmp_path_factory) -> dict[str, str]:
    """CLIP folders with both towers, as they are on the hub."""
    root = tmp_path_factory.mktemp("clip")
    for name, model in clips.items():
        model.save_pretrained(root / name)
    return {name: str(root / name) for name in clips}


def loaded(folders: dict[str, str]) -> dict[str, nn.Module]:
    return {n: CLIPVisionModel.from_pretrained(path) for n, path in folders.items()}


def merge(models, keep=()) -> dict[str, torch.Tensor]:
    module, task_vectors = load_task_vectors(models, keep)
    weights = torch.tensor([0.3, 0.6])
    merge_into(module, task_vectors, as_coefficients(task_vectors, weights))
    return module.state_dict()


def same(got: dict, want: dict) -> None:
    assert list(got) == list(want)
    for name, value in want.items():
        assert got[name].dtype == value.dtype
        assert torch.equal(got[name], value), name


def reference(folders: dict[str, str]) -> dict[str, torch.Tensor]:
    """The merge of the vision towers, loaded one by one by transformers."""
    models = loaded(folders)
    base = models.pop("_pretrained_")
    task_vectors = TaskVectors.from_modules(base, models)
    weights = as_coefficients(task_vectors, torch.tensor([0.3, 0.6]))
    return merge_into(deepcopy(base), task_vectors, weights).state_dict()


def test_a_clip_pool_merges_the_vision_tower_alone(folders):
    module, task_vectors = load_task_vectors(CLIPVisionModelPool(folders))
    assert type(module) is CLIPVisionModel
    assert task_vectors.tasks == ("mnist", "svhn")
    assert set(task_vectors.keys) <= set(module.state_dict())
    assert not any("text" in key for key in task_vectors.keys)
    assert len(task_vectors.keys) == len(list(module.parameters()))


def test_a_clip_pool_is_read_in_place_and_equals_loading(folders, monkeypatch):
    want = reference(folders)
    asked = []
    load_model = CLIPVisionModelPool.load_model

    def counted(self, name, *args, **kwargs):
        asked.append(name)
        return load_model(self, name, *args, **kwargs)

    monkeypatch.setattr(CLIPVisionModelPool, "load_model", counted)
    same(merge(CLIPVisionModelPool(folders)), want)
    assert asked == ["_pretrained_"]


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize(
    "values, said",
    [
        ({"layer_norm_eps": 0.5}, ["layer_norm_eps=0.5", "the base has 1e-05"]),
        ({"hidden_act": "gelu"}, ["hidden_act='gelu'", "has 'quick_gelu'"]),
        ({"attention_dropout": 0.1, "initializer_range": 0.5}, []),
    ],
)
def test_config_values_that_differ_are_said(
    clips, folders, tmp_path, caplog, values, said, in_memory
):
    other = deepcopy(clips["svhn"])
    for name, value in values.items():
        setattr(other.config.vision_config, name, value)
    other.save_pretrained(tmp_path)
    pool = folders | {"svhn": str(tmp_path)}
    models = loaded(pool) if in_memory else CLIPVisionModelPool(pool)
    with caplog.at_level("WARNING", "fusion_plugins"):
        load_task_vectors(models)
    every = [record.getMessage() for record in caplog.records]
    found = [message for message in every if "in its config" in message]
    assert len(found) == bool(said)
    assert all(f"expert 'svhn' has {said[0]} in its config" in f for f in found)
    assert all(part in message for part in said for message in found)


def test_half_precision_folders_equal_loading(clips, tmp_path):
    folders = {}
    for name, model in clips.items():
        folders[name] = str(tmp_path / name)
        deepcopy(model).half().save_pretrained(folders[name])
    same(merge(CLIPVisionModelPool(folders)), reference(folders))


def test_sharded_folders_equal_loading(clips, tmp_path):
    folders = {}
    for name, model in clips.items():
        folders[name] = str(tmp_path / name)
        model.save_pretrained(folders[name], max_shard_size="20KB")
    assert len(list((tmp_path / "mnist").glob("*.safetensors"))) > 1
    same(merge(CLIPVisionModelPool(folders)), reference(folders))


def test_pickles_are_loaded_by_transformers(clips, folders, tmp_path):
    pickled = dict(folders, mnist=str(tmp_path / "mnist"))
    clips["mnist"].save_pretrained(pickled["mnist"])
    tensors = Path(pickled["mnist"], "model.safetensors")
    torch.save(load_file(tensors), Path(pickled["mnist"], "pytorch_model.bin"))
    tensors.unlink()
    same(merge(CLIPVisionModelPool(pickled)), reference(folders))
    with pytest.raises(ValueError, match="expert 'mnist': .*Convert pickles once"):
        TaskVectors.from_checkpoints(
            folders["_pretrained_"], {"mnist": pickled["mnist"]}
        )


def test_model_configs_are_instantiated(folders, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    spilled = []
    init = pool_loading.SpilledCheckpoint.__init__

    def watched(self, model, label):
        init(self, model, label)
        spilled.append(list(tmp_path.iterdir()))

    monkeypatch.setattr(pool_loading.SpilledCheckpoint, "__init__", watched)
    target = "transformers.CLIPVisionModel.from_pretrained"
    configs = OmegaConf.create(
        {
            name: {"_target_": target, "pretrained_model_name_or_path": path}
            for name, path in folders.items()
        }
    )
    same(merge(CLIPVisionModelPool(configs)), reference(folders))
    assert spilled == [[], []], "temporary copies have names"


def test_a_pool_class_that_changes_models_while_loading_is_asked_for_them(folders):
    class Doubling(CLIPVisionModelPool):
        def load_model(self, name, *args, **kwargs):
            model = super().load_model(name, *args, **kwargs)
            tower = getattr(model, "vision_model", model)
            tower.post_layernorm.bias.data.add_(1 + (name == "mnist"))
            return model

    got, want = merge(Doubling(folders)), reference(folders)
    (key,) = (name for name in want if name.endswith("post_layernorm.bias"))
    torch.testing.assert_close(got[key], want[key] + 1 + 0.3)


def test_folders_load_as_the_class_their_config_names(clips, folders):
    module, task_vectors = load_task_vectors({n: Path(p) for n, p in folders.items()})
    assert type(module) is CLIPModel
    assert any("text_model" in key for key in task_vectors.keys)
    gram = gram_matrices(task_vectors).values
    modules = TaskVectors.from_modules(
        clips["_pretrained_"], {n: clips[n] for n in NAMES[1:]}
    )
    torch.testing.assert_close(gram, gram_matrices(modules).values, rtol=1e-12, atol=0)


def test_folders_and_modules_give_the_same_merge(clips, folders):
    got, want = merge(folders), merge(clips)
    assert set(got) == set(want)
    same({name: got[name] for name in want}, want)


def test_a_dict_of_modules_is_read_and_not_changed(clips):
    before = {n: deepcopy(m.state_dict()) for n, m in clips.items()}
    module, task_vectors = load_task_vectors(clips)
    assert module is not clips["_pretrained_"]
    merged = merge(clips)
    assert not torch.equal(
        merged["logit_scale"] + merged["visual_projection.weight"].sum(),
        before["_pretrained_"]["logit_scale"]
        + before["_pretrained_"]["visual_projection.weight"].sum(),
    )
    for name, model in clips.items():
        same(model.state_dict(), before[name])


def test_the_base_module_is_the_callers_own(clips, folders):
    pool = BaseModelPool(dict(clips))
    first, second = load_base(pool), load_base(pool)
    assert first is not second is not clips["_pretrained_"]
    same(first.state_dict(), clips["_pretrained_"].state_dict())


def test_lazy_state_dicts_of_a_pool_equal_loading(folders):
    class LazyPool(CLIPVisionModelPool):
        def load_model(self, name, *args, **kwargs):
            return LazyStateDict(self._models[name], meta_module_class=CLIPVisionModel)

    got, want = merge(LazyPool(folders)), reference(folders)
    same({n: got[n] for n in want}, want)
    module = load_base(LazyPool(folders))
    loaded_base = CLIPVisionModel.from_pretrained(folders["_pretrained_"])
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(
            module.eval()(image).pooler_output, loaded_base(image).pooler_output
        )


def test_kept_patterns_reach_the_task_vectors(folders):
    merged = merge(CLIPVisionModelPool(folders), ["*embeddings*"])
    base = CLIPVisionModel.from_pretrained(folders["_pretrained_"]).state_dict()
    moved = [n for n in base if not torch.equal(base[n], merged[n])]
    assert moved and not any("embeddings" in name for name in moved)


def test_special_models_are_not_experts(clips, caplog):
    _, task_vectors = load_task_vectors(clips | {"_merged_": clips["svhn"]})
    assert task_vectors.tasks == ("mnist", "svhn")
    assert "The model '_merged_' is left out" in caplog.text
    assert "'_pretrained_' is left out" not in caplog.text


def linear(size=3) -> nn.Module:
    return nn.Linear(size, 2)


class Shared(nn.Module):
    """A decoder that is its encoder's transpose; copies of buffers share memory too."""

    def __init__(self):
        super().__init__()
        self.register_buffer("encoder", torch.ones(2, 3))
        self.register_buffer("decoder", self.encoder.t())


class Repeated(nn.Module):
    """A buffer that holds one number many times, and two that lie side by side."""

    def __init__(self, value: float):
        super().__init__()
        self.register_buffer("scale", torch.tensor([[value]]).expand(2, 3))
        both = torch.tensor([1.0, 2.0, 3.0, 4.0]) * value
        self.register_buffer("left", both[:2])
        self.register_buffer("right", both[2:])


def test_repeated_numbers_are_merged_as_whole_tensors():
    models = {"_pretrained_": Repeated(1.0), "a": Repeated(2.0), "b": Repeated(3.0)}
    merged = merge(models)  # 1 + 0.3 * (2 - 1) + 0.6 * (3 - 1)
    torch.testing.assert_close(merged["scale"], torch.full((2, 3), 2.5))
    torch.testing.assert_close(merged["left"], torch.tensor([2.5, 5.0]))
    torch.testing.assert_close(merged["right"], torch.tensor([7.5, 10.0]))
    assert models["_pretrained_"].scale.stride() == (0, 0)


BAD_POOLS = {
    "a list": (
        [linear(), linear()],
        TypeError,
        "model pool is a list; expected a FusionBench model pool, a dict of nn.Module,"
        " or a dict of folders, with the pretrained model under '_pretrained_'",
    ),
    "a module": (linear(), TypeError, "model pool is a Linear; expected"),
    "mixed": (
        {"_pretrained_": linear(), "a": "folder"},
        TypeError,
        "all modules or all folders; got {'_pretrained_': 'Linear', 'a': 'str'}",
    ),
    "state dicts": (
        {"_pretrained_": {}, "a": {}},
        TypeError,
        "all modules or all folders; got {'_pretrained_': 'dict', 'a': 'dict'}",
    ),
    "no base": (
        {"a": linear(), "b": linear()},
        ValueError,
        r"no '_pretrained_' model, only \['a', 'b'\].*add the model that all experts",
    ),
    "numbers for names": (
        {"_pretrained_": linear(), 1: linear()},
        TypeError,
        "calls a model 1, a int; names of models are text, such as '1'",
    ),
    "a reference": (
        {"_pretrained_": "a", "b": "x${y}"},
        ValueError,
        r"models.b is 'x\${y}', in which \${...} would mean another value",
    ),
    "a long name": (
        {"_pretrained_": "a", "b": "c" * 256},
        ValueError,
        "models.b: 'c+...' in its path is longer than 255 bytes",
    ),
    "a transpose": (
        {"_pretrained_": Shared(), "a": Shared()},
        ValueError,
        r"the base \('_pretrained_'\): '.*' and '.*' share a part of their memory",
    ),
    "empty": ({}, ValueError, r"no '_pretrained_' model, only \[\]"),
    "no expert": (
        {"_pretrained_": linear()},
        ValueError,
        "no expert to merge.*under `models`",
    ),
    "another size": (
        {"_pretrained_": linear(), "a": linear(5)},
        ValueError,
        r"expert 'a': tensor 'weight' has shape \(2, 5\), the base \('_pretrained_'\)"
        r" has \(2, 3\)",
    ),
}


@pytest.mark.parametrize(
    ("models", "error", "message"), BAD_POOLS.values(), ids=BAD_POOLS
)
def test_pools_that_cannot_be_merged_are_refused(models, error, message):
    with pytest.raises(error, match=re.compile(message, re.DOTALL)):
        load_task_vectors(models)


def test_a_pool_object_without_base_is_refused(folders):
    with pytest.raises(ValueError, match="no '_pretrained_' model"):
        as_modelpool(CLIPVisionModelPool({"mnist": folders["mnist"]}))


@pytest.mark.parametrize("pool_class", [CausalLMPool, Seq2SeqLMPool])
def test_what_a_language_pool_says_of_loading_is_heard(pool_class, tmp_path):
    options = {"torch_dtype": "bfloat16", "attn_implementation": "eager"}
    pool = pool_class(
        OmegaConf.create({"_pretrained_": "a", "b": "b"}),
        tokenizer=str(tmp_path),
        model_kwargs=OmegaConf.create(options),
    )
    assert pool_dtype(pool) is torch.bfloat16
    assert code_options(pool) == {"attn_implementation": "eager"}
    assert tokenizer_source(pool) == tmp_path


@pytest.mark.parametrize("name", ["_pretrained_", "mnist"])
def test_a_folder_without_a_model_is_refused_without_asking_the_hub(
    folders, tmp_path, monkeypatch, name
):
    def no_network(*args, **kwargs):
        raise AssertionError(f"asked the hub for {args} {kwargs}")

    monkeypatch.setattr(
        "fusion_bench.utils.modelscope.huggingface_snapshot_download", no_network
    )
    message = "gone is not a HuggingFace model folder: it has no config.json. Save the"
    with pytest.raises(ValueError, match=message):
        load_task_vectors(folders | {name: str(tmp_path / "gone")})


def test_a_folder_of_an_unknown_architecture_is_refused(folders, tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["Unheard"]}')
    message = r"names the architectures \['Unheard'\], none of which transformers"
    with pytest.raises(ValueError, match=message):
        load_task_vectors(folders | {"_pretrained_": str(tmp_path)})


@pytest.mark.parametrize("content", ["{", "null", ""])
def test_a_damaged_config_is_named(folders, tmp_path, content):
    file = tmp_path / "config.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=f"the base .*{file} is damaged .*Download or"):
        load_task_vectors(folders | {"_pretrained_": str(tmp_path)})


def test_a_wrapped_module_is_the_module_itself(clips):
    wrapped = {n: nn.DataParallel(m) for n, m in clips.items() if n != "_pretrained_"}
    same(merge(clips | wrapped), merge(clips))


def test_a_lazy_base_without_a_class_is_refused(folders):
    class LazyPool(CLIPVisionModelPool):
        def load_model(self, name, *args, **kwargs):
            return LazyStateDict(self._models[name])

    with pytest.raises(ValueError, match="knows no module class.*meta_module_class"):
        load_task_vectors(LazyPool(folders))


def test_expert_tensors_that_the_base_lacks_stay_in_the_file(folders):
    base = load_base(CLIPVisionModelPool(folders))
    _, task_vectors = load_task_vectors(CLIPVisionModelPool(folders))
    whole = SafetensorsCheckpoint(folders["mnist"], "mnist")
    assert len(whole.specs) > len(task_vectors.base_names) == len(base.state_dict())


class Killed(nn.Module):
    """Ends its process while its tensors are copied."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1000))

    def state_dict(self, *args, **kwargs):
        state = super().state_dict(*args, **kwargs)
        return DyingDict(state)


class DyingDict(dict):
    def __getitem__(self, name):
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("during", [True, False])
def test_copies_of_experts_do_not_outlive_a_killed_process(
    tmp_path, monkeypatch, during
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    child = os.fork()
    if child == 0:
        kept = SpilledCheckpoint(Killed() if during else linear(), "expert")
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(len(kept.specs))  # not reached
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_copies_of_experts_hold_every_kind_of_tensor():
    module = nn.BatchNorm1d(3).half()
    module.tied, module.empty = module.weight, nn.Parameter(torch.empty(0, 4))
    module.register_buffer("mask", torch.tensor([[True, False], [False, True]]))
    module.register_buffer("odd", torch.arange(12, dtype=torch.bfloat16).view(3, 4).T)
    copy = SpilledCheckpoint(module, "expert")
    for name, want in module.state_dict().items():
        assert torch.equal(copy.read(name), want), name
    assert torch.equal(copy.read("odd", slice(1, 3)), module.odd[1:3])


def with_buffer(buffer: torch.Tensor, saved: bool) -> nn.Module:
    model = nn.Linear(2, 2, bias=False)
    model.register_buffer("graph", buffer, persistent=saved)
    return model


ODD = {
    "csr": torch.eye(2).to_sparse_csr(),
    "bsr": torch.eye(2).to_sparse_bsr((1, 1)),
    "coo": torch.eye(2).to_sparse(),
    "nested": torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]),
}


@pytest.mark.parametrize("kind", ODD)
def test_buffers_that_cannot_be_merged_are_named_or_stay_the_bases(kind):
    pool = {name: with_buffer(ODD[kind], saved=True) for name in NAMES}
    with pytest.raises(ValueError, match=r"'graph' is a tensor of .*cannot be merged"):
        load_task_vectors(pool)
    pool = {name: with_buffer(ODD[kind], saved=False) for name in NAMES}
    module, task_vectors = load_task_vectors(pool)
    assert module.graph is pool["_pretrained_"].graph
    assert module.weight is not pool["_pretrained_"].weight
    assert task_vectors.keys == ("weight",)
