"""What a model folder holds beside its weights: config, tokenizer, code."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.convert_slow_tokenizer import import_protobuf

from ..common import get_logger
from ..merged.cards import CARD
from ..task_vectors.files import UNMADE, one_line
from .output import OutputFolder

log = get_logger(__name__)

_TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.spm",
    "*.tiktoken",
    "tekken.json",
    # What single tokenizers of transformers have beside these: VOCAB_FILES_NAMES.
    *("bpe.codes", "byte_maps.json", "dict.txt", "emoji.json", "entity_vocab.json"),
    *("normalizer.json", "prophetnet.tokenizer", "target_vocab.json", "word_*.json"),
    "chat_template*",
    "additional_chat_templates/*",
)
_MODEL = ("config.json", "generation_config.json", "*processor_config.json", "*.py")


class Companions:
    """The files beside the weights of a merge.

    Args:
        base: The pretrained model's folder; its config describes the merged model.
        tokenizer: A folder to take the tokenizer from, a tokenizer, or None for the
            base's.

    Raises:
        ValueError: A link leads out of its model's folder.
    """

    def __init__(self, base: Path, tokenizer: Any = None):
        self._files = dict(_matching(base, _MODEL))
        self._tokenizer, self._source = tokenizer, "of the pool"
        if tokenizer is None or isinstance(tokenizer, Path):
            folder = tokenizer or base
            self._tokenizer, self._source = None, f"in {folder}"
            self._files |= dict(_matching(folder, _TOKENIZER))

    @property
    def names(self) -> Collection[str]:
        """Those of the files that are copied."""
        return self._files.keys()

    def check(self, rows: int | None) -> None:
        """Raise ValueError if the merged model could not be used with these files.

        Args:
            rows: Of the model; the tokenizer must not have more tokens.
        """
        if self._tokenizer is not None:
            tokens = len(self._tokenizer)
        else:
            tokens = max(map(_tokens_in, self._files.values()), default=0)
        if rows is not None and tokens > rows:
            raise ValueError(
                f"The tokenizer {self._source} has {tokens} tokens, the merged model"
                f" {rows} rows: the last tokens would have no embedding. Name one that fits"
                " with modelpool.tokenizer=FOLDER, or resize the embeddings of the"
                " pretrained model and save it."
            )
        for file in self._files.values():
            if file.suffix == ".json" and file.name not in _IDS:  # these were read
                _require_json(file)

    def copy(self, output: OutputFolder, dtype: torch.dtype | None, card: str) -> None:
        """Make a folder of merged weights a model that loads by itself.

        Args:
            output: The folder.
            dtype: Of the weights, for the config; None leaves it as in the base.
            card: The model card.
        """
        contents = {name: file.read_bytes() for name, file in self._files.items()}
        if dtype is not None:
            contents["config.json"] = _with_dtype(contents["config.json"], dtype)
        if self._tokenizer is not None:
            with tempfile.TemporaryDirectory() as folder:
                self._tokenizer.save_pretrained(folder)
                saved = dict(_matching(Path(folder), _TOKENIZER))
                contents |= {name: file.read_bytes() for name, file in saved.items()}
        output.put_beside(contents | {CARD: card.encode()})


def _matching(folder: Path, patterns: Sequence[str]) -> Iterator[tuple[str, Path]]:
    root = folder.resolve()
    if root.parent.name == "snapshots":  # the hub's cache: links to ../../blobs
        root = root.parent.parent
    for file in sorted((*folder.glob("*"), *folder.glob("*/*"))):
        name = file.relative_to(folder).as_posix()
        if not file.is_file() or not any(_fits(name, pattern) for pattern in patterns):
            continue
        if not file.resolve().is_relative_to(root):
            raise ValueError(
                f"{file} is a link to {file.resolve()}, outside its model; it would be"
                " copied into the merged model. Replace the link by the file itself."
            )
        yield name, file


def _fits(name: str, pattern: str) -> bool:
    return name.count("/") == pattern.count("/") and fnmatch(name, pattern)


def _with_dtype(content: bytes, dtype: torch.dtype) -> bytes:
    config = json.loads(content)
    name = str(dtype).removeprefix("torch.")
    # transformers renamed the key; older ones know only the first.
    names = [key for key in ("torch_dtype", "dtype") if key in config]
    config |= dict.fromkeys(names or ["torch_dtype"], name)
    return (json.dumps(config, indent=2) + "\n").encode()


def _require_json(file: Path) -> None:
    try:
        content = json.loads(file.read_bytes())
        if file.name == "generation_config.json":  # read with the merged model
            GenerationConfig.from_dict(content)
    except UNMADE as error:
        raise ValueError(
            f"{file} is damaged ({one_line(error)[:200]}). Download or save it again."
        ) from error


def _tokens_in(file: Path) -> int:
    """One more than the highest token id that a tokenizer's file names; 0 for others."""
    read = next((r for name, r in _IDS.items() if fnmatch(file.name, name)), None)
    if read is None:
        return 0
    try:
        return 1 + max(map(int, read(file.read_bytes())), default=-1)
    except ImportError as error:
        log.warning("The tokens of %s are not counted: %s", file, error)
        return 0
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file} is damaged ({error}). Download or save the tokenizer again."
        ) from error


def _ids_of_tokenizer(content: bytes) -> list[int]:
    known = json.loads(content)
    vocabulary = known["model"]["vocab"]  # a list of pieces, or piece -> id
    ids = (
        vocabulary.values() if hasattr(vocabulary, "values") else range(len(vocabulary))
    )
    return [*ids, *(token["id"] for token in known.get("added_tokens") or ())]


def _ids_of_config(content: bytes) -> Iterable:
    return json.loads(content).get("added_tokens_decoder", {})


def _ids_of_vocabulary(content: bytes) -> Iterable:
    ids = dict(json.loads(content)).values()
    # One mapping per language: the model has rows for one at a time, and adapts to others.
    return [number for number in ids if not isinstance(number, dict)]


def _ids_of_lines(content: bytes) -> Iterable:
    return range(len(content.splitlines()))


def _ids_of_pieces(content: bytes) -> Iterable:
    model = import_protobuf("SentencePiece").ModelProto()
    try:
        model.ParseFromString(content)
    except Exception as error:  # noqa: BLE001 (of a package that may be absent)
        raise ValueError("it is no SentencePiece model") from error
    return range(len(model.pieces))


_IDS: dict[str, Callable[[bytes], Iterable]] = {
    "tokenizer.json": _ids_of_tokenizer,
    "tokenizer_config.json": _ids_of_config,
    "vocab.json": _ids_of_vocabulary,
    "added_tokens.json": _ids_of_vocabulary,
    "vocab.txt": _ids_of_lines,
    "*.tiktoken": _ids_of_lines,
    "*.model": _ids_of_pieces,
}
