"""Our text task pools: numbers by scikit-learn, heads in their places, clear errors."""

import json
from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from fusion_bench.method import SimpleAverageAlgorithm
from fusion_bench.taskpool import GPT2TextClassificationTaskPool
from omegaconf import OmegaConf
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, log_loss, matthews_corrcoef
from toy_text import (
    CLASSES,
    QUIET,
    classification_pool,
    datasets,
    family,
    gpt2_pool,
    make_bert,
    make_roberta,
    make_tokenizer,
    move,
    save,
    sentences,
    tokenised,
)

from fusion_plugins import AWDAlgorithm, TintedModel, TintingAlgorithm
from fusion_plugins.merged.heads import ClassificationHead
from fusion_plugins.pools import with_shared_heads
from fusion_plugins.pools.task_heads import with_task_heads
from fusion_plugins.taskpool.gpt2 import GPT2TaskPool
from fusion_plugins.taskpool.sequence_classification import (
    SequenceClassificationTaskPool,
)
from fusion_plugins.taskpool.text_metrics import averages, measure, metrics_for


def make_taskpool(modelpool=None, **options) -> SequenceClassificationTaskPool:
    options = {"tokenizer": make_tokenizer(), "batch_size": 7} | options
    options.setdefault("test_datasets", datasets())
    taskpool = SequenceClassificationTaskPool(**options)
    if modelpool is not None:
        taskpool._program = SimpleNamespace(modelpool=modelpool)
    return taskpool


@torch.no_grad()
def logits_of(model, task: str) -> torch.Tensor:
    """One sentence at a time: no padding, no batches."""
    tokenizer = make_tokenizer()
    return torch.cat(
        [
            model(**tokenizer(row["text"], return_tensors="pt")).logits
            for row in sentences(task)
        ]
    )


def labels_of(task: str) -> np.ndarray:
    return np.array([row["label"] for row in sentences(task)])


# -- numbers --------------------------------------------------------------------------


@pytest.mark.parametrize("make", [make_bert, make_roberta])
def test_experts_have_the_numbers_of_scikit_learn(make):
    pool = classification_pool(make)
    for task in CLASSES:
        taskpool = make_taskpool(test_datasets={task: sentences(task)})
        report = taskpool.evaluate(pool.load_model(task), name="expert")
        logits = logits_of(pool.load_model(task), task).double()
        labels, p = labels_of(task), logits.softmax(1).numpy()
        got = report[task]
        assert got["accuracy"] == pytest.approx(accuracy_score(labels, p.argmax(1)))
        assert got["loss"] == pytest.approx(log_loss(labels, p), abs=1e-5)
        assert got["ece"] == pytest.approx(hand_made_ece(p, labels), abs=1e-5)
        assert report["model_info"]["name"] == "expert"
        assert report["average"]["accuracy"] == pytest.approx(got["accuracy"])


def hand_made_ece(p: np.ndarray, labels: np.ndarray) -> float:
    confidence, right = p.max(1), p.argmax(1) == labels
    total = 0.0
    for low in np.arange(15) / 15:
        chosen = (confidence > low) & (confidence <= low + 1 / 15)
        if chosen.any():
            gap = abs(right[chosen].mean() - confidence[chosen].mean())
            total += chosen.mean() * gap
    return total


def test_metrics_by_scikit_learn_and_scipy():
    torch.manual_seed(0)
    logits, labels = torch.randn(50, 3), torch.randint(3, (50,))
    got = measure("x", logits, labels.double(), ["matthews_correlation", "f1"])
    found = logits.argmax(1)
    want = matthews_corrcoef(labels, found)
    assert got["matthews_correlation"] == pytest.approx(want, abs=1e-6)
    assert got["f1"] == pytest.approx(f1_score(labels, found, average="macro"))
    two = measure("glue/mrpc", logits[:, :2], (labels > 0).double())
    found = logits[:, :2].argmax(1)
    assert two["f1"] == pytest.approx(f1_score(labels > 0, found))
    value, target = torch.randn(50, 1), torch.rand(50).double() * 5
    one = measure("glue-stsb", value, target)
    assert list(one) == ["loss", "pearson", "spearman"]
    assert one["pearson"] == pytest.approx(pearsonr(value[:, 0], target)[0], abs=1e-5)
    assert one["spearman"] == pytest.approx(spearmanr(value[:, 0], target)[0], abs=1e-5)
    assert one["loss"] == pytest.approx(((value[:, 0] - target) ** 2).mean().item())


