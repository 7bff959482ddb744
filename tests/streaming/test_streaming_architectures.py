"""Models of any architecture that transformers can describe are merged from files."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny_llamas import merge, merged_files, replace_weights, shard_files

from fusion_plugins import AWDAlgorithm
from fusion_plugins.streaming.folders import read_folder

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
TOWER = {**SMALL, "num_attention_heads": 2}
IMAGES = {"image_size": 16, "patch_size": 8}
WORDS = {"vocab_size": 40, "max_position_embeddings": 20}
LLAMA = {**TOWER, "num_key_value_heads": 1, **WORDS}
T5 = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2}


def clip_vision():
    return transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(**TOWER, **IMAGES)
    )


def clip():
    text, vision = {**TOWER, **WORDS}, {**TOWER, **IMAGES}
    config = transformers.CLIPConfig(
        text_config=text, vision_config=vision, projection_dim=8
    )
    return transformers.CLIPModel(config)


def vit():
    config = transformers.ViTConfig(**TOWER, **IMAGES, num_labels=3)
    return transformers.ViTForImageClassification(config)


def t5():
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(**T5, num_heads=2)
    )


def bert():
    config = transformers.BertConfig(**TOWER, **WORDS, num_labels=3)
    return transformers.BertForSequenceClassification(config)


def llava():
    vision = transformers.CLIPVisionConfig(**TOWER, **IMAGES)
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=transformers.LlamaConfig(**LLAMA)
    )
    return transformers.LlavaForConditionalGeneration(config)


def save_family(make, root: Path) -> dict[str, str]:
    """A base and two experts near it; name -> folder."""
    torch.manual_seed(0)
    base = make()
    folders = {}
    for name in ("_pretrained_", "aa", "bb"):
        model = make()
        model.load_state_dict(base.state_dict())
        for parameter in model.parameters() if name != "_pretrained_" else ():
            parameter.data.add_(0.05 * torch.randn_like(parameter))
        model.save_pretrained(root / name)
        folders[name] = str(root / name)
    return folders


@pytest.mark.parametrize("make", [clip_vision, clip, vit, t5, bert, llava])
def test_the_files_hold_what_a_merge_in_memory_gives(make, tmp_path):
    folders = save_family(make, tmp_path)
    options = {"alpha": 0.05, "iterations": 40}
    streamed = merge(folders, tmp_path / "merged", **options)
    assert isinstance(streamed, type(make()))
    held = AWDAlgorithm(**options).run(folders).state_dict()
    assert streamed.state_dict().keys() == held.keys()
    for name, tensor in streamed.state_dict().items():
        torch.testing.assert_close(tensor, held[name], rtol=0, atol=1e-6, msg=name)
    stored, base = merged_files(tmp_path / "merged"), merged_files(
        folders["_pretrained_"]
    )
    assert stored.keys() == base.keys()
    again = type(make()).from_pretrained(tmp_path / "merged")
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, streamed.state_dict()[name]), name


def mixtral():
    config = transformers.MixtralConfig(**LLAMA, num_local_experts=2)
    return transformers.MixtralForCausalLM(config)


def one_less(tensors, name):
    del tensors[name]


def other_shape(tensors, name):
    tensors[name] = torch.zeros(5)


def whole_numbers(tensors, name):
    tensors[name] = tensors[name].to(torch.int8)


@pytest.mark.parametrize("make", [vit, clip, bert, mixtral])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (one_less, "lacks 1 tensor|do not make up a"),
        (other_shape, "is of another size than its tensors|do not make up a"),
        (whole_numbers, "holds integers where"),
    ],
)
@pytest.mark.parametrize("number", [5, -3])
def test_files_that_loading_would_complete_are_refused(
    make, change, message, number, tmp_path
):
    """Whatever names the class has in files; all models lack the same."""
    folders = save_family(make, tmp_path)
    for folder in folders.values():
        tensors = merged_files(folder)
        change(
            tensors, [n for n, t in tensors.items() if t.is_floating_point()][number]
        )
        replace_weights(folder, tensors)
    with pytest.raises(ValueError, match=f"^the base .*({message})") as refusal:
        merge(folders, tmp_path / "merged", iterations=0)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("make", [vit, t5, llava, mixtral])
def test_the_merged_model_may_be_saved_where_it_is(make, tmp_path):
    folders = save_family(lambda: make().half(), tmp_path)
    output = tmp_path / "merged"
    model = merge(folders, output, iterations=0)
    model.save_pretrained(output)
    next(model.parameters()).data.mul_(2)
    with pytest.raises(ValueError, match="is no longer as it was merged into"):
        model.save_pretrained(output)


@pytest.mark.parametrize("written", ["444", "555", "454", "545"])
def test_clip_of_either_generation_of_transformers_merges(written, tmp_path):
    """Base and experts, each saved by transformers 4 or 5: the same tensors come out."""
    saved = Path(__file__).parents[1] / "generations" / "saved"

    def merged(generations: str) -> dict[str, torch.Tensor]:
        names = dict(zip(("_pretrained_", "aa", "bb"), generations, strict=True))
        folders = {name: str(saved / g / name) for name, g in names.items()}
        model = merge(folders, tmp_path / generations, alpha=0.05)
        return {
            k.removeprefix("vision_model."): v for k, v in model.state_dict().items()
        }

    got, want = merged(written), merged("444")
    assert got.keys() == want.keys() and len(got) == 39
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_gpt2_as_the_hub_has_it_lacks_the_prefix_and_has_masks(tmp_path):
    """Its files hold the trunk's names, and buffers that newer classes compute."""

    def gpt2():
        sizes = {"n_positions": 20, "n_embd": 16, "n_layer": 2, "n_head": 2}
        config = transformers.GPT2Config(vocab_size=40, **sizes)
        return transformers.GPT2LMHeadModel(config)

    folders = save_family(gpt2, tmp_path)
    held = AWDAlgorithm(alpha=0.05).run(folders).state_dict()
    for folder in folders.values():
        (file,) = shard_files(folder)
        tensors = load_file(file)
        bare = {name.removeprefix("transformer."): t for name, t in tensors.items()}
        masks = {f"h.{n}.attn.bias": torch.ones(1, 1, 20, 20).tril() for n in range(2)}
        replace_weights(folder, bare | masks)
    merged = merge(folders, tmp_path / "merged", alpha=0.05).state_dict()
    assert merged.keys() == held.keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, held[name], rtol=0, atol=1e-6, msg=name)


