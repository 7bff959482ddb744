"""A merge is written into what computes, or it is refused."""

import functools
import re
from collections import OrderedDict
from copy import deepcopy
from types import MethodType

import pytest
import torch
from lightning.pytorch.profilers import SimpleProfiler
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune, spectral_norm, weight_norm
from toy_models import Tied, Toy, family, from_family

from fusion_plugins import AWDAlgorithm
from fusion_plugins.task_vectors import (
    TaskVectors,
    as_coefficients,
    gram_matrices,
    merge_into,
    merged_state_dict,
)
from fusion_plugins.task_vectors.memory import copied, require_own_memory


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.body(x))


def compiled(module):
    return torch.compile(module.forward, backend="eager")


def through_a_method(module):
    forward = module.forward

    def patched(self, x):
        return forward(x)

    return MethodType(patched, module)


def through_a_closure(module):
    return lambda x: torch.nn.functional.linear(x, module.weight, module.bias)


FUNCTIONS = {
    "torch.compile": compiled,
    "no_grad": lambda module: torch.no_grad()(module.forward),
    "autocast": lambda module: torch.autocast("cpu", enabled=False)(module.forward),
    "a closure over the old method": through_a_method,
    "a closure over the module": through_a_closure,
}


@pytest.mark.parametrize("place", ["", "head"])
@pytest.mark.parametrize("patch", FUNCTIONS.values(), ids=FUNCTIONS)
def test_a_function_that_holds_the_original_is_refused(patch, place):
    base, experts = family(Small)
    part = base.get_submodule(place)
    if patch is through_a_closure and not place:
        part, place = base.head, "head"
    part.forward = patch(part)
    name = f"{place}.forward".lstrip(".")
    message = (
        rf"the base \('_pretrained_'\): '{name}' is a function set on the module .*"
        r"Use module.compile\(\) instead of torch.compile\(module.forward\)"
    )
    with pytest.raises(ValueError, match=message) as caught:
        AWDAlgorithm(iterations=0).run({"_pretrained_": base, **experts})
    assert "\n" not in str(caught.value)


def partial_of_the_module(module):
    def forward(module, x):
        return type(module).forward(module, x) * 2

    return functools.partial(forward, module)


def method_of_a_function(module):
    forward = type(module).forward
    return MethodType(torch.no_grad()(forward), module)


def of_no_module(module):
    def again(x, times=1):
        return x if times == 0 else again(x, times - 1)

    return again


@pytest.mark.parametrize(
    "patch", [partial_of_the_module, method_of_a_function, of_no_module]
)
def test_functions_that_are_copied_with_their_module_are_fine(patch):
    base = Small()
    base.forward = patch(base)
    copy = copied(base, "the base")
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.zero_()
    x = torch.ones(2, 4)
    assert patch is of_no_module or not copy(x).any()
    assert base(x).any()


def test_compiling_in_place_is_fine():
    base, experts = family(Small)
    base.compile(backend="eager")
    merged = AWDAlgorithm(iterations=0).run({"_pretrained_": base, **experts})
    plain = Small()
    plain.load_state_dict(merged.state_dict())
    x = torch.ones(2, 4)
    assert torch.equal(merged(x), plain(x))
    assert not torch.equal(merged(x), base(x))


def pruned(module):
    prune.random_unstructured(module.head, "weight", 0.5)


def normalised(module):
    spectral_norm(module.head)
    module(torch.ones(2, 4))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "change", [pruned, normalised, lambda module: weight_norm(module.head)]
)
def test_a_module_that_torch_cannot_copy_is_named(change):
    base = Small()
    change(base)
    message = (
        r"the base: the Small cannot be copied \(.*\). Give a plain one: end pruning"
    )
    with pytest.raises(ValueError, match=message) as caught:
        copied(base, "the base")
    assert "\n" not in str(caught.value)


class Sharded(torch.Tensor):
    """As DTensors are: it has parts."""

    def __tensor_flatten__(self):
        return [], None


