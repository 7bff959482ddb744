import warnings
from types import SimpleNamespace

import pytest
from fusion_bench.tasks.clip_classification import (
    CLIPTemplateFactory,
    get_classnames_and_templates,
)

from fusion_plugins.pools.clip_tasks import TextHeads, register_clip_task


@pytest.fixture(autouse=True)
def _restore_registry(monkeypatch):
    known = dict(CLIPTemplateFactory._dataset_mapping)
    monkeypatch.setattr(CLIPTemplateFactory, "_dataset_mapping", known)


def test_registered_task_is_found_with_its_templates():
    register_clip_task("pets", ["cat", "dog"], ["a photo of a {}.", "the {}"])
    names, templates = get_classnames_and_templates("pets")
    assert names == ["cat", "dog"]
    assert [t("cat") for t in templates] == ["a photo of a cat.", "the cat"]


def test_braces_in_class_names_are_kept():
    register_clip_task("odd", ["{}", "a{b}"], ["a {}."])
    _, templates = get_classnames_and_templates("odd")
    assert templates[0]("a{b}") == "a a{b}."


def test_same_content_again_changes_nothing_and_warns_nobody():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        register_clip_task("pets", ["cat", "dog"], ["a {}."])
        first = CLIPTemplateFactory._dataset_mapping["pets"]
        register_clip_task("pets", ("cat", "dog"), ("a {}.",))
        assert CLIPTemplateFactory._dataset_mapping["pets"] is first


def test_other_content_replaces_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        register_clip_task("pets", ["cat", "dog"], ["a {}."])
        register_clip_task("pets", ["cow"], ["the {}."])
        register_clip_task("mnist", ["zero", "one"], ["a {}."])  # FusionBench's own
    assert get_classnames_and_templates("pets")[0] == ["cow"]
    assert get_classnames_and_templates("mnist")[0] == ["zero", "one"]


@pytest.mark.parametrize(
    ("name", "classes", "templates", "message"),
    [
        ("", ["cat"], ["a {}"], "needs a non-empty name"),
        ("pets", [], ["a {}"], "class names is empty"),
        ("pets", "cat", ["a {}"], "single string 'cat'"),
        ("pets", ["cat", " "], ["a {}"], "must be non-empty text"),
        ("pets", ["cat", 3], ["a {}"], "must be non-empty text"),
        ("pets", ["cat"], [], "templates is empty"),
        ("pets", ["cat"], "a {}", "single string"),
        ("pets", ["cat"], ["a photo"], "exactly one '{}'"),
        ("pets", ["cat"], ["a {} {}"], "exactly one '{}'"),
    ],
)
def test_bad_tasks_say_what_is_wrong(name, classes, templates, message):
    with pytest.raises(ValueError, match=message):
        register_clip_task(name, classes, templates)


def test_a_clip_whose_tokenizer_knows_no_words_makes_no_heads():
    tokenizer = SimpleNamespace(
        name_or_path="models/base",
        all_special_tokens=["<start>", "<end>"],
        get_vocab=lambda: {"<start>": 0, "<end>": 1},
    )
    classifier = SimpleNamespace(processor=SimpleNamespace(tokenizer=tokenizer))
    with pytest.raises(ValueError, match="The tokenizer models/base knows no words"):
        TextHeads(classifier)