def test_images_are_prepared_as_the_pretrained_model_has_it(tmp_path):
    folders = save_family(clip_vision, tmp_path)
    own = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16)
    own.save_pretrained(folders["_pretrained_"])
    merge(folders, tmp_path / "merged")
    saved = transformers.CLIPImageProcessor.from_pretrained(tmp_path / "merged")
    assert saved.to_dict()["size"] == own.to_dict()["size"]


def test_a_class_that_transformers_lacks_is_one_short_line(tmp_path):
    folders = save_family(clip_vision, tmp_path)
    for folder in folders.values():
        file = Path(folder, "config.json")
        config = json.loads(file.read_text()) | {"architectures": ["OwnEncoder"]}
        file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="config.json cannot be used") as raised:
        merge(folders, tmp_path / "merged")
    assert len(str(raised.value)) < 500 and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "changed, shared",
    [({}, True), ({"vocab_size": 80}, False), ({"auto_map": {"X": "x.X"}}, False)],
    ids=["equal config", "other size", "own code"],
)
def test_models_of_one_config_are_described_once(llamas, tmp_path, changed, shared):
    base = read_folder(Path(llamas["_pretrained_"]), "the base", {})
    config = json.loads((Path(llamas["math"]) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changed))
    expert = read_folder(tmp_path, "expert", {}, known=[base])
    assert (expert.module is base.module) == shared
    rows = expert.module.state_dict()["lm_head.weight"].shape[0]
    assert rows == changed.get("vocab_size", 64)
    assert (expert.path, expert.label) == (tmp_path, "expert")
