"""Each family of text pools: its logits, its merges, and its gradients by autograd."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from fusion_bench.method.adamerging.flan_t5_layer_wise_adamerging import (
    FlanT5LayerWiseAdaMergingAlgorithm,
)
from fusion_bench.modelpool import SequenceClassificationModelPool
from torch.func import functional_call
from toy_text import (
    CLASSES,
    QUIET,
    classification_pool,
    configs,
    family,
    gpt2_pool,
    make_bert,
    make_gpt2,
    make_roberta,
    make_tokenizer,
    save,
    sentences,
    seq2seq_pool,
)

from fusion_plugins import (
    AdaMergingAlgorithm,
    AWDAlgorithm,
    TintedModel,
    TintingAlgorithm,
)
from fusion_plugins.adamerging.objective import AdaMergingObjective
from fusion_plugins.adaptation import SampleOrder
from fusion_plugins.pools import adapter_for, load_task_vectors
from fusion_plugins.pools.replaced import read_once

BATCH = 6
FAMILIES = ["bert", "roberta", "gpt2", "score", "t5"]


def make_pool(kind: str, tmp_path):
    if kind == "t5":
        return seq2seq_pool()
    if kind == "gpt2":
        return gpt2_pool(tmp_path)
    if kind == "score":
        return classification_pool(make_gpt2, tokenizer=make_tokenizer(pairs=False))
    return classification_pool({"bert": make_bert, "roberta": make_roberta}[kind])


@pytest.fixture(params=FAMILIES)
def kind(request) -> str:
    return request.param


@pytest.fixture
def pool(kind, tmp_path):
    return make_pool(kind, tmp_path)


def expert(pool, kind: str, task: str):
    """The expert with its head, as a user would call it."""
    return pool.load_classifier(task) if kind == "gpt2" else pool.load_model(task)


def outputs(model, kind: str, texts: list[str], weights: dict | None = None):
    """Logits without any of our code, with other weights if given."""
    inputs = dict(
        make_tokenizer(kind not in ("gpt2", "score"))(
            texts, padding=True, return_tensors="pt"
        )
    )
    if kind == "t5":
        inputs.pop("token_type_ids")
        inputs["decoder_input_ids"] = torch.ones(len(texts), 1, dtype=torch.long)
    # A copy, since functional_call leaves a tied output layer untied.
    logits = functional_call(deepcopy(model), weights or {}, (), inputs).logits
    return logits[:, 0] if kind == "t5" else logits


def prepared(pool, tasks=None):
    adapter = adapter_for(pool, tasks)
    adapter.prepare(torch.device("cpu"))
    return adapter


def stored(adapter, task: str, count: int = BATCH) -> torch.Tensor:
    rows = adapter.dataset(task, "test")
    return torch.stack([adapter.encode(rows[i]) for i in range(count)])


# -- logits ---------------------------------------------------------------------------


@torch.no_grad()
def test_features_and_head_are_the_experts_own_logits(pool, kind):
    adapter = prepared(pool)
    heads = adapter.heads()
    assert list(heads) == list(CLASSES)
    for task in CLASSES:
        inputs = adapter.decode(stored(adapter, task))
        features = adapter.features(pool.load_model(task).eval(), inputs)
        texts = [row["text"] for row in sentences(task)[:BATCH]]
        want = outputs(expert(pool, kind, task).eval(), kind, texts)
        torch.testing.assert_close(heads[task](features), want, rtol=0, atol=1e-6)


@torch.no_grad()
def test_a_view_of_a_pool_has_its_heads(pool):
    """As method=select shows pools to the methods that it tries."""
    want, got = (prepared(shown).heads() for shown in (pool, read_once(pool)))
    for task in CLASSES:
        found = got[task].state_dict()
        for name, value in want[task].state_dict().items():
            assert torch.equal(found[name], value)


def test_tasks_share_a_forward(pool, kind):
    adapter = prepared(pool)
    module = pool.load_model("aa").eval()
    parts = [stored(adapter, task) for task in CLASSES]
    together = adapter.features(module, torch.cat(parts))
    for part, alone in zip(together.split(BATCH), parts, strict=True):
        want = adapter.features(module, alone)
        # RoBERTa hands whole sequences to its head, here with more padding.
        part = part[:, : want.shape[1]]
        seen = torch.ones(part.shape[:2], dtype=torch.bool)
        if part.ndim == 3:
            seen = alone[:, 1, : want.shape[1]].bool()
        torch.testing.assert_close(part[seen], want[seen], rtol=0, atol=1e-6)


@torch.no_grad()
def test_t5_logits_are_upstreams():
    pool = seq2seq_pool()
    adapter = prepared(pool)
    module = pool.load_model("aa")
    inputs = stored(adapter, "aa")
    batch = {"input_ids": inputs[:, 0].long(), "attention_mask": inputs[:, 1].long()}
    compute = FlanT5LayerWiseAdaMergingAlgorithm.compute_logits
    want = compute(None, module, batch, "aa")
    assert want.shape == (BATCH, 18)
    assert torch.equal(adapter.features(module, inputs), want)


# -- methods --------------------------------------------------------------------------


class DescentObjective(AdaMergingObjective):
    def prepare(self, experts, adapter):
        start = super().prepare(experts, adapter)
        return lambda *merge: replace(start(*merge), optimizer=torch.optim.SGD)


class PlainDescent(AdaMergingAlgorithm):
    """Adam divides by the gradient's size, which makes noise of zero gradients."""

    def make_objective(self):
        return DescentObjective(self.options.protocol)


