"""Language models on disk as task vectors: tied weights, vocabularies of other sizes."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from inspect import signature
from typing import NoReturn

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..task_vectors import Checkpoint, SafetensorsCheckpoint, TaskVectors
from ..task_vectors.blocks import row_slices
from ..task_vectors.checks import matches, say_other_config
from ..task_vectors.files import TensorSpec
from .folders import ModelFolder

VOCABULARIES = ("equal", "common_rows")
# Transformers 4 ties whatever the files hold.
_UNTIES = "missing_keys" in signature(PreTrainedModel.tie_weights).parameters


class FolderCheckpoint(SafetensorsCheckpoint):
    """A folder's tensors under the names that its model has for them.

    Files store a tied tensor under one of its names, or under several. What is stored
    with several values is not tied, whatever the config says: transformers 5 loads it so.

    Args:
        folder: The model.
        base: Names of the pretrained model's tensors.
    """

    def __init__(self, folder: ModelFolder, base: Collection[str] = ()):
        super().__init__(folder.path, folder.label)
        names = folder.loaded_names(self.specs, base)
        specs, places = self.specs, self._place_of
        self.specs = {ours: specs[stored] for ours, stored in names.items()}
        self._place_of = {ours: places[stored] for ours, stored in names.items()}
        self._tied = []
        for group in folder.tied:
            stored = [name for name in group if name in self.specs]
            if not stored:
                continue
            first, *others = stored
            apart = {n for n in others if _UNTIES and not self._are_equal(first, n)}
            tied = [name for name in group if name not in apart]
            for name in tied:
                self.specs[name] = self.specs[first]
                self._place_of[name] = self._place_of[first]
            if len(tied) > 1:
                self._tied.append(tied)

    def _are_equal(self, name: str, other: str) -> bool:
        shape = self.specs[name].shape
        return shape == self.specs[other].shape and all(
            torch.equal(self.read(name, rows), self.read(other, rows))
            for rows in (row_slices(shape) if len(shape) > 1 else (None,))
        )

    def tied_groups(self) -> list[list[str]]:
        return self._tied


class CommonRowsCheckpoint(Checkpoint):
    """An expert whose vocabulary has another size, seen with the base's tokens.

    Rows that both have are the expert's; those it lacks are the base's, so that they do
    not count in its task vector; rows beyond the base's are dropped.

    Args:
        expert: The expert.
        base: The base.
        names: The tensors with one row (or entry) per token.
    """

    def __init__(self, expert: Checkpoint, base: Checkpoint, names: Sequence[str]):
        specs = dict(expert.specs)
        for name in names:
            ours = base.specs[name]
            # Wide enough that the base's rows stay exactly the base's.
            dtype = torch.promote_types(ours.dtype, specs[name].dtype)
            specs[name] = TensorSpec(ours.shape, dtype)
        super().__init__(expert.label, specs)
        self._expert, self._base, self._names = expert, base, frozenset(names)

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        if name not in self._names:
            return self._expert.read(name, rows)
        spec = self.specs[name]
        first, last, _ = (rows or slice(None)).indices(spec.shape[0])
        out = self._base.read(name, slice(first, last)).to(spec.dtype)
        common = min(last, self._expert.specs[name].shape[0])
        if first < common:
            out[: common - first] = self._expert.read(name, slice(first, common))
        return out


def open_task_vectors(
    base: ModelFolder,
    experts: Mapping[str, ModelFolder],
    vocabulary: str = "equal",
    keep: Sequence[str] = (),
) -> TaskVectors:
    """Base and experts as task vectors, with nothing read but names and shapes.

    Args:
        base: The pretrained model.
        experts: Task name -> fine-tuned model.
        vocabulary: ``equal`` refuses vocabularies of other sizes; ``common_rows`` merges
            the tokens that an expert and the base both have.
        keep: Shell-style patterns of tensors left as in the base.

    Raises:
        ValueError: Files are missing or do not fit, or vocabularies differ in size.
    """
    ours = FolderCheckpoint(base)
    base.require_all(ours.specs)
    theirs: dict[str, Checkpoint] = {}
    for task, folder in experts.items():
        expert = FolderCheckpoint(folder, ours.specs)
        _drop_equal_aliases(expert, ours)
        differing = _vocabulary_tensors(base, ours, folder, expert, keep)
        if differing and vocabulary != "common_rows":
            _refuse_vocabulary(ours, expert, differing)
        theirs[task] = (
            CommonRowsCheckpoint(expert, ours, differing) if differing else expert
        )
    task_vectors = TaskVectors(ours, theirs, keep)
    for folder in experts.values():
        say_other_config(base.config, folder.config, folder.label)
    return task_vectors


def _drop_equal_aliases(expert: FolderCheckpoint, base: FolderCheckpoint) -> None:
    """Forget an expert's second names of tensors that are tied in the base as well."""
    base_groups = {tuple(group) for group in base.tied_groups()}
    for group in expert.tied_groups():
        if tuple(group) in base_groups:
            for name in group[1:]:
                del expert.specs[name]


def _vocabulary_tensors(
    base: ModelFolder,
    ours: Checkpoint,
    folder: ModelFolder,
    theirs: Checkpoint,
    keep: Sequence[str],
) -> tuple[str, ...]:
    """Names of tensors that differ only in having one row per token of each model.

    Those that stay as in the base may differ.
    """
    if None in (base.vocabulary, folder.vocabulary):
        return ()
    sizes = (base.vocabulary, folder.vocabulary)
    found = []
    for name, spec in theirs.specs.items():
        shape = ours.specs[name].shape if name in ours.specs else ()
        differs = shape != spec.shape and len(shape) == len(spec.shape) > 0
        if (
            differs
            and (shape[0], spec.shape[0]) == sizes
            and shape[1:] == spec.shape[1:]
            and not matches(name, keep)
        ):
            found.append(name)
    return tuple(found)


def _refuse_vocabulary(
    base: Checkpoint, expert: Checkpoint, names: Sequence[str]
) -> NoReturn:
    ours, theirs = base.specs[names[0]].shape[0], expert.specs[names[0]].shape[0]
    raise ValueError(
        f"{expert.label} has a vocabulary of {theirs} tokens, {base.label} one of {ours}"
        f" (tensors {list(names)}). If the first {min(ours, theirs)} tokens mean the same"
        " in both, set method.vocabulary=common_rows: these are merged, further tokens of"
        " the base stay as they are, further ones of the expert are dropped. To leave the"
        f" tensors as in the base, set method.keep='{json.dumps(names)}'."
    )
