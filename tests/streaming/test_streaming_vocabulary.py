"""Vocabularies of other sizes."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from tiny_llamas import make_llama, merge, merged_files, save_family
from transformers import AutoModelForCausalLM

from fusion_plugins import AWDAlgorithm

AWD = {"alpha": 1e-3, "lr": 0.1, "iterations": 30}


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def vocabularies(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("vocabularies")
    sizes = {"math": 60, "code": 69}
    return save_family(root, tied=request.param, vocabulary=sizes)


def test_other_vocabularies_are_refused_with_the_way_out(vocabularies, tmp_path):
    message = (
        "expert 'math' has a vocabulary of 60 tokens, the base .* one of 64 .*"
        "set method.vocabulary=common_rows"
    )
    with pytest.raises(ValueError, match=message):
        merge(vocabularies, tmp_path / "out", iterations=0)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("vocabulary", ["equal", "common_rows"])
def test_kept_vocabularies_may_differ_in_size(vocabularies, tmp_path, vocabulary):
    keep = ["model.embed_tokens.weight"]
    base = merged_files(Path(vocabularies["_pretrained_"]))
    keep += [name for name in base if name == "lm_head.weight"]  # if it is not tied
    options = {"iterations": 0, "keep": keep, "vocabulary": vocabulary}
    merge(vocabularies, tmp_path / "out", **options)
    got = merged_files(tmp_path / "out")
    assert all(torch.equal(got[name], base[name]) for name in keep)
    assert not torch.equal(got["model.norm.weight"], base["model.norm.weight"])


def test_common_rows_are_merged_and_others_are_the_bases(vocabularies, tmp_path):
    model = merge(
        vocabularies, tmp_path / "out", iterations=0, vocabulary="common_rows"
    )
    got = merged_files(tmp_path / "out")["model.embed_tokens.weight"]
    assert model.config.vocab_size == len(got) == 64
    tensors = [
        merged_files(Path(folder))["model.embed_tokens.weight"]
        for folder in vocabularies.values()
    ]
    want = tensors[0].clone()
    for expert in tensors[1:]:  # math has 60 rows, code 69
        rows = min(len(expert), 64)
        want[:rows] += 0.3 * (expert[:rows] - tensors[0][:rows])
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


def test_awd_sees_no_change_in_rows_an_expert_lacks(vocabularies, tmp_path):
    options = AWD | {"vocabulary": "common_rows"}
    got = merge(vocabularies, tmp_path / "out", **options).state_dict()
    models = {
        n: AutoModelForCausalLM.from_pretrained(f) for n, f in vocabularies.items()
    }
    base = models["_pretrained_"]
    for name, model in models.items():
        models[name] = padded = deepcopy(base)
        for key, value in model.state_dict().items():
            target = padded.state_dict()[key]
            rows = min(len(value), len(target))
            target[:rows] = value[:rows]
    want = AWDAlgorithm(**AWD).run(models).state_dict()
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=1e-6)


def test_rows_no_expert_has_stay_exactly_the_bases(tmp_path):
    folders = save_family(tmp_path, tasks=("math",), vocabulary={"math": 50})
    base = make_llama()
    base.save_pretrained(folders["_pretrained_"])  # float32
    math = AutoModelForCausalLM.from_pretrained(folders["math"]).bfloat16()
    math.save_pretrained(folders["math"], max_shard_size="8KB")
    options = {"iterations": 0, "vocabulary": "common_rows", "dtype": "float32"}
    merge(folders, tmp_path / "out", **options)
    got = merged_files(tmp_path / "out")["lm_head.weight"]
    assert torch.equal(got[50:], base.lm_head.weight[50:])
    assert not torch.equal(got[:50], base.lm_head.weight[:50])