def test_a_tensor_that_has_parts_is_refused():
    base = Small()
    base.head.bias = nn.Parameter(torch.ones(3).as_subclass(Sharded))
    with pytest.raises(ValueError, match="the base: 'head.bias' is a .*plain tensors"):
        require_own_memory(base, "the base")


class Cloning(Small):
    def state_dict(self, *args, **options):
        state = super().state_dict(*args, **options)
        return OrderedDict((name, value.clone()) for name, value in state.items())


class Halving(Small):
    def __init__(self):
        super().__init__()
        self.register_state_dict_post_hook(self.halve)

    @staticmethod
    def halve(module, state, prefix, metadata):
        for name in list(state):
            state[name] = state[name].half()


class Dropping(Small):
    def state_dict(self, *args, **options):
        state = super().state_dict(*args, **options)
        return OrderedDict((n, v) for n, v in state.items() if n != "head.bias")


class Renaming(Small):
    def state_dict(self, *args, **options):
        state = super().state_dict(*args, **options)
        return OrderedDict((f"x.{n}", v) for n, v in state.items())


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        (Cloning, "gives a copy of 'body.weight'"),
        (Halving, "gives a copy of 'body.weight'"),
        (Dropping, "leaves out 'head.bias'"),
    ],
)
def test_a_state_dict_of_other_tensors_is_refused(kind, problem):
    base, experts = family(Small)
    odd = kind()
    odd.load_state_dict(base.state_dict(), strict=False)
    message = rf"the base \('_pretrained_'\): {kind.__name__}.state_dict\(\) {problem}"
    with pytest.raises(ValueError, match=message):
        AWDAlgorithm(iterations=0).run({"_pretrained_": odd, **experts})


def test_a_state_dict_of_other_names_is_fine():
    base, experts = family(Renaming)
    merged = AWDAlgorithm(iterations=0).run({"_pretrained_": base, **experts})
    assert not torch.equal(merged.head.bias, base.head.bias)


def whole_numbers(module):
    zeros = torch.zeros(4, 5, dtype=torch.int8)
    module.linear.weight = nn.Parameter(zeros, requires_grad=False)


def copies(module):
    module.state_dict = lambda **options: {
        name: value.clone() for name, value in Toy.state_dict(module, **options).items()
    }


TARGETS = {
    "without values": (
        lambda module: module.to("meta"),
        "the Toy: 'scale' is without values",
    ),
    "int8": (
        whole_numbers,
        "Toy cannot take the merged weights: 'linear.weight' is torch.int8",
    ),
    "float8": (
        lambda module: module.linear.to(torch.float8_e4m3fn),
        "Toy cannot take the merged weights: 'linear.weight' is torch.float8_e4m3fn",
    ),
    "tied": (
        lambda module: setattr(module.norm, "bias", module.norm.weight),
        "'norm.weight' and 'norm.bias' are one tied tensor in it, two in the base",
    ),
    "copies": (copies, r"the Toy: Toy.state_dict\(\) gives a copy of 'scale'"),
}


@pytest.mark.parametrize(("change", "message"), TARGETS.values(), ids=TARGETS)
def test_a_module_that_cannot_take_a_merge_is_refused(change, message):
    task_vectors, module = from_family(), Toy()
    change(module)
    coefficients = as_coefficients(task_vectors, torch.ones(3))
    before = deepcopy(module.__dict__["_parameters"])
    with pytest.raises(ValueError, match=re.compile(message)) as caught:
        merge_into(module, task_vectors, coefficients)
    assert "\n" not in str(caught.value)
    assert before["scale"].is_meta or torch.equal(before["scale"], module.scale)


def test_a_half_precision_module_does_not_overflow_unsaid():
    task_vectors = from_family()
    coefficients = as_coefficients(task_vectors, torch.full((3,), 1e7))
    message = "overflows float16.*Give the module in bfloat16 or float32, or a smaller"
    with pytest.raises(ValueError, match=message):
        merge_into(Toy().half(), task_vectors, coefficients)


def test_a_module_of_another_dtype_is_rounded_into():
    task_vectors = from_family()
    coefficients = as_coefficients(task_vectors, torch.ones(3))
    got = merge_into(Toy().half(), task_vectors, coefficients).state_dict()
    want = merge_into(Toy(), task_vectors, coefficients).state_dict()
    for key in task_vectors.keys:
        assert torch.equal(got[key], want[key].half())