def trunk_states(pool, kind):
    """Layer name -> base and task vectors, of what is merged."""
    base = pool.load_model("_pretrained_")
    states = {task: pool.load_model(task).state_dict() for task in CLASSES}
    merged = {}
    for name, parameter in base.named_parameters():
        if not name.startswith(("classifier.", "score.")):
            start = parameter.detach()
            merged[name] = start, [states[t][name] - start for t in CLASSES]
    return merged


def reference_coefficients(pool, kind: str, steps: int, lr: float):
    """AdaMerging by autograd through the merge, on the same sentences."""
    layers = trunk_states(pool, kind)
    coefficients = torch.full((len(CLASSES), len(layers)), 0.3, requires_grad=True)
    order = SampleOrder(0, BATCH)
    experts = {t: deepcopy(expert(pool, kind, t)).eval() for t in CLASSES}
    prefix = "transformer." if kind == "gpt2" else ""
    for step in range(steps):
        loss = 0.0
        weights = {}
        for column, (name, (start, vectors)) in enumerate(layers.items()):
            total = start
            for row, vector in enumerate(vectors):
                total = total + coefficients[row, column].clamp(0, 1) * vector
            weights[prefix + name] = total
        for task in CLASSES:
            rows = sentences(task)
            chosen = order.batch(task, len(rows), step)
            texts = [rows[i]["text"] for i in chosen]
            logits = outputs(experts[task], kind, texts, weights)
            log_p = logits.log_softmax(-1)
            loss = loss - (log_p.exp() * log_p).sum(-1).mean()
        (gradient,) = torch.autograd.grad(loss, coefficients)
        coefficients = (coefficients - lr * gradient).detach().requires_grad_()
    return list(layers), coefficients.detach()


def test_adamerging_is_autograd_through_the_merge(pool, kind):
    options = {
        "preset": "official",
        "steps": 3,
        "batches_per_task": 1,
        "batch_size": BATCH,
        "lr": 0.5,
    }
    algorithm = PlainDescent(**options, **QUIET)
    merged = algorithm.run(pool)
    names, want = reference_coefficients(pool, kind, 3, 0.5)
    result = algorithm.result
    assert sorted(names) == sorted(result.layers)
    columns = [names.index(name) for name in result.layers]
    assert (want - 0.3).abs().max() > 1e-3, "nothing was learned"
    torch.testing.assert_close(result.raw, want[:, columns], rtol=0, atol=2e-5)
    assert isinstance(merged, TintedModel) == (kind in ("bert", "roberta", "score"))


def test_awd_merges_the_trunk_alone(pool, kind):
    merged = AWDAlgorithm(alpha=1e-3).run(pool)
    trunk = merged.trunk if isinstance(merged, TintedModel) else merged
    states = trunk_states(pool, kind)
    modules = {"_pretrained_": pool.load_model("_pretrained_")}
    modules |= {task: pool.load_model(task) for task in CLASSES}
    for task, module in modules.items():
        modules[task] = deepcopy(module)
        for name in ("classifier", "score"):
            if hasattr(module, name):
                setattr(modules[task], name, torch.nn.Identity())
    want = AWDAlgorithm(alpha=1e-3).run(modules).state_dict()
    got = trunk.state_dict()
    for name in states:
        assert torch.equal(got[name], want[name]), name
    for name, (start, _) in states.items():
        assert not torch.equal(got[name], start), f"{name} was not merged"


