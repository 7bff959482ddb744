"""Experts with heads of their own, which no method can average, on a text pool."""

import torch
from fusion_bench.method import SimpleAverageAlgorithm
from fusion_bench.modelpool import SequenceClassificationModelPool
from omegaconf import OmegaConf
from transformers import BertConfig, BertForSequenceClassification

from fusion_plugins.compare.cells import Cell
from fusion_plugins.compare.execution import Bench, run_cell
from fusion_plugins.compare.methods import Method

CLASSES = {"two": 2, "three": 3}
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "vocab_size": 20,
}


def make_bert(classes: int, seed: int):
    torch.manual_seed(seed)
    return BertForSequenceClassification(BertConfig(num_labels=classes, **SIZES)).eval()


class ClassCounts:
    """Reports how many classes a model tells apart for each task."""

    def evaluate(self, model):
        report = {}
        for task in CLASSES:
            if hasattr(model, "set_task"):
                model.set_task(task)
            logits = model(input_ids=torch.tensor([[1, 2, 3]])).logits
            report[task] = {"accuracy": logits.shape[1] / 10}
        return report


def run(name: str, algorithm=None) -> dict:
    models = {"_pretrained_": make_bert(2, 0)}
    models |= {t: make_bert(n, s) for s, (t, n) in enumerate(CLASSES.items(), 1)}
    pool = SequenceClassificationModelPool(models, tokenizer=None)
    config = OmegaConf.create({"_target_": f"upstream.{name}"} if algorithm else {})
    bench = Bench(pool, ClassCounts(), lambda cell: (algorithm, config))
    (record,) = run_cell(Cell(Method(name, {}, config), 0), bench)
    assert record["status"] == "done", record["error"]["traceback"]
    return {task: numbers["accuracy"] for task, numbers in record["tasks"].items()}


def test_merged_models_get_the_experts_heads():
    assert run("simple_average", SimpleAverageAlgorithm()) == {"two": 0.2, "three": 0.3}


def test_so_do_the_references():
    assert run("pretrained") == {"two": 0.2, "three": 0.3}
    assert run("experts") == {"two": 0.2, "three": 0.3}
