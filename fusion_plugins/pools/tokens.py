"""Text samples as integer tensors of one shape, and back to a model's inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

#: Pairs come first: QNLI has `question` and `sentence`.
TEXT_FIELDS = (
    ("sentence1", "sentence2"),
    ("question", "sentence"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text", "text_pair"),
    ("sentence",),
    ("text",),
)
_SPACE = "\u2581"  # of SentencePiece, which has it without a vocabulary too
LONGEST = 512  # tokens, where neither user, tokenizer nor model says less


class TextEncoder:
    """Samples as integer tensors of shape (rows, max_length).

    Rows are `input_ids`, `attention_mask` and, where the tokenizer gives them,
    `token_type_ids`. Unused places hold the padding token and a mask of 0. The tokenizer
    is of transformers, with a padding token, else a ValueError. `rows` are those of the
    models' embedding, if known: a sample with other tokens is refused.
    """

    def __init__(self, tokenizer: Any, max_length: int, rows: int | None = None):
        if tokenizer.pad_token_id is None:
            raise ValueError(
                "The tokenizer has no padding token, so sentences cannot share a batch."
                " Give it one the models know, such as pad_token='<|endoftext|>'."
            )
        self.tokenizer, self.max_length, self._rows = tokenizer, max_length, rows
        self.names = ["input_ids", "attention_mask"]
        if "token_type_ids" in tokenizer.model_input_names:
            self.names.append("token_type_ids")

    def __call__(
        self,
        sample: Any,
        fields: Sequence[str] | None = None,
        max_length: int | None = None,
    ) -> Tensor:
        """One sample, int32.

        Args:
            sample: A dict with text in `fields`, or with `input_ids` (and masks).
            fields: One or two names; found among TEXT_FIELDS by default.
            max_length: Of this sample, at most that of the encoder; longer texts are cut.

        Raises:
            ValueError: No such fields, no text in them, `input_ids` that are too long, or
                a token that the models do not know.
        """
        limit, texts = max_length or self.max_length, texts_of(sample, fields)
        if texts:
            rows = dict(self.tokenizer(*texts, truncation=True, max_length=limit))
        else:
            rows = self._tokenised(sample, limit)
        stored = torch.zeros(len(self.names), self.max_length, dtype=torch.int32)
        stored[0] = self.tokenizer.pad_token_id
        for row, name in zip(stored, self.names, strict=True):
            values = torch.as_tensor(rows.get(name, []), dtype=torch.int32)
            row[: len(values)] = values
        if self._rows is not None and stored[0].max() >= self._rows:
            raise ValueError(
                f"its text or padding has the token {stored[0].max()}, but the model knows"
                f" the tokens 0 to {self._rows - 1}. Use the models' own tokenizer, without"
                " tokens or padding that were added to it."
            )
        if not stored[1].any():  # an empty text; attention needs something to look at
            stored[1, 0] = 1
        return stored

    def _tokenised(self, sample: Mapping, limit: int) -> dict[str, Tensor]:
        """A sample's own rows without the padding behind them."""
        ids = torch.as_tensor(sample["input_ids"]).flatten()
        if "attention_mask" in sample:
            mask = torch.as_tensor(sample["attention_mask"]).flatten()
        else:
            mask = (ids != self.tokenizer.pad_token_id).int()
        seen = mask.nonzero()
        length = int(seen[-1]) + 1 if len(seen) else 0
        if length > limit:
            raise ValueError(
                f"A tokenised sample has {length} tokens, but at most {limit} are taken."
                " Truncate when tokenising, or raise max_length if the model allows it."
            )
        rows = {"input_ids": ids[:length], "attention_mask": mask[:length]}
        if "token_type_ids" in sample:
            types = torch.as_tensor(sample["token_type_ids"]).flatten()
            rows["token_type_ids"] = types[:length]
        return rows

    def unpack(self, stored: Tensor) -> dict[str, Tensor]:
        """Model inputs, int64 (samples, longest), without the padding that all share."""
        longest = int(stored[:, 1].any(0).nonzero()[-1]) + 1
        rows = stored[..., :longest].long().unbind(1)
        return dict(zip(self.names, rows, strict=True))


def texts_of(sample: Any, fields: Sequence[str] | None = None) -> list[str]:
    """The one or two texts of a sample; none if it is tokenised already."""
    if not isinstance(sample, Mapping):
        raise ValueError(
            f"A text sample is a {type(sample).__name__}, expected a dict with text fields"
            " or input_ids."
        )
    if fields is None and "input_ids" in sample:
        return []
    return [_text(sample, name) for name in fields or find_fields(sample)]


def find_fields(sample: Mapping) -> tuple[str, ...]:
    """The text fields of a sample, or ValueError."""
    for fields in TEXT_FIELDS:
        if all(name in sample for name in fields):
            return fields
    known = ", ".join("+".join(fields) for fields in TEXT_FIELDS)
    raise ValueError(
        f"A sample has the fields {sorted(sample)}, none of which is known as text."
        f" Expected input_ids or one of {known}; or name them:"
        " tasks={my_task: {fields: [review]}}."
    )


def _text(sample: Mapping, field: str) -> str:
    if field not in sample:
        raise ValueError(f"A sample has no field '{field}'; it has {sorted(sample)}.")
    text = sample[field]
    if not isinstance(text, str):
        raise ValueError(
            f"The field '{field}' of a sample is {text!r}, expected text (str)."
        )
    return text


def require_words(tokenizer: Any, source: object) -> None:
    """Raise ValueError if a tokenizer's vocabulary was missing where it was loaded from.

    transformers 5 then makes one that knows special tokens alone, without a word.

    Args:
        tokenizer: It; one that lists no vocabulary is not looked at.
        source: Where it is from.
    """
    known: Mapping[str, int] = getattr(tokenizer, "get_vocab", dict)()
    words = known.keys() - set(getattr(tokenizer, "all_special_tokens", ()))
    if known and not words - {_SPACE}:
        raise ValueError(
            f"The tokenizer {source} knows no words: its files are missing. Save the"
            " models' own there with tokenizer.save_pretrained(folder), or name another"
            " one."
        )


def position_limit(module: nn.Module) -> int | None:
    """How many tokens a model has positions for; None where there is no limit."""
    for name, layer in module.named_modules():
        place = name.rpartition(".")[2]
        if isinstance(layer, nn.Embedding) and place in ("position_embeddings", "wpe"):
            # RoBERTa counts positions from behind the padding token's number.
            first = 0 if layer.padding_idx is None else layer.padding_idx + 1
            return layer.num_embeddings - first
    config = getattr(module, "config", None)
    return getattr(config, "max_position_embeddings", None)


def token_rows(module: nn.Module) -> int | None:
    """How many tokens a model of transformers, or one around it, has embeddings for."""
    for inner in module.modules():
        embeddings: Any = getattr(inner, "get_input_embeddings", None)
        if embeddings is not None:
            return getattr(embeddings(), "num_embeddings", None)
    return None


def choose_length(tokenizer: Any, limit: int | None, wanted: int | None) -> int:
    """Tokens per sample: `wanted`, or as many as tokenizer and model take up to LONGEST."""
    if wanted is None:
        return min(tokenizer.model_max_length, limit or LONGEST, LONGEST)
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
        raise ValueError(f"max_length is {wanted!r}, expected a whole number >= 1.")
    if limit is not None and wanted > limit:
        raise ValueError(
            f"max_length is {wanted}, but the model has positions for {limit} tokens only."
        )
    return wanted
