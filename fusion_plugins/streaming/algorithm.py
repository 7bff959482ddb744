"""AWD, and linear or TIES merges, from files to files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from fusion_bench import BaseAlgorithm, BaseModelPool
from fusion_bench.mixins import LightningFabricMixin, SimpleProfilerMixin
from fusion_bench.utils import parse_dtype
from torch import Tensor, nn

from ..awd import report
from ..awd.base_method import build_base_method
from ..awd.disentangle import Disentanglement, disentangle_gram
from ..awd.options import DisentangleOptions, base_method
from ..common import get_logger
from ..common.folders import check_end
from ..common.options import WithOptions, choice, flag, number, path, patterns, plain
from ..common.upstream import program_of
from ..merged.cards import pool_card
from ..pools.loading import PRETRAINED, as_modelpool, label_of
from ..pools.model_files import (
    code_options,
    is_causal,
    model_folders,
    pool_dtype,
    tokenizer_source,
)
from ..task_vectors import GramMatrices, TaskVectors, gram_matrices
from .checkpoints import VOCABULARIES, open_task_vectors
from .companions import Companions
from .folders import ModelFolder, read_folder
from .inputs import check_apart, check_unchanged, identities, input_files, output_path
from .merge import result_shards, write_shards
from .module import load_mapped
from .output import OutputFolder
from .rules import build_rule, check_base_method, untouched
from .shards import Shard

log = get_logger(__name__)

_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class StreamingOptions(DisentangleOptions):
    """Options of :class:`StreamingAWDAlgorithm`: how to disentangle, and these.

    `iterations` = 0 merges the untouched task vectors, with one walk less.

    Args:
        base: As for AWD: task_arithmetic, simple_average or ties_merging.
        keep: Patterns of tensors left as in the base.
        output: Folder for the merged model. None: the program's
            ``merged_model_save_path``.
        dtype: ``float32``, ``bfloat16`` or ``float16``; None: the pool's ``torch_dtype``,
            else each tensor's in the base. The merge itself is in float32.
        shard_gb: Size of the result's files in GB (10^9 bytes); an interrupted run
            repeats the files it had not completed.
        vocabulary: ``equal``, or ``common_rows`` to merge the tokens that are in both.
        overwrite: Replace another merge in the folder.
    """

    base: Any = base_method()
    keep: tuple[str, ...] = patterns()
    output: str | None = path()
    dtype: str | None = choice(None, (None, *_DTYPES))
    shard_gb: float = number(2.0, high=1e6, open_low=True)
    vocabulary: str = choice("equal", VOCABULARIES)
    overwrite: bool = flag(False)


class StreamingAWDAlgorithm(
    WithOptions, LightningFabricMixin, SimpleProfilerMixin, BaseAlgorithm
):
    """AWD for models larger than memory: shards in, shards out.

    Args:
        **options: Those of :class:`StreamingOptions`.

    Attributes:
        disentanglement: What the last run found; None if it removed nothing.
        saved_model: The folder of the last run's result.

    Raises:
        TypeError: An unknown option.
        ValueError: An option out of its range.

    Source: as for AWD. Deviations: none in the numbers. Inputs are not rounded to the
    pool's ``torch_dtype`` before the merge, only the result is.
    """

    Options = StreamingOptions
    options: StreamingOptions
    disentanglement: Disentanglement | None = None
    saved_model: Path | None = None

    def run(self, modelpool: BaseModelPool | Mapping) -> nn.Module:
        """Merge a pool of models on disk.

        Args:
            modelpool: A CausalLMPool, a Seq2SeqLMPool, or a dict of model folders.

        Returns:
            The merged model, its weights mapped from the files.

        Raises:
            ValueError, TypeError: The pool, its files or the output folder do not fit.
        """
        modelpool = as_modelpool(modelpool)
        program = program_of(self)
        check_end(program, self.log_dir)
        output = output_path(self.options.output, program, self.log_dir)
        method = build_base_method(self.options.base, program, self.fabric)
        check_base_method(method)
        folders = model_folders(modelpool)
        if self.fabric.is_global_zero:
            self._merge(modelpool, method, folders, output)
        self.fabric.barrier()
        self.saved_model = output
        log.debug("%s", self.profiler.summary())
        options = code_options(modelpool)
        return load_mapped(output, options, is_causal(modelpool))

    @torch.no_grad()
    def _merge(
        self,
        modelpool: BaseModelPool,
        method: BaseAlgorithm,
        folders: Mapping[str, Path],
        path: Path,
    ) -> None:
        dtype = parse_dtype(self.options.dtype) or pool_dtype(modelpool)
        options = self._determining_options(method, dtype)
        with self.profile("open files"):
            how = code_options(modelpool), is_causal(modelpool)
            models: dict[str, ModelFolder] = {}
            for name, folder in folders.items():
                known = tuple(models.values())
                models[name] = read_folder(folder, label_of(name), *how, known)
            files = input_files(models)
            check_apart(path, files)
            inputs = identities(files)
            companions = Companions(folders[PRETRAINED], tokenizer_source(modelpool))
            companions.check(models[PRETRAINED].vocabulary)
            task_vectors = self._open(models, method)
        overwrite = self.options.overwrite
        with OutputFolder(path, options, inputs, overwrite, companions.names) as output:
            limit = int(self.options.shard_gb * 1e9)
            shards = result_shards(task_vectors, dtype, limit)
            if not all(map(output.is_done, shards)):
                self._write(task_vectors, method, shards, output)
            check_unchanged(files, inputs)
            card = pool_card(
                "AWD" if self.options.iterations else "Merge", options, modelpool
            )
            companions.copy(output, dtype, card)
            output.complete(shards)
        log.info("Merged %d models into %s.", len(task_vectors.tasks), path)

    def _open(
        self, models: dict[str, ModelFolder], method: BaseAlgorithm
    ) -> TaskVectors:
        experts = {name: m for name, m in models.items() if name != PRETRAINED}
        keep = (*self.options.keep, *untouched(method))
        return open_task_vectors(
            models[PRETRAINED], experts, self.options.vocabulary, keep
        )

    def _write(
        self,
        task_vectors: TaskVectors,
        method: BaseAlgorithm,
        shards: list[Shard],
        output: OutputFolder,
    ) -> None:
        with self.profile("statistics"):
            redundant = self._redundant(task_vectors, output)
            rule = build_rule(method, task_vectors, redundant, output, progress=True)
        with self.profile("merge"):
            write_shards(task_vectors, rule, shards, output, progress=True)

    def _determining_options(
        self, method: BaseAlgorithm, dtype: torch.dtype | None
    ) -> dict:
        """Everything that decides the result's numbers or files, as plain values."""
        options = asdict(replace(self.options, base=None))
        del options["output"], options["overwrite"]
        options |= {"base": plain(method.config), "dtype": str(dtype)}
        return json.loads(json.dumps(options))

    def _redundant(
        self, task_vectors: TaskVectors, output: OutputFolder
    ) -> Disentanglement | None:
        options = self.options
        if options.iterations == 0:
            return None
        keys = task_vectors.select(options.include, options.exclude)
        self.disentanglement = disentangle_gram(
            task_vectors.tasks,
            self._gram(task_vectors, keys, output),
            options.descent,
            scale_free=options.scale_free,
        )
        report.publish(self.disentanglement, self.fabric, self.log_dir)
        return self.disentanglement

    def _gram(
        self, task_vectors: TaskVectors, keys: tuple[str, ...], output: OutputFolder
    ) -> GramMatrices:
        granularity = self.options.granularity

        def count() -> dict[str, Tensor]:
            gram = gram_matrices(task_vectors, granularity, keys, True)
            return {"values": gram.values, "groups": torch.tensor(gram.groups)}

        held = output.kept("gram", count)
        groups = tuple(held["groups"].tolist())
        return GramMatrices(granularity, keys, groups, held["values"])