def test_a_repeated_parameter_becomes_a_whole_one():
    task_vectors, module = from_family(), Toy()
    module.linear.weight = nn.Parameter(torch.zeros(1, 5).expand(4, 5))
    coefficients = as_coefficients(task_vectors, torch.ones(3))
    got = merge_into(module, task_vectors, coefficients).state_dict()
    want = merge_into(Toy(), task_vectors, coefficients).state_dict()
    assert torch.equal(got["linear.weight"], want["linear.weight"])


def test_tied_modules_take_a_tied_merge():
    task_vectors = from_family(Tied)
    coefficients = as_coefficients(task_vectors, torch.ones(3))
    merged = merge_into(Tied(), task_vectors, coefficients)
    assert merged.head.weight is merged.embed.weight


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_only_the_base_may_be_wrapped(wrap):
    base, experts = family(Small)
    want = AWDAlgorithm(iterations=0).run({"_pretrained_": base, **experts})
    got = AWDAlgorithm(iterations=0).run({"_pretrained_": wrap(base), **experts})
    names = dict(zip(got.state_dict(), want.state_dict(), strict=True))
    for ours, theirs in names.items():
        assert ours.endswith(theirs) and ours != theirs
        assert torch.equal(got.state_dict()[ours], want.state_dict()[theirs])


@pytest.mark.parametrize("granularity", ["model", "row"])
def test_another_default_device_changes_nothing(granularity, monkeypatch):
    # Its own sums would be on that device, where meta has no numbers.
    monkeypatch.setattr(SimpleProfiler, "summary", lambda self: "")
    base, experts = family(Small)
    settings = {"iterations": 5, "alpha": 1e-3, "granularity": granularity}
    pool = {"_pretrained_": base, **experts}
    want = AWDAlgorithm(**settings).run(pool).state_dict()
    with torch.device("meta"):
        got = AWDAlgorithm(**settings).run(pool).state_dict()
    for name, value in want.items():
        assert torch.equal(got[name], value)


def test_files_are_read_under_another_default_device(tmp_path):
    base, experts = family(Small)
    for name, model in {"base": base, **experts}.items():
        save_file(model.state_dict(), tmp_path / f"{name}.safetensors")
    files = {task: tmp_path / f"{task}.safetensors" for task in experts}
    with torch.device("meta"):
        found = TaskVectors.from_checkpoints(tmp_path / "base.safetensors", files)
        assert torch.equal(found.base("head.bias"), base.head.bias)
        grams = gram_matrices(found)
    want = gram_matrices(TaskVectors.from_modules(base, experts))
    assert torch.equal(grams.values, want.values)


def spectral(module: nn.Module) -> nn.Module:
    torch.nn.utils.parametrizations.spectral_norm(module.head)
    return module


def old_spectral(module: nn.Module) -> nn.Module:
    return module if spectral_norm(module.head) else module


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("normalise", "place"),
    [(spectral, "head.parametrizations.weight.0._"), (old_spectral, "head.weight_")],
)
def test_what_spectral_norm_estimates_stays_as_in_the_base(normalise, place, caplog):
    torch.manual_seed(0)
    base, expert = normalise(Small()), normalise(Small())
    task_vectors = TaskVectors.from_modules(base, {"red": expert})
    assert f"the base: '{place}u'" in caplog.text and "training mode" in caplog.text
    merged = merged_state_dict(task_vectors, as_coefficients(task_vectors, [0.5]))
    estimated = {name for name in (f"{place}u", f"{place}v") if name in merged}
    same = {
        n for n, value in base.state_dict().items() if torch.equal(merged[n], value)
    }
    assert same == estimated and not estimated & set(task_vectors.keys)


def test_a_buffer_that_is_only_called_so_is_merged():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("gate_u", torch.ones(2))

    task_vectors = TaskVectors.from_modules(Named(), {"red": Named()})
    assert task_vectors.keys == ("gate_u",)
