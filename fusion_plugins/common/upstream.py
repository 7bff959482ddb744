"""FusionBench's private names, each behind one of its own here; nothing else spells them.

All of them were looked up in FusionBench 0.2.33, on which the tests run, and in its main of
2026-08-05, where they are the same; Fabric's in lightning 2.6.6.

What FusionBench calls is overridden where the subclass stands, under FusionBench's name:
`_evaluate` of its three image task pools, `_config_mapping` of pools and task pools, and
`_test_datasets` and `_tokenizer` of a task pool that has no class of FusionBench's above it.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

Instance = TypeVar("Instance")
CORE, OPENCLIP = "core", "OpenCLIP pools"


@dataclass(frozen=True)
class Private:
    """A private attribute: reads it when called with an object.

    Attributes:
        owner: ``module:Class`` that has it, or just its module.
        name: Its name there.
        needed_by: `CORE`, or what alone does not work without it.
    """

    owner: str
    name: str
    needed_by: str = CORE

    def __call__(self, holder: object, *default: Any) -> Any:
        return getattr(holder, self.name, *default)

    def put(self, holder: object, value: Any) -> None:
        """Set it."""
        setattr(holder, self.name, value)

    def offer(self, holder: object, value: Any) -> None:
        """Set it where there is such an attribute."""
        if hasattr(holder, self.name):
            self.put(holder, value)


_POOL = "fusion_bench.modelpool:BaseModelPool"
_CLIP_POOL = "fusion_bench.modelpool:CLIPVisionModelPool"
_TEXT_POOL = "fusion_bench.modelpool:SequenceClassificationModelPool"
_OPENCLIP_POOL = (
    "fusion_bench.modelpool.openclip_vision.modelpool:OpenCLIPVisionModelPool"
)
_OPENCLIP_TASKS = "fusion_bench.taskpool.openclip_vision.openclip_taskpool:OpenCLIPVisionModelTaskPool"
_CLIP_TASKS = "fusion_bench.taskpool:CLIPVisionModelTaskPool"
_PROGRAM = "fusion_bench.programs:FabricModelFusionProgram"
_SWITCH = "fusion_bench.models.wrappers.switch"
_FABRIC = "lightning.fabric:Fabric"

models_of = Private(_POOL, "_models")
train_datasets_of = Private(_POOL, "_train_datasets")
val_datasets_of = Private(_POOL, "_val_datasets")
#: Of model pools and of task pools.
test_datasets_of = Private(_POOL, "_test_datasets")
program_of = Private("fusion_bench:BaseAlgorithm", "_program")
fabric_of = Private("fusion_bench.mixins:LightningFabricMixin", "_fabric_instance")
#: Of methods that set up a Fabric themselves, as in FusionBench 0.1.
own_fabric_of = Private(
    "fusion_bench.method.we_moe.we_moe:WeightEnsemblingMoEAlgorithm",
    "_fabric",
    "awd before wemoe",
)
saved_options = Private("fusion_bench.mixins:BaseYAMLSerializable", "_config_mapping")
merged_parts = Private(
    "fusion_bench.models.utils", "_fusion_bench_target_modules", "ConvNeXt pools"
)

#: On models of FusionBench's image pools, where their `forward` is replaced.
plain_forward_of = Private(
    "fusion_bench.modelpool.convnext_for_image_classification:ConvNextForImageClassificationPool",
    "original_forward",
    "image pools",
)

clip_processor_of = Private(_CLIP_POOL, "_processor")
clip_platform_of = Private(_CLIP_POOL, "_platform")
known_clip_tasks = Private(
    "fusion_bench.tasks.clip_classification:CLIPTemplateFactory", "_dataset_mapping"
)
tokenizer_of = Private(_TEXT_POOL, "_tokenizer", "text pools")
model_options_of = Private(_TEXT_POOL, "_model_kwargs", "text pools")

heads_of = Private(_OPENCLIP_POOL, "_classification_heads", OPENCLIP)
train_processor_of = Private(_OPENCLIP_POOL, "_train_processor", OPENCLIP)
test_processor_of = Private(_OPENCLIP_POOL, "_test_processor", OPENCLIP)
task_heads_of = Private(_OPENCLIP_TASKS, "_classifier_heads", OPENCLIP)
loader_options_of = Private(_OPENCLIP_TASKS, "_dataloader_kwargs", OPENCLIP)
model_name_of = Private(_OPENCLIP_TASKS, "_model_name", OPENCLIP)
#: Of image task pools.
is_set_up = Private(_CLIP_TASKS, "_is_setup", "compare")

set_up = Private(_PROGRAM, "_instantiate_and_setup", "compare")
modelpool_config = Private(_PROGRAM, "_modelpool", "compare")
taskpool_config = Private(_PROGRAM, "_taskpool", "compare")
fabric_config = Private(_PROGRAM, "_fabric", "compare")

print_report = Private("fusion_bench.programs.fabric_fusion_program", "print_json")
print_profile = Private(
    "fusion_bench.mixins:SimpleProfilerMixin", "print_profile_summary"
)

options_of = Private(f"{_SWITCH}:SwitchModule", "_option_modules", "tints")
active_option_of = Private(f"{_SWITCH}:SwitchModule", "_active_option", "tints")
_spelling = Private(_SWITCH, "_standardize_option_name", "tints")

precision_of = Private(_FABRIC, "_precision", "learned merges")
loggers_of = Private(_FABRIC, "_loggers", "compare")


def private_names() -> Mapping[str, Private]:
    """All of them, by their names here."""
    return {k: v for k, v in globals().items() if isinstance(v, Private)}


def datasets_of(modelpool: object, split: str) -> Mapping[str, Any]:
    """A model pool's list of data sets: ``train``, ``val`` or ``test``."""
    return private_names()[f"{split}_datasets_of"](modelpool)


def modelpool_of(taskpool: object) -> Any:
    """The model pool of the program that a task pool runs in; None outside of one."""
    return getattr(program_of(taskpool), "modelpool", None)


def option_name(task: str) -> str:
    """A task's name as SwitchModule spells it."""
    return _spelling(import_module(_spelling.owner))(task)


def give_fabric(method: object, fabric: object) -> None:
    """Let a method run with this Fabric."""
    for place in (fabric_of, own_fabric_of):
        place.offer(method, fabric)


def keep_no_clip_heads() -> None:
    """Stop FusionBench from keeping zero-shot heads on disk by the task's name alone.

    Its methods would take up old heads whatever the classes are now.
    """
    module: Any = import_module("fusion_bench.mixins.clip_classification")
    module.cache_with_joblib = _uncached


def _uncached() -> Callable[[Callable], Callable]:
    return lambda function: function


def with_methods(instance: Instance, **methods: Callable) -> Instance:
    """Give one object methods of its own; it stays an instance of its class."""
    kind = type(instance)
    named = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    instance.__class__ = types.new_class(
        kind.__name__, (kind,), exec_body=lambda body: body.update(methods | named)
    )
    return instance