@pytest.mark.parametrize("sampling", ["none", "confidence_gap"])
def test_tinting_runs_and_changes_each_task(pool, kind, sampling):
    tint = "encoder.block.1" if kind == "t5" else "head"
    options = {"rounds": 3, "batch_size": BATCH, "tint": tint, "sampling": sampling}
    algorithm = TintingAlgorithm(**options, **QUIET)
    model = algorithm.run(pool)
    assert model.tasks == tuple(CLASSES)
    assert algorithm.history
    text = sentences("aa")[0]["text"]
    if kind == "t5":
        model.set_task("aa")
        first = outputs(model, kind, [text])
        model.set_task("bb")
        assert not torch.equal(first, outputs(model, kind, [text]))
    elif kind == "gpt2":
        assert [len(model.head(t).weight) for t in CLASSES] == list(CLASSES.values())
    else:
        for task, classes in CLASSES.items():
            model.set_task(task)
            assert outputs(model, kind, [text]).shape == (1, classes)


def test_an_inner_layer_of_a_classifier_can_be_tinted():
    pool = classification_pool()
    site = "bert.encoder.layer.1"
    model = TintingAlgorithm(rounds=2, tint=site, batch_size=BATCH, **QUIET).run(pool)
    assert set(model.sites) == {site, "classifier"}
    model.set_task("bb")
    assert outputs(model, "bert", ["good"]).shape == (1, 3)


@pytest.mark.parametrize("make", [make_bert, make_roberta])
def test_a_tinted_classifier_is_saved_and_read_back(make, tmp_path):
    pool = classification_pool(make)
    model = TintingAlgorithm(rounds=2, batch_size=BATCH, **QUIET).run(pool).eval()
    model.save_pretrained(tmp_path)
    back = TintedModel.from_pretrained(tmp_path).eval()
    for task in CLASSES:
        model.set_task(task)
        back.set_task(task)
        want = outputs(model, "bert", ["good film", "bad"])
        assert torch.equal(outputs(back, "bert", ["good film", "bad"]), want)


# -- weights --------------------------------------------------------------------------


def test_tied_embeddings_stay_tied():
    pool = seq2seq_pool()
    want = trunk_states(pool, "t5")
    algorithm = AdaMergingAlgorithm(steps=1, batch_size=BATCH, **QUIET)
    merged = algorithm.run(pool)
    shared = merged.shared.weight
    assert merged.encoder.embed_tokens.weight is shared
    assert merged.decoder.embed_tokens.weight is shared
    assert merged.lm_head.weight is shared
    column = algorithm.result.layers.index("shared.weight")
    start, vectors = want["shared.weight"]
    for weight, vector in zip(
        algorithm.result.applied[:, column], vectors, strict=True
    ):
        start = start + weight * vector
    torch.testing.assert_close(shared.detach(), start, rtol=0, atol=1e-6)


def test_untied_output_embeddings_are_merged_on_their_own():
    models = family(lambda classes, seed: make_untied(seed))
    pool = seq2seq_pool()
    pool._models = models
    merged = AWDAlgorithm().run(pool)
    assert merged.lm_head.weight is not merged.shared.weight
    assert not torch.equal(merged.lm_head.weight, models["_pretrained_"].lm_head.weight)


def make_untied(seed: int):
    from toy_text import make_t5

    model = make_t5(0, seed)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    return model


def test_folders_are_read_in_place_and_equal_loading(tmp_path):
    models = family(make_bert)
    target = "AutoModelForSequenceClassification"
    folders = configs(save(models, tmp_path), target)
    pool = SequenceClassificationModelPool(folders, tokenizer=None)
    adapter = adapter_for(classification_pool())
    assert adapter.files(pool, "aa") == tmp_path / "aa"
    _, streamed = load_task_vectors(pool)
    _, held = load_task_vectors(classification_pool())
    assert streamed.keys == held.keys
    for ours, theirs in zip(streamed.blocks(), held.blocks(), strict=True):
        assert torch.equal(ours.task_vectors, theirs.task_vectors)


def test_only_plain_folders_are_read_in_place(tmp_path):
    models = configs(save(family(make_bert), tmp_path), "BertForSequenceClassification")

    class Own(SequenceClassificationModelPool):
        def load_model(self, *args, **kwargs):
            return super().load_model(*args, **kwargs)

    files = type(adapter_for(classification_pool())).files
    assert files(Own(models, tokenizer=None), "aa") is None
    halved = {"torch_dtype": "float16"}
    from omegaconf import OmegaConf

    pool = SequenceClassificationModelPool(
        models, tokenizer=None, model_kwargs=OmegaConf.create(halved)
    )
    assert files(pool, "aa") is None
    models.aa.pretrained_model_name_or_path = "no/such-folder"
    assert files(SequenceClassificationModelPool(models, tokenizer=None), "aa") is None
