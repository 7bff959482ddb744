"""Published numbers, and whether a comparison may show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path, PurePath
from typing import Any

import yaml

from ..modelpool.folders import source_of
from ..pools.family import PRETRAINED
from .files import did_you_mean

_DATA = Path(__file__).with_name("published.yaml")
# What numbers of the user's own consist of, and what a row of them does.
_KEYS = {
    "source": "a text",
    "checkpoints": "a text",
    "differs": "a list of texts",
    "rows": "a list of mappings",
}
_OF_ROWS = dict.fromkeys("label method source table family protocol".split(), "a text")
_OF_ROWS |= {"tasks": "a mapping from tasks to numbers", "average": "a number"}


@cache
def published_data() -> dict[str, Any]:
    """All of them, as `published.yaml` holds them."""
    data: dict[str, Any] = yaml.safe_load(_DATA.read_text(encoding="utf-8"))
    return data


def published_for(asked: Any, modelpool: Mapping, taskpool: Mapping) -> dict | None:
    """What the tables say of published numbers.

    Args:
        asked: A setting of `published.yaml`, as ``ta8_b32`` or
            ``corrupted_b32/motion_blur``; numbers of the user's own; or None.
        modelpool: Its config.
        taskpool: Its config.

    Returns:
        `rows` with label, method, tasks, average, source, table, family and protocol;
        and their `source`, `checkpoints` and what `differs`. Where pretrained model,
        experts or tasks are not the setting's, only `left_out`, the reason.

    Raises:
        ValueError: There is no such setting, or the user's own numbers are not as these.
    """
    if asked is None:
        return None
    if isinstance(asked, Mapping):
        _require("published", asked, _KEYS, ("source", "checkpoints"))
        for place, row in enumerate(asked.get("rows") or ()):
            _require(f"published.rows[{place}]", row, _OF_ROWS, ("label",))
        return dict(asked)
    data = published_data()
    name, _, variant = str(asked).partition("/")
    if name not in data["settings"]:
        hint = did_you_mean(name, list(data["settings"]))
        raise ValueError(f"published is '{asked}', which is no setting.{hint}")
    setting = data["settings"][name]
    if not _is_setting(setting, modelpool, taskpool):
        return {"left_out": "other pool"}
    rows = [_row(row, variant) for row in setting["rows"]]
    families = {row["family"]: data["families"][row["family"]] for row in rows}
    return {
        "source": ", ".join(dict.fromkeys(row["source"] for row in rows)),
        "checkpoints": "; ".join(
            text if family == "unknown" else f"({family}): {text}"
            for family, text in families.items()
        ),
        "differs": setting["differs"],
        "rows": rows,
    }


def _require(
    where: str, given: Mapping, known: Mapping[str, str], needed: Sequence[str]
) -> None:
    for key in given:
        if key not in known:
            hint = did_you_mean(str(key), list(known))
            raise ValueError(f"{where} has no '{key}', only {', '.join(known)}.{hint}")
    for key, kind in known.items():
        value = given.get(key)
        if key in needed if value is None else not _is(kind, value):
            raise ValueError(f"{where}.{key} is {value!r}, expected {kind}.")


def _is(kind: str, value: Any) -> bool:
    if kind == "a text":
        return isinstance(value, str)
    if kind == "a number":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind == "a mapping from tasks to numbers":
        numbers = value.values() if isinstance(value, Mapping) else [""]
        return all(n is None or _is("a number", n) for n in numbers)
    entry = str if kind == "a list of texts" else Mapping
    return isinstance(value, list) and all(isinstance(v, entry) for v in value)


def _is_setting(setting: Mapping, modelpool: Mapping, taskpool: Mapping) -> bool:
    merged, files = setting["merged"], setting.get("files", {})
    models = {
        task: setting["experts"].format(task=task, file=files.get(task))
        for task in merged
    }
    models[PRETRAINED] = setting["pretrained"]
    found = {k: _origin(v, files) for k, v in (modelpool.get("models") or {}).items()}
    tested = set(taskpool.get("test_datasets") or ())
    return found == models and tested == set(setting.get("tested", merged))


def _origin(model: object, files: Mapping) -> str | None:
    """Hub id and folder in it of a model; or the end of its file's path."""
    given = model if isinstance(model, Mapping) else {}
    if files:
        path = PurePath(str(given.get("pickle_path", model)))
        return "/".join(path.parts[-3 if path.name == "finetuned.pt" else -2 :])
    source, folder = source_of(model), given.get("subfolder")
    return f"{source}/{folder}" if source and folder else source


def _row(row: Mapping, variant: str) -> dict:
    average = row["average"]
    average = average.get(variant) if isinstance(average, Mapping) else average
    return {"method": None, "tasks": None, **row, "average": average}
