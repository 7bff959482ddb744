"""What a learned merge leaves in its log folder, and how it is read back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..common import PAGE, new_figure
from ..common.charts import HeatMap, draw_coefficients
from ..task_vectors.names import towerless

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAMES = ("tasks", "layers", "meaning")  # metadata of saved coefficients


@dataclass(frozen=True)
class SavedCoefficients:
    """Learned merging coefficients with the names they belong to.

    Attributes:
        tasks, layers: Names of rows and columns.
        raw: What was learned, (tasks,) or (tasks, layers), before any clamp.
        applied: What the merge used, (tasks, layers).
        meaning: Options without which the numbers mean something else: clamp, trim,
            disentangle.
    """

    tasks: tuple[str, ...]
    layers: tuple[str, ...]
    raw: Tensor
    applied: Tensor
    meaning: Mapping[str, object] = field(default_factory=dict)

    def require(
        self,
        tasks: Sequence[str],
        layers: Sequence[str],
        meaning: Mapping,
        path: object,
    ) -> None:
        """Raise unless they belong to these tasks, layers and options.

        Raises:
            ValueError: They were learned on another pool or with other options; the
                message says what differs.
        """
        for name, value in self.meaning.items():
            if meaning.get(name) != value:
                raise ValueError(
                    f"coefficients: {path} was learned with {name}={value!r}, this run has"
                    f" {name}={meaning.get(name)!r}. Use the same method and options."
                )
        for what, ours, theirs in (
            ("tasks", tasks, self.tasks),
            ("layers", [*map(towerless, layers)], [*map(towerless, self.layers)]),
        ):
            if tuple(ours) != tuple(theirs):
                odd = sorted(set(ours) ^ set(theirs))[:5] or "their order"
                raise ValueError(
                    f"coefficients: {path} has {len(theirs)} {what}, this pool has"
                    f" {len(ours)}; they differ in {odd}. Saved coefficients fit only the"
                    " pool they were learned on."
                )


def save_coefficients(saved: SavedCoefficients, folder: Path) -> Path:
    """Write ``coefficients.safetensors`` (exact) and ``coefficients.json`` (to read)."""
    path = folder / "coefficients.safetensors"
    names = {name: json.dumps(getattr(saved, name)) for name in _NAMES}
    tensors = {"raw": saved.raw, "applied": saved.applied}
    # Cloned: without a clamp both are one tensor, which safetensors refuses to save.
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    values = tensors["applied"].tolist()
    by_layer = {
        layer: {task: values[t][column] for t, task in enumerate(saved.tasks)}
        for column, layer in enumerate(saved.layers)
    }
    (folder / "coefficients.json").write_text(json.dumps(by_layer, indent=2))
    save_file(tensors, path, metadata=names)
    return path


def load_coefficients(path: str | Path) -> SavedCoefficients:
    """Read ``coefficients.safetensors``, or the folder that holds it.

    Raises:
        ValueError: There is no such file, or it is of another kind.
    """
    path = Path(path)
    path = path / "coefficients.safetensors" if path.is_dir() else path
    if not path.is_file() or path.suffix != ".safetensors":
        raise ValueError(
            f"coefficients: {path} is not a file that a run saved; expected the path of a"
            " coefficients.safetensors or of its folder."
        )
    try:
        file = safe_open(str(path), framework="pt")
    except SafetensorError as error:
        raise ValueError(f"coefficients: {path} cannot be read: {error}") from error
    with file:
        metadata = file.metadata() or {}
        known = set(_NAMES) <= metadata.keys()
        if not known or not {"raw", "applied"} <= set(file.keys()):
            raise ValueError(
                f"coefficients: {path} holds {sorted(file.keys())[:5]}, not coefficients"
                " with their task and layer names."
            )
        try:
            names = {name: json.loads(metadata[name]) for name in _NAMES}
            names["meaning"] = dict(names["meaning"])
            tasks, layers = tuple(names["tasks"]), tuple(names["layers"])
        except (ValueError, TypeError) as error:
            raise ValueError(f"coefficients: {path} is damaged: {error}.") from error
        tensors = {name: file.get_tensor(name) for name in ("raw", "applied")}
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise ValueError(
            f"coefficients: {path} holds NaN or Inf. Use those of a run that went well."
        )
    if tensors["applied"].shape != (len(tasks), len(layers)):
        raise ValueError(
            f"coefficients: {path} is damaged: {tuple(tensors['applied'].shape)} numbers"
            f" for {len(tasks)} tasks and {len(layers)} layers."
        )
    return SavedCoefficients(tasks, layers, **tensors, meaning=names["meaning"])


def plot_coefficients(saved: SavedCoefficients) -> Figure:
    """A heat map, tasks x layers."""
    values = saved.applied.detach().cpu().numpy()
    return draw_coefficients([HeatMap("", saved.tasks, saved.layers, values)])


def plot_history(history: Sequence[Mapping], guard: Sequence[Mapping]) -> Figure:
    """Loss per task, and agreement with the experts, over steps."""
    figure = new_figure(PAGE, 0.4 * PAGE)
    left, right = figure.subplots(1, 2)
    names = sorted({k for entry in history for k in entry if k.startswith("loss/")})
    for name in names:
        points = [(e["step"], e[name]) for e in history if name in e]
        left.plot(*zip(*points, strict=True), label=name.removeprefix("loss/"))
    left.set(xlabel="step", ylabel="loss", title="loss per task")
    for task in guard[0]["tasks"] if guard else ():
        points = [(e["step"], e["tasks"][task]["agreement"]) for e in guard]
        right.plot(*zip(*points, strict=True), marker=".", label=task)
    right.set(xlabel="step", ylim=(0, 1.02), title="agreement with the experts")
    if guard:
        right.legend()
    return figure