def test_a_constant_prediction_has_no_correlation():
    scores = measure("cola", torch.zeros(6, 2), torch.tensor([0.0, 1, 1, 0, 1, 0]))
    assert scores["matthews_correlation"] == 0


@pytest.mark.parametrize(
    ("task", "want"),
    [
        ("cola", ("matthews_correlation",)),
        ("glue-cola", ("matthews_correlation",)),
        ("glue/sts-b", ("pearson", "spearman")),
        ("STSB", ("pearson", "spearman")),
        ("qqp", ("f1",)),
        ("chocola", ()),
        ("sst2", ()),
    ],
)
def test_glue_asks_for(task, want):
    assert metrics_for(task) == want


def test_averages_leave_regressions_out_and_score_as_glue_does():
    report = {
        "cola": {"accuracy": 0.8, "loss": 1.0, "ece": 0.1, "matthews_correlation": 0.5},
        "mrpc": {"accuracy": 0.6, "loss": 2.0, "ece": 0.3, "f1": 0.8},
        "stsb": {"loss": 9.0, "pearson": 0.9, "spearman": 0.7},
    }
    got = averages(report)
    want = {"accuracy": 0.7, "loss": 1.5, "ece": 0.2, "score": (0.5 + 0.7 + 0.8) / 3}
    assert got == pytest.approx(want)


def test_other_metrics_may_be_named():
    tasks = {"bb": {"metrics": ["matthews_correlation"]}}
    report = make_taskpool(classification_pool(), tasks=tasks).evaluate(
        classification_pool().load_model("aa")
    )
    assert list(report["bb"]) == ["accuracy", "loss", "ece", "matthews_correlation"]
    with pytest.raises(ValueError, match=r"metrics \['pearson'\] do not fit a head wi"):
        measure("x", torch.zeros(2, 2), torch.zeros(2), ["pearson"])


def test_regressions_are_measured():
    models = family(make_bert)
    models["bb"] = move(make_bert(1, 5), 5)
    pool = classification_pool()
    pool._models = models
    report = make_taskpool().evaluate(AWDAlgorithm().run(pool))
    assert set(report["bb"]) == {"loss", "pearson", "spearman"}
    assert report["average"]["accuracy"] == report["aa"]["accuracy"]
    assert report["average"]["loss"] == report["aa"]["loss"]


# -- heads ----------------------------------------------------------------------------


def with_head(model, head):
    model = deepcopy(model)
    model.classifier = head
    return model


@pytest.mark.parametrize("make", [make_bert, make_roberta])
def test_a_plain_model_gets_the_experts_heads_and_is_left_as_it_was(make, tmp_path):
    pool = classification_pool(make)
    merged = SimpleAverageAlgorithm().run(with_shared_heads(pool))
    before = deepcopy(merged.state_dict())
    folders = save({t: pool.load_model(t) for t in CLASSES}, tmp_path)
    by_program = make_taskpool(pool).evaluate(merged)
    by_folder = make_taskpool(heads=folders).evaluate(merged)
    models = {task: pool.load_model(task) for task in CLASSES}
    by_model = make_taskpool(heads=models).evaluate(merged)
    assert by_program == by_folder == by_model
    assert merged.state_dict().keys() == before.keys()
    assert all(torch.equal(v, before[n]) for n, v in merged.state_dict().items())
    for task in CLASSES:
        whole = with_head(merged, models[task].classifier)
        want = (logits_of(whole, task).argmax(1).numpy() == labels_of(task)).mean()
        assert by_program[task]["accuracy"] == pytest.approx(want)


def test_a_tinted_model_brings_its_heads_and_has_no_task_afterwards():
    pool = classification_pool()
    merged = SimpleAverageAlgorithm().run(with_shared_heads(pool))
    plain = make_taskpool(pool).evaluate(deepcopy(merged))
    tinted = with_task_heads(merged, pool)
    got = make_taskpool().evaluate(tinted)
    for task in (*CLASSES, "average"):
        assert got[task] == plain[task]
    assert got["model_info"]["tints"]["tints"] == 17 * 2 + 17 * 3
    assert tinted.active_task is None
    learned = TintingAlgorithm(rounds=2, batch_size=4, **QUIET).run(pool)
    assert isinstance(learned, TintedModel)
    assert set(make_taskpool().evaluate(learned)) == {"model_info", *CLASSES, "average"}


def test_a_single_task_may_use_the_models_own_head():
    pool = classification_pool()
    one = make_taskpool(test_datasets={"bb": sentences("bb")})
    want = make_taskpool(pool).evaluate(pool.load_model("bb"))["bb"]
    assert one.evaluate(pool.load_model("bb"))["bb"] == want


