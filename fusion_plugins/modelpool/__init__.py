"""Model pool classes: plain folders, image classifiers, OpenCLIP.

Here is what they share: a checkpoint's tensors get into a module all of them, in their
places, or are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..task_vectors import SafetensorsCheckpoint, files
from ..task_vectors.checks import is_mergeable, shown
from ..task_vectors.names import (
    TOWER,
    base_prefix,
    fitted_names,
    missing_names,
    say_renamed,
    unplaced_names,
)


def holds_safetensors(path: Path) -> bool:
    """Whether transformers would read a path's safetensors, no other files."""
    if path.is_file():
        return path.suffix == ".safetensors"
    names = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
    return any((path / name).is_file() for name in names)


def stored_tensors(folder: Path, label: str) -> SafetensorsCheckpoint | None:
    """What a folder's safetensors hold, if transformers would read them.

    Raises:
        ValueError: They are damaged, hold a tensor twice, or cannot be merged.
    """
    if not holds_safetensors(folder):
        return None
    stored = SafetensorsCheckpoint(folder, label)
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    whole = (folder / SAFE_WEIGHTS_NAME).is_file()
    if not whole and "metadata" not in files.read_config(index, label):
        raise ValueError(
            f"{label}: {index} has no 'metadata', which transformers reads. Put"
            ' "metadata": {} into it.'
        )
    return stored


def require_numbers(module: nn.Module, stored: SafetensorsCheckpoint) -> None:
    """Raise ValueError if a loaded module's weights were codes or two tensors in files."""
    state, towers = module.state_dict(), (TOWER, base_prefix(module))
    names = fitted_names(stored.specs, state, towers, module, stored.label)
    for name, held in names.items():
        spec = stored.specs[held]
        as_number = is_mergeable(spec) and spec.dtype.itemsize > 1
        if state[name].is_floating_point() and not as_number:
            raise ValueError(
                f"{stored.label}: tensor '{held}' in {stored.path} is {spec.dtype}, where a"
                f" {type(module).__name__} has weights. Codes cannot be merged: dequantise"
                " the model and save it in bfloat16."
            )


def load_exactly(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    label: str,
    source: str | Path,
    head: str | None = None,
    new_head: bool = False,
) -> None:
    """Fill a module with a checkpoint's tensors, known prefixes taken off.

    Args:
        module: Is changed; on the meta device it is only compared.
        tensors: All that the checkpoint holds.
        label: What error messages call the model.
        source: Where the tensors come from.
        head: What the names of the module's head start with.
        new_head: The head may be missing.

    Raises:
        ValueError: Tensors are missing, have no place, or are of other shapes.
    """
    state, prefix = module.state_dict(), base_prefix(module)
    names = fitted_names(tensors, state, (TOWER, prefix), module)
    left = set(tensors) - set(names.values())
    absent = missing_names(module, names)
    absent += [
        n for n, stored in names.items() if tensors[stored].shape != state[n].shape
    ]
    if new_head and head is not None:
        absent = [name for name in absent if not name.startswith(head)]
    extra = unplaced_names(module, [name for name in tensors if name in left])
    if absent or extra:
        refuse_incomplete(module, label, source, absent, extra, head)
    say_renamed(names, label, source)
    if not any(tensor.is_meta for tensor in state.values()):
        given = {n: tensors[s] for n, s in names.items()}
        module.load_state_dict(given, strict=False)


def refuse_incomplete(
    module: nn.Module,
    label: str,
    source: str | Path,
    absent: list[str],
    extra: list[str],
    head: str | None,
) -> None:
    """Raise ValueError: which tensors are missing or left over."""
    if absent and head is not None and all(n.startswith(head) for n in absent):
        raise ValueError(
            f"{label} has no trained head: the files of {source} lack {absent}. Give the"
            " checkpoint that was saved with its classifier."
        )
    found = []
    if absent:
        found.append(f"lack {len(absent)} tensor(s) of its size: {shown(absent)}")
    if extra:
        found.append(f"hold {len(extra)} tensor(s) without a place: {shown(extra)}")
    raise ValueError(
        f"{label}: for a {type(module).__name__}, the files of {source}"
        f" {' and '.join(found)}. Save the model again with its own class's"
        " save_pretrained, or give the checkpoint it was made from."
    )
