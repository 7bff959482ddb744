"""What does not fit a text pool is refused with the reason and the way out."""

import pytest
import torch
from fusion_bench.modelpool import Seq2SeqLMPool
from omegaconf import OmegaConf
from toy_text import (
    QUIET,
    classification_pool,
    configs,
    datasets,
    family,
    gpt2_pool,
    make_bert,
    make_gpt2,
    make_roberta,
    make_tokenizer,
    move,
    save,
    seq2seq_pool,
)
from transformers import GPT2Config, T5Config

from fusion_plugins import AdaMergingAlgorithm, AWDAlgorithm, TintingAlgorithm
from fusion_plugins.pools import adapter_for
from fusion_plugins.pools.model_files import load_tokenizer
from fusion_plugins.pools.tokens import require_words


def adapt(pool, **options):
    return AdaMergingAlgorithm(steps=1, batch_size=4, **QUIET, **options).run(pool)


@pytest.mark.parametrize("make", [classification_pool, seq2seq_pool])
def test_no_tokenizer(make):
    with pytest.raises(ValueError, match="has no tokenizer to prepare text with. Set"):
        adapt(make(tokenizer=None))


@pytest.mark.parametrize("config", [GPT2Config(), T5Config()])
def test_a_folder_without_tokenizer(tmp_path, config):
    config.save_pretrained(tmp_path)
    # transformers 5 makes a tokenizer without words, older releases fail.
    message = f"The tokenizer {tmp_path} (knows no words|cannot be loaded)"
    with pytest.raises(ValueError, match=message):
        load_tokenizer(seq2seq_pool(tokenizer=str(tmp_path)))


def test_special_tokens_and_the_space_alone_are_no_words():
    class Tokenizer:
        all_special_tokens = ("<pad>", "<unk>")

        def get_vocab(self):
            return dict.fromkeys([*self.all_special_tokens, "\u2581", *words], 0)

    words = ["a"]
    require_words(Tokenizer(), "here")
    words.clear()
    with pytest.raises(
        ValueError, match="The tokenizer here knows no words: its files"
    ):
        require_words(Tokenizer(), "here")
    require_words(object(), "one of another kind")


def test_a_tokenizer_that_cannot_be_loaded_is_named(tmp_path):
    config = {"_target_": "transformers.AutoTokenizer.from_pretrained"}
    config["pretrained_model_name_or_path"] = str(tmp_path)
    for tokenizer in (str(tmp_path), config):
        message = f"^The tokenizer {tmp_path} cannot be loaded .*. Save the models' own"
        with pytest.raises(ValueError, match=message):
            load_tokenizer(seq2seq_pool(tokenizer=tokenizer))


def test_a_tokenizer_by_folder_or_config(tmp_path):
    make_tokenizer().save_pretrained(tmp_path)
    target = "transformers.AutoTokenizer.from_pretrained"
    config = {"_target_": target, "pretrained_model_name_or_path": str(tmp_path)}
    for tokenizer in (str(tmp_path), OmegaConf.create(config)):
        assert adapt(seq2seq_pool(tokenizer=tokenizer)) is not None


def test_no_datasets():
    with pytest.raises(ValueError, match=r"lists no test_datasets for \['aa', 'bb'\]"):
        adapt(classification_pool(test_datasets=None))


def test_an_empty_dataset():
    with pytest.raises(ValueError, match="dataset of task 'bb' is empty"):
        adapt(classification_pool(test_datasets={"aa": datasets()["aa"], "bb": []}))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"text": "a"}, {"text": 3}],
            "Task 'bb', sample 1: The field 'text' .* is 3, ex",
        ),
        (
            [{"text": "a"}, {"body": "a"}],
            r"sample 1: A sample has the fields \['body'\]",
        ),
        (["good"], "Task 'bb', sample 0: A text sample is a str, expected a dict"),
        (
            {"train": [], "test": []},
            r"is a dict of \['train', 'test'\], .*Choose one spl",
        ),
    ],
)
def test_samples_are_refused_before_a_model_is_loaded(rows, message, monkeypatch):
    pool = classification_pool(test_datasets=datasets() | {"bb": rows})
    monkeypatch.setattr(type(pool), "load_model", None)
    with pytest.raises(ValueError, match=message):
        adapt(pool)


def test_unknown_fields_name_task_and_sample():
    rows = datasets() | {"bb": [{"review": "good", "label": 0}] * 4}
    with pytest.raises(
        ValueError, match=r"Task 'bb', sample \d: .*\['label', 'review'\]"
    ):
        adapt(classification_pool(test_datasets=rows))
    merged = adapt(
        classification_pool(test_datasets=rows), tasks={"bb": {"fields": ["review"]}}
    )
    assert merged.tasks == ("aa", "bb")


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"classnames": ["x"]}, "tasks.aa is .*classnames.*expected fields"),
        ({"fields": "text"}, "tasks.aa.fields is 'text', expected a list"),
        ({"fields": ["a", "b", "c"]}, "expected a list of one or two names"),
    ],
)
def test_wrong_task_options(info, message):
    with pytest.raises(ValueError, match=message):
        adapter_for(classification_pool(), {"aa": info})


