"""Text samples become integer tensors of one shape, whatever form they come in."""

import datasets as hugging_face
import pytest
import torch
from torch import nn
from toy_text import LONGEST, WORDS, make_gpt2, make_roberta, make_t5, make_tokenizer

from fusion_plugins.modelpool.tsv import TsvDataset
from fusion_plugins.pools.tokens import (
    TEXT_FIELDS,
    TextEncoder,
    choose_length,
    find_fields,
    position_limit,
    token_rows,
)


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder(make_tokenizer(), LONGEST)


def test_rows_are_ids_mask_and_types(encoder):
    stored = encoder({"premise": "good film", "hypothesis": "bad", "label": 1})
    assert stored.dtype == torch.int32 and stored.shape == (3, LONGEST)
    word = {w: i + 4 for i, w in enumerate(WORDS)}
    ids = [1, word["good"], word["film"], 2, word["bad"], 2]
    assert stored[0].tolist() == ids + [0] * 10
    assert stored[1].tolist() == [1] * 6 + [0] * 10
    assert stored[2].tolist() == [0] * 4 + [1] * 2 + [0] * 10


def test_unpacking_cuts_the_padding_that_all_share(encoder):
    texts = ["good", "good bad film plot"]
    stored = torch.stack([encoder({"text": text}) for text in texts])
    want = encoder.tokenizer(texts, padding=True, return_tensors="pt")
    got = encoder.unpack(stored)
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert got[name].dtype == torch.int64
        assert torch.equal(got[name], value)


def test_tokenised_samples_equal_text(encoder):
    want = encoder({"text": "what is good"})
    made = encoder.tokenizer("what is good", padding="max_length", max_length=30)
    assert torch.equal(encoder(dict(made)), want)
    bare = {"input_ids": torch.tensor(made["input_ids"])}
    assert torch.equal(encoder(bare), want)


def test_padding_on_the_left_stays_there(encoder):
    stored = encoder({"input_ids": [0, 0, 7, 8, 0], "attention_mask": [0, 0, 1, 1, 0]})
    assert stored[0, :5].tolist() == [0, 0, 7, 8, 0]
    assert stored[1, :5].tolist() == [0, 0, 1, 1, 0]
    assert encoder.unpack(stored[None])["input_ids"].shape == (1, 4)


def test_long_texts_are_cut_and_long_tokens_refused(encoder):
    assert encoder({"text": "good " * 50})[1].sum() == LONGEST
    assert encoder({"text": "good " * 50}, max_length=5)[1].sum() == 5
    with pytest.raises(ValueError, match="has 17 tokens, but at most 16"):
        encoder({"input_ids": [5] * 17})


def test_an_empty_text_without_special_tokens_keeps_one_place():
    encoder = TextEncoder(make_tokenizer(pairs=False), LONGEST)
    assert encoder({"text": ""})[1].tolist() == [1] + [0] * 15


@pytest.mark.parametrize("fields", TEXT_FIELDS, ids="+".join)
def test_every_known_field_is_found(fields):
    assert find_fields(dict.fromkeys([*fields, "label", "idx"], "x")) == fields


def test_rows_of_a_hugging_face_dataset(encoder):
    rows = hugging_face.Dataset.from_dict({"sentence": ["good film"], "label": [0]})
    assert torch.equal(encoder(rows[0]), encoder({"text": "good film"}))


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"review": "x", "label": 1}, r"has the fields \['label', 'review'\].*fields:"),
        ({"text": None}, "field 'text' of a sample is None, expected text"),
        ("good film", "sample is a str, expected a dict"),
    ],
)
def test_what_cannot_be_read_is_named(encoder, sample, message):
    with pytest.raises(ValueError, match=message):
        encoder(sample)


def test_own_fields_may_be_named(encoder):
    sample = {"title": "good", "review": "bad film", "input_ids": [1]}
    got = encoder(sample, ["title", "review"])
    assert torch.equal(got, encoder({"text": "good", "text_pair": "bad film"}))
    with pytest.raises(ValueError, match="no field 'body'; it has .*'review'"):
        encoder(sample, ["body"])


@pytest.mark.parametrize("added", ["zebra", "[PADDING]"])
def test_tokens_that_the_model_lacks_are_refused(added):
    tokenizer = make_tokenizer()
    if added == "zebra":
        tokenizer.add_tokens([added])
    else:
        tokenizer.add_special_tokens({"pad_token": added})
    rows = token_rows(nn.Sequential(make_roberta(2, 0)))
    assert rows == len(tokenizer) - 1
    encoder = TextEncoder(tokenizer, LONGEST, rows)
    with pytest.raises(
        ValueError, match="the token 18, but .* the tokens 0 to 17. Use"
    ):
        encoder({"text": "a zebra"})
    TextEncoder(tokenizer, LONGEST, rows + 1)({"text": "a zebra"})


