"""AWD, and linear or TIES merges, from files to files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from fusion_bench import BaseAlgorithm, BaseModelPool
from fusion_bench.mixins import auto_register_config
from fusion_bench.utils import parse_dtype
from omegaconf import OmegaConf
from torch import nn

from ..awd.algorithm import AWDAlgorithm
from ..awd.base_method import build_base_method
from ..awd.disentangle import Disentanglement, disentangle_gram
from ..awd.functional import Descent
from ..common.logging import get_logger
from ..common.options import require_choice, require_number, require_patterns
from ..pools import as_modelpool
from ..pools.causal_lm_files import (
    code_options,
    language_model_folders,
    pool_dtype,
    tied_names,
    tokenizer_source,
    vocabulary_size,
)
from ..pools.loading import PRETRAINED
from ..task_vectors import GramMatrices, TaskVectors, gram_matrices
from .checkpoints import VOCABULARIES, ModelFolder, open_task_vectors
from .companions import copy_companions
from .merge import result_shards, write_shards
from .module import load_mapped
from .output import OutputFolder, identities
from .rules import build_rule, check_base_method, untouched

log = get_logger(__name__)

_DTYPES = ("float32", "bfloat16", "float16")


@auto_register_config
class StreamingAWDAlgorithm(AWDAlgorithm):
    """AWD for language models larger than memory: shards in, shards out.

    Takes the options of :class:`~fusion_plugins.AWDAlgorithm`, and these:

    Args:
        output: Folder for the merged model. None: the program's
            ``merged_model_save_path``.
        dtype: ``float32``, ``bfloat16`` or ``float16``; None: the pool's ``torch_dtype``,
            else each tensor's in the base. The merge itself is in float32.
        shard_gb: Size of the result's files in GB (10^9 bytes); an interrupted run
            repeats the files it had not completed.
        vocabulary: ``equal``, or ``common_rows`` to merge the tokens that are in both.
        overwrite: Replace another merge in the folder.

    `iterations` = 0 merges the untouched task vectors, with one walk less.

    Raises:
        TypeError: An unknown option.
        ValueError: An option out of its range.

    Source: as for AWD. Deviations: none in the numbers. Inputs are not rounded to the
    pool's ``torch_dtype`` before the merge, only the result is.
    """

    def __init__(
        self,
        *,
        output: str | None = None,
        dtype: str | None = None,
        shard_gb: float = 2.0,
        vocabulary: str = "equal",
        overwrite: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        require_choice("dtype", dtype, (None, *_DTYPES))
        require_number("shard_gb", shard_gb, open_low=True)
        require_choice("vocabulary", vocabulary, VOCABULARIES)
        require_choice("overwrite", overwrite, (True, False))

    def run(self, modelpool: BaseModelPool | Mapping) -> nn.Module:
        """Merge a pool of language models on disk.

        Args:
            modelpool: A CausalLMPool, or a dict of model folders.

        Returns:
            The merged model, its weights mapped from the files.

        Raises:
            ValueError, TypeError: The pool, its files or the output folder do not fit.
        """
        modelpool = as_modelpool(modelpool)
        output = self._output_path()
        method = build_base_method(self)
        check_base_method(method)
        folders = language_model_folders(modelpool)
        if self.fabric.is_global_zero:
            self._merge(modelpool, method, folders, output)
        self.fabric.barrier()
        self.print_profile_summary()
        return load_mapped(output, code_options(modelpool))

    def _output_path(self) -> Path:
        path = self.output
        if path is None:
            path = getattr(self._program, "merged_model_save_path", None)
        if path is None:
            raise ValueError(
                "There is no folder for the merged model. Set method.output=FOLDER, or"
                " the program's merged_model_save_path=FOLDER."
            )
        if "{log_dir}" in str(path) and self.log_dir is not None:
            path = str(path).format(log_dir=self.log_dir)
        return Path(path).expanduser()

    @torch.no_grad()
    def _merge(self, modelpool, method, folders: Mapping[str, Path], path: Path):
        dtype = parse_dtype(self.dtype) or pool_dtype(modelpool)
        with self.profile("open files"):
            task_vectors = self._open(modelpool, method, folders)
            inputs = identities(folders)
        options = self._determining_options(method, dtype)
        with OutputFolder(path, options, inputs, self.overwrite) as output:
            shards = result_shards(task_vectors, dtype, int(self.shard_gb * 1e9))
            if not all(map(output.is_done, shards)):
                with self.profile("statistics"):
                    redundant = self._redundant(task_vectors, output)
                    show = self._shows_progress
                    rule = build_rule(method, task_vectors, redundant, output, show)
                with self.profile("merge"):
                    write_shards(task_vectors, rule, shards, output, show)
            source = tokenizer_source(modelpool)
            copy_companions(folders[PRETRAINED], path, dtype, source)
            output.complete(shards)
        log.info("Merged %d models into %s.", len(task_vectors.tasks), path)

    def _open(self, modelpool, method, folders: Mapping[str, Path]) -> TaskVectors:
        models = {
            name: ModelFolder(
                folder,
                vocabulary_size(folder, modelpool),
                tied_names(folder, modelpool),
            )
            for name, folder in folders.items()
        }
        base = models.pop(PRETRAINED)
        keep = (*require_patterns("keep", self.keep), *untouched(method))
        return open_task_vectors(base, models, self.vocabulary, keep)

    def _determining_options(self, method: BaseAlgorithm, dtype) -> dict:
        """Everything that decides the result's numbers or files, as plain values."""
        names = set(type(self)._config_mapping.values())
        names -= {"base", "output", "overwrite", "_usage_", "_version_", "_recursive_"}
        options = {name: _plain(getattr(self, name)) for name in sorted(names)}
        return options | {"base": _plain(method.config), "dtype": str(dtype)}

    def _redundant(
        self, task_vectors: TaskVectors, output: OutputFolder
    ) -> Disentanglement | None:
        if self.iterations == 0:
            return None
        include = require_patterns("include", self.include)
        exclude = require_patterns("exclude", self.exclude)
        keys = task_vectors.select(include, exclude)
        gram = self._gram(task_vectors, keys, output)
        names = ("alpha", "lr", "iterations", "momentum", "weight_decay", "tolerance")
        settings = Descent(**{name: getattr(self, name) for name in names})
        self.disentanglement = disentangle_gram(
            task_vectors.tasks, gram, settings, scale_free=self.scale_free
        )
        self._report()
        return self.disentanglement

    def _gram(self, task_vectors, keys, output: OutputFolder) -> GramMatrices:
        held = output.statistics("gram")
        if held is not None:
            groups = tuple(held["groups"].tolist())
            return GramMatrices(self.granularity, keys, groups, held["values"])
        gram = gram_matrices(task_vectors, self.granularity, keys, self._shows_progress)
        groups = torch.tensor(gram.groups)
        output.keep_statistics("gram", {"values": gram.values, "groups": groups})
        return gram


def _plain(value):
    return OmegaConf.to_container(OmegaConf.create({"value": value}))["value"]