def test_without_heads_a_merged_trunk_is_refused():
    model = classification_pool().load_model("aa")
    with pytest.raises(ValueError, match="no head for task 'aa': a merged trunk needs"):
        make_taskpool().evaluate(model)


def test_a_tint_for_another_task_is_refused():
    tinted = AWDAlgorithm().run(classification_pool())
    taskpool = make_taskpool(test_datasets={"cc": sentences("cc")})
    with pytest.raises(ValueError, match="no tint for task 'cc'"):
        taskpool.evaluate(tinted)


# -- data and options -----------------------------------------------------------------


def test_the_programs_tokenizer_is_used():
    pool = classification_pool()
    model = pool.load_model("aa")
    want = make_taskpool(pool).evaluate(model)
    assert make_taskpool(pool, tokenizer=None).evaluate(model) == want
    with pytest.raises(ValueError, match="task pool has no tokenizer: set taskpool"):
        make_taskpool(heads=dict.fromkeys(CLASSES, model), tokenizer=None).evaluate(
            model
        )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "dataset of task 'aa' is empty"),
        ([{"text": "good"}], r"Task 'aa', sample 0: it has no label, .*\['text'\]"),
        ([{"body": "good", "label": 0}], r"Task 'aa', sample 0: .*\['body', 'label'\]"),
        (
            [{"text": "good", "label": "pos"}],
            "sample 0: its label is 'pos', expected a n",
        ),
        (
            [{"text": "good", "label": None}],
            "sample 0: its label is None, expected a num",
        ),
        (
            [{"text": "good", "fine_label": 0, "coarse_label": 0}],
            r"could be its label: \['fine_label', 'coarse_label'\]. Rename one to 'label'",
        ),
        (
            iter(()),
            r"Task 'aa': its data set is a .*iterator, .*give a list of samples",
        ),
        ([{"text": "good", "label": -1}], "label -1 .hidden test labels. use the vali"),
        ([{"text": "good", "label": 2}], "label 2, but its head knows .* 0 to 1"),
    ],
)
def test_data_that_does_not_fit(rows, message):
    taskpool = make_taskpool(test_datasets={"aa": rows})
    with pytest.raises(ValueError, match=message):
        taskpool.evaluate(classification_pool().load_model("aa"))


@pytest.mark.parametrize(
    ("names", "labels", "message"),
    [
        (
            ["bad", "good"],
            [1, 0],
            "class 0 is 'bad' by id2label .*, but class 1 by its",
        ),
        (["x", "y"], [1, 2], " has the label 2, but its head knows the classes 0 to 1"),
    ],
)
def test_labels_are_those_of_the_experts_head(names, labels, message):
    expert = make_bert(2, 0)
    expert.config.id2label = dict(enumerate(names))
    pool = SimpleNamespace(_models={"aa": expert})
    kind = ClassLabel(names=["good", "bad", "ugly"][: max(labels) + 1])
    rows = Dataset.from_dict(
        {"text": ["good", "bad"], "label": labels},
        Features({"text": Value("string"), "label": kind}),
    )
    with pytest.raises(ValueError, match=f"^Task 'aa'.*{message}"):
        make_taskpool(pool, test_datasets={"aa": rows}).check_samples()
    expert.config.id2label = {0: "GOOD", 1: "bad", 2: "ugly"}
    make_taskpool(pool, test_datasets={"aa": rows}).check_samples()


def test_test_sets_are_checked_before_anything_is_learned(monkeypatch):
    pool = classification_pool()
    hidden = [row | {"label": -1} for row in sentences("bb")]
    taskpool = make_taskpool(test_datasets={"aa": sentences("aa"), "bb": hidden})
    method = TintingAlgorithm(**QUIET)
    method._program = SimpleNamespace(taskpool=taskpool)
    monkeypatch.setattr(type(pool), "load_model", None)
    with pytest.raises(ValueError, match="Task 'bb' has the label -1 .hidden test lab"):
        method.run(pool)


@pytest.mark.parametrize("column", ["labels", "fine_label"])
def test_other_label_columns_have_the_same_numbers(column):
    model = classification_pool().load_model("aa")
    rows = [{"text": r["text"], column: r["label"]} for r in sentences("aa")]
    want = make_taskpool(test_datasets={"aa": sentences("aa")}).evaluate(model)
    assert make_taskpool(test_datasets={"aa": rows}).evaluate(model) == want


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_datasets": {}}, "test_datasets is empty"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"heads": {"cc": "x"}}, r"`heads` names \['cc'\]"),
        ({"tasks": {"cc": {}}}, r"`tasks` names \['cc'\]"),
        ({"tasks": {"aa": {"metric": "f1"}}}, "expected fields, max_length and metri"),
        ({"tasks": {"aa": {"metrics": ["f2"]}}}, r"has \['f2'\]; known beside"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        make_taskpool(**options)


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match="no option 'batchsize'.*'batch_size'"):
        make_taskpool(batchsize=3)