def test_a_model_without_tokens_limits_none():
    assert token_rows(nn.Linear(2, 2)) is None


def test_a_tokenizer_without_padding_token_is_refused():
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="no padding token"):
        TextEncoder(tokenizer, LONGEST)


def test_position_limits():
    # RoBERTa's 20 positions start behind the padding token, number 0.
    assert position_limit(make_roberta(2, 0)) == 19
    assert position_limit(make_gpt2(2, 0)) == 20
    assert position_limit(make_t5(2, 0)) is None
    assert position_limit(torch.nn.Linear(2, 2)) is None


def test_a_roberta_takes_exactly_its_limit():
    model = make_roberta(2, 0)
    model(torch.full((1, 19), 5))
    with pytest.raises((IndexError, RuntimeError), match="out of "):
        model(torch.full((1, 20), 5))


def test_lengths():
    tokenizer = make_tokenizer()
    assert choose_length(tokenizer, 20, None) == 16
    assert choose_length(tokenizer, 10, None) == 10
    assert choose_length(tokenizer, None, 99) == 99
    tokenizer.model_max_length = 10**30
    assert choose_length(tokenizer, None, None) == 512
    with pytest.raises(ValueError, match="max_length is 21, but .* for 20 tokens"):
        choose_length(tokenizer, 20, 21)
    with pytest.raises(ValueError, match="max_length is 0, expected a whole number"):
        choose_length(tokenizer, 20, 0)


# -- files ----------------------------------------------------------------------------


def write(path, text: str):
    path.write_text(text, encoding="utf-8")
    return path


def test_a_tsv_file_is_a_dataset(tmp_path):
    path = write(tmp_path / "a.tsv", 'label\ttext\n1\tsays "good" é\n0\tbad\n')
    rows = TsvDataset(path)
    assert len(rows) == 2
    assert rows[0] == {"label": 1, "text": 'says "good" é'}
    assert TsvDataset(write(path, "label\ttext\n1\ta\n0.5\tb\n"))[0]["label"] == 1.0


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("\ufefflabel\ttext\n1\ta\n", "a"),  # saved by a spreadsheet
        ("label\ttext\r\n1\ta\r\n", "a"),
        ("label\ttext\n1\ta", "a"),
        ("label\ttext\n1\tone\u2028line\x0b\n", "one\u2028line\x0b"),
        ("label\ttext\n1\t" + "long " * 40000, "long " * 40000),
    ],
    ids=["byte order mark", "windows", "no last newline", "other newlines", "long"],
)
def test_text_is_kept_as_it_is(tmp_path, text, want):
    path = tmp_path / "a.tsv"
    path.write_bytes(text.encode())
    assert TsvDataset(path).rows == [{"label": 1, "text": want}]


def test_another_encoding_is_named(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_bytes("label\ttext\n1\tcafé\n".encode("latin-1"))
    with pytest.raises(
        ValueError, match=r"a.tsv is not UTF-8 \(.*0xe9.*Save it as UTF"
    ):
        TsvDataset(path)


def test_a_choice_of_samples_is_seeded_and_ordered(tmp_path):
    lines = "".join(f"{n}\tword\n" for n in range(50))
    path = write(tmp_path / "a.tsv", "label\ttext\n" + lines)
    chosen = [row["label"] for row in TsvDataset(path, samples=10)]
    assert len(set(chosen)) == 10 and chosen == sorted(chosen)
    assert chosen == [row["label"] for row in TsvDataset(path, samples=10)]
    assert chosen != [row["label"] for row in TsvDataset(path, samples=10, seed=1)]


def test_a_file_need_not_have_labels(tmp_path):
    rows = TsvDataset(write(tmp_path / "a.tsv", "id\ttext\n7\ta\n")).rows
    assert rows == [{"id": "7", "text": "a"}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label\ttext\n", r"has 1 line\(s\): a header"),
        ("label\ttext\n1\n", "line 2 has 1 tab-separated fields, .* names 2"),
        ("label\ttext\n1\ta\ngood\tb\n", "line 3: the label 'good' is not a number"),
        ("label\ttext\n1\ta\nnan\tb\n", "line 3: the label 'nan' is not a number"),
    ],
)
def test_damaged_files_are_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        TsvDataset(write(tmp_path / "a.tsv", text))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="none.tsv is not a file"):
        TsvDataset(tmp_path / "none.tsv")