def test_more_tokens_than_the_model_has_positions_for():
    with pytest.raises(ValueError, match="max_length is 99, but .* 20 tokens only"):
        adapt(classification_pool(), tasks={"aa": {"max_length": 99}})


def test_a_short_task_is_cut_to_its_own_length():
    adapter = adapter_for(classification_pool(), {"aa": {"max_length": 4}})
    adapter.prepare(torch.device("cpu"))
    assert max(int(row[1].sum()) for row in adapter.dataset("aa", "test")) == 4
    assert adapter.dataset("aa", "test")[0].shape == (3, 16)
    assert max(int(row[1].sum()) for row in adapter.dataset("bb", "test")) > 4


# -- heads ----------------------------------------------------------------------------


def regression_models(make) -> dict:
    models = family(make)
    models["bb"] = move(make(1, 5), 5)
    return models


@pytest.mark.parametrize("method", [AdaMergingAlgorithm, TintingAlgorithm])
@pytest.mark.parametrize("make", [make_bert, make_roberta])
def test_regressions_need_a_data_free_method(make, method):
    pool = classification_pool()
    pool._models = regression_models(make)
    with pytest.raises(ValueError, match="Task 'bb' is a regression: .* need classes"):
        method(**QUIET).run(pool)
    merged = AWDAlgorithm().run(pool)
    merged.set_task("bb")
    assert merged(input_ids=torch.tensor([[1, 5, 2]])).logits.shape == (1, 1)


def test_gpt2_regressions_too(tmp_path):
    models = family(make_gpt2)
    models["bb"] = make_gpt2(1, 3)
    with pytest.raises(ValueError, match="Task 'bb' is a regression"):
        adapt(gpt2_pool(tmp_path, models))


def test_an_expert_without_head_is_not_given_a_random_one(tmp_path):
    models = family(make_bert)
    models["bb"] = models["bb"].bert  # the checkpoint of a bare encoder
    pool = classification_pool()
    folders = save(models, tmp_path)
    pool._models = configs(folders, "AutoModelForSequenceClassification")
    with pytest.raises(ValueError, match="expert 'bb' has no trained head: .*weight"):
        adapt(pool)
    with pytest.raises(ValueError, match="expert 'bb' has no trained head"):
        AWDAlgorithm().run(pool)


def test_a_gpt2_expert_without_head(tmp_path):
    models = family(make_gpt2)
    models["bb"] = models["bb"].transformer
    with pytest.raises(ValueError, match="expert 'bb' has no trained head: .*score"):
        adapt(gpt2_pool(tmp_path, models))


def test_a_gpt2_expert_in_memory_has_no_classifier(tmp_path):
    pool = gpt2_pool(tmp_path)
    pool._models = {n: m.transformer for n, m in family(make_gpt2).items()}
    with pytest.raises(
        ValueError, match="expert 'aa' is not loaded by from_pretrained"
    ):
        adapt(pool)


def test_a_base_without_head():
    pool = classification_pool()
    pool._models["_pretrained_"] = pool._models["_pretrained_"].bert
    with pytest.raises(ValueError, match="BertModel without a classification head"):
        adapt(pool)


def test_a_head_that_looks_for_another_padding_token():
    pool = classification_pool(make_gpt2, tokenizer=make_tokenizer(pairs=False))
    pool._models["_pretrained_"].config.pad_token_id = 3
    with pytest.raises(
        ValueError, match="pad_token_id 3, but the tokenizer pads with 0"
    ):
        adapt(pool)


# -- sequence to sequence -------------------------------------------------------------


def test_classifiers_in_a_seq2seq_pool():
    options = {"tokenizer": make_tokenizer(), "test_datasets": datasets()}
    pool = Seq2SeqLMPool(family(make_bert, {"aa": 2, "bb": 2}), **options)
    with pytest.raises(
        ValueError, match="BertForSequenceClassification without a decod"
    ):
        adapt(pool)


def test_a_vocabulary_is_no_head_to_tint():
    with pytest.raises(ValueError, match="have no head per task. Tint a layer"):
        TintingAlgorithm(**QUIET).run(seq2seq_pool())


def test_tied_layers_cannot_be_tinted():
    with pytest.raises(ValueError, match="'lm_head' shares the parameter"):
        TintingAlgorithm(tint="lm_head", **QUIET).run(seq2seq_pool())