def test_reports_are_saved_and_never_overwritten(tmp_path):
    from lightning import Fabric
    from lightning.fabric.loggers import CSVLogger

    taskpool = make_taskpool(classification_pool())
    taskpool._fabric_instance = Fabric(loggers=CSVLogger(tmp_path))
    for _ in range(2):
        report = taskpool.evaluate(classification_pool().load_model("aa"))
    saved = sorted(tmp_path.rglob("report*.json"))
    assert [path.name for path in saved] == ["report.json", "report_1.json"]
    assert json.loads(saved[0].read_text())["aa"] == report["aa"]


# -- GPT-2 ----------------------------------------------------------------------------


def gpt2_taskpool(kind, modelpool):
    target = {"_target_": "toy_text.tokenised"}
    taskpool = kind(
        test_datasets=OmegaConf.create({t: target | {"task": t} for t in CLASSES}),
        tokenizer=modelpool._tokenizer,
        dataloader_kwargs={"batch_size": 5},
        fast_dev_run=False,
    )
    taskpool._program = SimpleNamespace(modelpool=modelpool)
    return taskpool


def test_plain_gpt2_trunks_have_upstreams_numbers(tmp_path):
    pool = gpt2_pool(tmp_path)
    model = pool.load_model("aa")
    want = gpt2_taskpool(GPT2TextClassificationTaskPool, pool).evaluate(model)
    ours = gpt2_taskpool(GPT2TaskPool, pool)
    assert ours.evaluate(model.train()) == want  # without dropout all the same
    assert set(want) == {*CLASSES, "average"}


def test_tinted_gpt2_models_are_evaluated_with_their_own_layers(tmp_path):
    pool = gpt2_pool(tmp_path)
    taskpool = gpt2_taskpool(GPT2TaskPool, pool)
    trunk = pool.load_model("aa")
    heads = {}
    for task in CLASSES:  # the experts' heads, turned round
        heads[task] = ClassificationHead(-pool.load_classifier(task).score.weight)
    tinted = TintedModel(deepcopy(trunk), {"head": heads})
    got = taskpool.evaluate(tinted)
    for task in CLASSES:
        classifier = taskpool.get_classifier(task, trunk)
        classifier.score.weight.data.neg_()
        other = taskpool.get_classifier(task, tinted)
        ids = torch.tensor([[5, 6, 0], [7, 0, 0]])
        mask = (ids != 0).long()
        want = classifier(input_ids=ids, attention_mask=mask).logits
        assert torch.equal(other(input_ids=ids, attention_mask=mask).logits, want)
    assert set(got) == {*CLASSES, "average"} and tinted.active_task is None
    learned = TintingAlgorithm(rounds=2, tint="h.1", **QUIET).run(pool)
    assert set(taskpool.evaluate(learned)) == set(got)


def test_a_gpt2_expert_without_a_head_is_refused(tmp_path):
    pool = gpt2_pool(tmp_path)
    folder = pool._models["bb"]["pretrained_model_name_or_path"]
    pool.load_model("bb").save_pretrained(folder)
    with pytest.raises(ValueError, match="^expert 'bb' has no trained head"):
        gpt2_taskpool(GPT2TaskPool, pool).evaluate(pool.load_model("aa"))


@pytest.mark.parametrize(("label", "message"), [(-1, "Hidden labels"), (7, "Correct")])
def test_labels_of_gpt2_are_checked_before_anything_is_learned(
    label, message, tmp_path, monkeypatch
):
    pool = gpt2_pool(tmp_path)
    taskpool = gpt2_taskpool(GPT2TaskPool, pool)
    rows = tokenised("bb")
    rows[-1]["labels"] = label
    taskpool._test_datasets = {"bb": rows}
    method = TintingAlgorithm(**QUIET)
    method._program = SimpleNamespace(taskpool=taskpool)
    monkeypatch.setattr(type(pool), "load_model", None)
    where = f"^Task 'bb', sample {len(rows) - 1}: its label is {label}, .*{message}"
    with pytest.raises(ValueError, match=where):
        method.run(pool)
