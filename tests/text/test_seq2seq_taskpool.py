"""Our Flan-T5 task pool: FusionBench's numbers, by the names of its experts."""

import pytest
import torch
from scipy.stats import ConstantInputWarning
from toy_text import CLASSES, make_t5, make_tokenizer, move

from fusion_plugins import TintedModel
from fusion_plugins.taskpool.seq2seq import Seq2SeqTaskPool

WORDS = make_tokenizer()


def talkative(seed: int = 1) -> torch.nn.Module:
    """A model that does not end its answers at once."""
    return move(make_t5(2, 0), seed, size=1.0)


def questions(answers: list[list[int]]) -> list[dict]:
    """Questions of two words, and what is the right answer to each."""
    return [
        {"input_ids": [4 + i % 7, 5, 0], "attention_mask": [1, 1, 0], "labels": answer}
        for i, answer in enumerate(answers)
    ]


@torch.no_grad()
def answers(model, rows: list[dict]) -> list[list[int]]:
    """What the model writes, one question at a time, without special tokens."""
    found = []
    for row in rows:
        words = torch.tensor([row["input_ids"]])
        mask = torch.tensor([row["attention_mask"]])
        written = model.generate(words, attention_mask=mask, max_length=10)[0]
        special = WORDS.all_special_ids
        found.append([w for w in written.tolist() if w not in special])
    return found


def padded(rows: list[list[int]]) -> list[list[int]]:
    return [row + [-100] * (10 - len(row)) for row in rows]


def pool(tests: dict, **options) -> Seq2SeqTaskPool:
    return Seq2SeqTaskPool(tests, WORDS, **options)


def test_accuracy_is_the_share_of_answers_that_are_right_word_for_word():
    model = talkative()
    own = answers(model, questions([[]] * 7))
    assert any(own)  # it writes something
    labels = padded(own[:5] + [[9, 9], [9]])
    report = pool({"aa": questions(labels)}, batch_size=3).evaluate(model)
    assert report == {"aa": {"accuracy": pytest.approx(5 / 7)}}


def test_numbers_are_ranked_and_equal_answers_have_no_rank():
    model = talkative()
    rows = questions(padded([[4], [5], [6]]))
    with pytest.warns(ConstantInputWarning):
        report = pool({"aa": rows, "stsb": rows}).evaluate(model)
    assert "accuracy" in report["aa"]
    assert report["stsb"] == {"spearman_rho": 0.0}  # words are no numbers


def test_a_tinted_model_answers_with_each_tasks_layer():
    site = "encoder.block.1"
    own = enumerate(CLASSES, 2)
    layers = {task: talkative(n).get_submodule(site) for n, task in own}
    tinted = TintedModel(talkative(), {site: layers})
    rows = questions([[]] * 7)
    wanted = {}
    for task in CLASSES:
        tinted.set_task(task)
        wanted[task] = answers(tinted.trunk, rows)
    tinted.set_task(None)
    tests = {task: questions(padded(wanted[task])) for task in CLASSES}
    report = pool(tests).evaluate(tinted)
    assert {task: found["accuracy"] for task, found in report.items()} == dict.fromkeys(
        CLASSES, 1.0
    )


@pytest.mark.parametrize(
    ("tests", "options", "error"),
    [
        ({}, {}, "test_datasets is empty"),
        ({"aa": []}, {}, "Task 'aa' has no test samples"),
        ({"aa": [{"text": "a"}]}, {}, r"'aa', sample 0 lacks \['input_ids', 'att"),
        ({"aa": questions([[4]])}, {"batch_size": 0}, "batch_size is 0"),
        ({"aa": questions([[4]])}, {"batch": 2}, "has no option 'batch'"),
    ],
)
def test_what_does_not_fit_is_refused(tests, options, error):
    with pytest.raises((ValueError, TypeError), match=error):
        pool(tests, **options).check_samples()
