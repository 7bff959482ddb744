"""What a model's config and class say of the tensors in its folder."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.modeling_utils import PreTrainedModel

from ..common import get_logger
from ..modelpool.folders import ADAPTER_CONFIG, without_warnings
from ..task_vectors.checks import shown
from ..task_vectors.files import UNREADABLE, TensorSpec, one_line, require_plain_weights
from ..task_vectors.names import (
    TOWER,
    base_prefix,
    fitted_names,
    missing_names,
    renames,
    unplaced_names,
    unused_names,
)

log = get_logger(__name__)


@dataclass(frozen=True)
class ModelFolder:
    """A folder with safetensors, and the model it holds.

    Attributes:
        path: The folder.
        label: What error messages call it.
        config: As in its ``config.json``.
        module: The model without weights (on the meta device).
    """

    path: Path
    label: str
    config: PretrainedConfig
    module: PreTrainedModel

    @property
    def vocabulary(self) -> int | None:
        """Number of tokens; None if the config does not say."""
        return getattr(self.config.get_text_config(), "vocab_size", None)

    @property
    def tied(self) -> list[list[str]]:
        """Groups of two or more names that the class makes one tensor."""
        groups: dict[int, list[str]] = {}
        for name, tensor in self.module.state_dict(keep_vars=True).items():
            groups.setdefault(id(tensor), []).append(name)
        return [names for names in groups.values() if len(names) > 1]

    def loaded_names(
        self, stored: Collection[str], base: Collection[str] = ()
    ) -> dict[str, str]:
        """Name in the model -> name in the files, of every tensor that loading uses.

        Wrappers' prefixes are taken off, the model's own is put on where it is missing,
        and buffers that the class computes itself (masks of GPT-2) are left out.

        Args:
            stored: Names in the files.
            base: Those that the pretrained model has. A class that has other names in
                files than in memory keeps those of the pretrained model's files.
        """
        if renames(self.module):
            known, ours = self._known(base), self._known(stored)
            named = {ours[name]: known[name] for name in ours.keys() & known.keys()}
            return {named.get(name, name): name for name in stored}
        saved = self.module.state_dict().keys()
        computed = {name for name, _ in self.module.named_buffers()} - saved
        ignored = unused_names(self.module)
        names = self._known(stored)
        model_name = {theirs: ours for ours, theirs in names.items()}
        named = {model_name.get(name, name): name for name in stored}
        renamed = [theirs for ours, theirs in named.items() if ours != theirs]
        if renamed:
            log.info(
                "%s: put or took off the prefix of %s.", self.label, shown(renamed)
            )
        return {
            name: theirs
            for name, theirs in named.items()
            if name in saved or name not in computed and not ignored.search(name)
        }

    def _known(self, stored: Collection[str]) -> dict[str, str]:
        """Name in memory -> name in the files, as far as the class can tell."""
        buffers = {name for name, _ in self.module.named_buffers()}
        wanted = self.module.state_dict().keys() | buffers
        prefixes = (base_prefix(self.module), TOWER)
        where = f"{self.label}, in {self.path}"
        return fitted_names(stored, wanted, prefixes, self.module, where)

    def require_all(self, specs: Mapping[str, TensorSpec]) -> None:
        """Raise ValueError unless the files hold what the class needs, and no more.

        Args:
            specs: Name in the model -> what the files hold.
        """
        state = self.module.state_dict()
        floating = {
            name for name, tensor in state.items() if tensor.is_floating_point()
        }
        if renames(self.module):
            absent, odd = self._unloaded(specs)
            missing = [name for name in state if name in absent and name in floating]
            known = self._known(specs).items()
            counters = {theirs for ours, theirs in known if ours not in floating}
            floating = specs.keys() - counters - set(odd)
        else:
            missing = missing_names(self.module, specs)
            odd = unplaced_names(self.module, specs)
            odd += [n for n in state if n in specs and state[n].shape != specs[n].shape]
        packed = [
            name
            for name, spec in specs.items()
            if not spec.dtype.is_floating_point and (name in floating or missing)
        ]
        if packed:
            raise ValueError(
                f"{self.label}: {self.path} holds integers where a"
                f" {type(self.module).__name__} has weights ({shown(packed)}): it is"
                " quantised. Dequantise the model and save it in bfloat16, or take the one"
                " that it was made from."
            )
        if missing:
            raise ValueError(
                f"{self.label}: {self.path} lacks {len(missing)} tensor(s) of a"
                f" {type(self.module).__name__}: {shown(missing)}. It holds"
                f" {shown(list(specs))}. Save the model again with"
                " model.save_pretrained(folder)."
            )
        if odd:
            raise ValueError(
                f"{self.label}: the config.json of {self.path} is of another size than its"
                f" tensors: {shown(odd)}. Download or save the model again."
            )

    def _unloaded(self, specs: Mapping[str, TensorSpec]) -> tuple[set[str], list[str]]:
        """What transformers would miss in these files, and what it would not take.

        Nothing is read: it loads tensors without values, by the class's own rules.
        """
        tensors = {
            name: torch.empty(spec.shape, dtype=spec.dtype, device="meta")
            for name, spec in specs.items()
        }
        try:
            with without_warnings():
                _, info = type(self.module).from_pretrained(
                    None,
                    config=self.config,
                    state_dict=tensors,
                    device_map="meta",
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                )
        except UNREADABLE as error:
            raise ValueError(
                f"{self.label}: the tensors in {self.path} do not make up a"
                f" {type(self.module).__name__} ({one_line(error)[:200]}). Download or save"
                " the model again."
            ) from error
        wrong = [k if isinstance(k, str) else k[0] for k in info["mismatched_keys"]]
        wrong += unplaced_names(self.module, info["unexpected_keys"])
        return set(info["missing_keys"]), sorted(wrong)


def model_class(config: PretrainedConfig, causal: bool) -> Any:
    """The class of transformers that a config names.

    That is the Auto class of language models where it names none of transformers', as with
    code on the hub, and where the model is to be one (`causal`).
    """
    known = (getattr(transformers, n, None) for n in config.architectures or ())
    named = next((found for found in known if found is not None), None)
    return AutoModelForCausalLM if causal or named is None else named


def read_folder(
    path: Path,
    label: str,
    code_options: Mapping[str, Any],
    causal: bool = False,
    known: Iterable[ModelFolder] = (),
) -> ModelFolder:
    """A model's config and class; no tensor is read.

    Args:
        path: The folder.
        label: What error messages call the model.
        code_options: Options of ``from_pretrained`` that say what code it is loaded with.
        causal: As for :func:`model_class`.
        known: Read before with these options; the module of one with an equal config
            serves again.

    Raises:
        ValueError: There is no config, it is damaged, or its weights are quantised.
    """
    if (path / ADAPTER_CONFIG).is_file():
        raise ValueError(
            f"{label}: {path} is an adapter (LoRA), which has no weights of a whole model."
            " Merge it with peft's model.merge_and_unload() and save the model, or merge"
            " in memory with method=awd."
        )
    file = path / "config.json"
    if not file.is_file():
        raise ValueError(
            f"{label}: {path} is not a HuggingFace model folder, it has no config.json."
            " Save the model with model.save_pretrained(folder)."
        )
    require_plain_weights(path, label)
    try:
        config = AutoConfig.from_pretrained(str(path), **code_options)
        for other in known:
            if _is_of_one_class(other.config, config):
                return ModelFolder(path, label, config, other.module)
        loaded = model_class(config, causal)
        with torch.device("meta"):  # shapes and names only
            if loaded is AutoModelForCausalLM:
                module = loaded.from_config(config, **code_options)
            else:
                module = loaded(config)
    except UNREADABLE as error:
        raise ValueError(
            f"{label}: {file} cannot be used ({one_line(error)[:200]}). Download or save"
            " it again."
        ) from error
    module.tie_weights()
    return ModelFolder(path, label, config, module)


def _is_of_one_class(config: PretrainedConfig, other: PretrainedConfig) -> bool:
    """Whether both describe one module; with code of its own a folder may mean another."""
    ours, theirs = (
        {k: v for k, v in c.to_dict().items() if not k.startswith("_")}
        for c in (config, other)
    )
    return "auto_map" not in ours and ours == theirs
