"""AdaMerging of language models on unlabelled prompts."""

import random
from dataclasses import replace

import pytest
import torch
from fusion_bench.modelpool import CausalLMPool
from tiny_llamas import TASKS
from torch.func import functional_call
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from fusion_plugins import AdaMergingAlgorithm
from fusion_plugins.adamerging.objective import AdaMergingObjective
from fusion_plugins.adaptation import SampleOrder
from fusion_plugins.pools.families import causal_lm
from fusion_plugins.pools.families.causal_lm import CausalLMAdapter

BATCH, STEPS, LR = 5, 3, 0.5
QUIET = {"num_workers": 0, "save_model": False, "seed": 0, "guard_every": 0}
QUIET |= {"checkpoint_dir": None}


class DescentObjective(AdaMergingObjective):
    def prepare(self, experts, adapter):
        start = super().prepare(experts, adapter)
        return lambda *merge: replace(start(*merge), optimizer=torch.optim.SGD)


class PlainDescent(AdaMergingAlgorithm):
    """Adam divides by the gradient's size, which makes noise of zero gradients."""

    def make_objective(self):
        return DescentObjective(self.options.protocol)


def prompts(task: str, count: int = 12) -> list[dict]:
    """Tokenised prompts of different lengths; no padding token, no mask."""
    draw = random.Random(task)
    return [
        {"input_ids": [draw.randrange(60) for _ in range(draw.randint(2, 9))]}
        for _ in range(count)
    ]


def pool_of(folders: dict[str, str], **options) -> CausalLMPool:
    options = {"tokenizer": None} | options
    return CausalLMPool(folders, **options)


@pytest.fixture(params=["llamas", "tied_llamas"])
def folders(request) -> dict[str, str]:
    return request.getfixturevalue(request.param)


def reference_coefficients(folders: dict[str, str]) -> tuple[list[str], torch.Tensor]:
    """AdaMerging by autograd through the merge, one prompt at a time."""
    models = {n: AutoModelForCausalLM.from_pretrained(f) for n, f in folders.items()}
    base = models.pop("_pretrained_").eval()
    start = {n: p.detach() for n, p in base.named_parameters()}
    taus = {
        name: [
            dict(model.named_parameters())[name].detach() - value
            for model in models.values()
        ]
        for name, value in start.items()
    }
    coefficients = torch.full((len(models), len(start)), 0.3, requires_grad=True)
    order = SampleOrder(0, BATCH)
    for step in range(STEPS):
        merged = {
            name: value
            + sum(
                c * t
                for c, t in zip(
                    coefficients[:, column].clamp(0, 1), taus[name], strict=True
                )
            )
            for column, (name, value) in enumerate(start.items())
        }
        if base.config.tie_word_embeddings:
            merged["lm_head.weight"] = merged["model.embed_tokens.weight"]
        loss = 0.0
        for task in models:
            rows = prompts(task)
            for index in order.batch(task, len(rows), step):
                ids = torch.tensor([rows[index]["input_ids"]])
                logits = functional_call(base, merged, (ids,)).logits[0, -1]
                log_p = logits.log_softmax(-1)
                loss = loss - (log_p.exp() * log_p).sum() / BATCH
        (gradient,) = torch.autograd.grad(loss, coefficients)
        coefficients = (coefficients - LR * gradient).detach().requires_grad_()
    return list(start), coefficients.detach()


def test_adamerging_is_autograd_through_the_merge(folders):
    pool = pool_of(folders, test_datasets={task: prompts(task) for task in TASKS})
    algorithm = PlainDescent(
        preset="official",
        steps=STEPS,
        batches_per_task=1,
        batch_size=BATCH,
        lr=LR,
        **QUIET,
    )
    merged = algorithm.run(pool, adapter=CausalLMAdapter(pool))
    names, want = reference_coefficients(folders)
    result = algorithm.result
    assert sorted(names) == sorted(result.layers)
    columns = [names.index(name) for name in result.layers]
    assert (want - 0.3).abs().max() > 1e-3, "nothing was learned"
    torch.testing.assert_close(result.raw, want[:, columns], rtol=0, atol=1e-5)
    assert type(merged).__name__ == "LlamaForCausalLM"


def features(
    folders: dict[str, str], adapter: CausalLMAdapter, samples
) -> torch.Tensor:
    module = AutoModelForCausalLM.from_pretrained(folders["_pretrained_"]).eval()
    inputs = torch.stack([adapter.read("math", s) for s in samples])
    return adapter.features(module, inputs)


def test_logits_are_those_behind_the_last_token(llamas, monkeypatch):
    module = AutoModelForCausalLM.from_pretrained(llamas["_pretrained_"]).eval()
    adapter = CausalLMAdapter(pool_of(llamas))
    adapter.prepare(torch.device("cpu"))
    samples = prompts("x")
    assert len({len(sample["input_ids"]) for sample in samples}) > 3
    want = torch.stack(
        [module(torch.tensor([s["input_ids"]])).logits[0, -1] for s in samples]
    )
    got = features(llamas, adapter, samples)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    # Classes that cannot choose places compute them all.
    monkeypatch.setattr(causal_lm, "_can_choose_places", lambda module: False)
    got = features(llamas, adapter, samples)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def make_tokenizer(**options) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"w{number}": number for number in range(60)} | {"[UNK]": 60}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)


@pytest.mark.parametrize("field", ["text", "prompt", "question"])
def test_text_is_tokenised(llamas, tmp_path, field):
    make_tokenizer().save_pretrained(tmp_path)
    tasks = {"math": {"fields": ["question"]}} if field == "question" else None
    pool = pool_of(llamas, tokenizer=str(tmp_path))
    adapter, plain = CausalLMAdapter(pool, tasks), CausalLMAdapter(pool_of(llamas))
    for prepared in (adapter, plain):
        prepared.prepare(torch.device("cpu"))
    samples = [{"input_ids": [0, 3, 5]}, {"input_ids": [7, 0]}]
    texts = [{field: "w0 w3 w5"}, {field: "w7 w0"}]
    want = features(llamas, plain, samples)
    assert torch.equal(features(llamas, adapter, texts), want)


def test_text_without_a_tokenizer_is_refused(llamas):
    rows = {task: [{"text": "w1 w2"}] * 4 for task in TASKS}
    pool = pool_of(llamas, test_datasets=rows)
    algorithm = AdaMergingAlgorithm(steps=1, batch_size=2, **QUIET)
    message = (
        "Task 'math', sample .: The samples hold text, but the pool has no tokenizer"
    )
    with pytest.raises(ValueError, match=message):
        algorithm.run(pool, adapter=CausalLMAdapter(pool))


def test_models_without_an_output_layer_are_refused(llamas):
    trunks = {
        name: {
            "_target_": "transformers.AutoModel.from_pretrained",
            "pretrained_model_name_or_path": folder,
        }
        for name, folder in llamas.items()
    }
    with pytest.raises(ValueError, match="is a LlamaModel without an output layer"):
        CausalLMAdapter(pool_of(trunks)).prepare(torch.device("cpu"))


def test_only_plain_folders_are_read_in_place(llamas):
    assert str(CausalLMAdapter.files(pool_of(llamas), "math")) == llamas["math"]
    rounded = pool_of(llamas, model_kwargs={"torch_dtype": "bfloat16"})
    assert CausalLMAdapter.files(rounded, "math") is None
