"""A method's configs, moved into a folder of FusionBench's config root."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from omegaconf import OmegaConf

from .errors import ExportError
from .rewriting import Names

_ITEM = re.compile(r"(?P<lead>\s*-\s+)(?P<item>.+?)(?P<note>\s+#.*)?")
_CHOICE = re.compile(r"\b(?P<kind>method|modelpool|taskpool)=(?P<value>[\w/.-]+)")
# Pools here -> what FusionBench has, for the commands in comments. Our offline pool has no
# counterpart: its commands are shown with the smallest pool from the hub.
_TA8 = {
    "modelpool": "CLIPVisionModelPool/clip-vit-base-patch32_TA8",
    "taskpool": "CLIPVisionModelTaskPool/clip-vit-classification_TA8",
}
_KNOWN_POOLS = ("clip-vit-b32_TA8", "demo")


class MethodConfigs:
    """The configs of one method and the parts they are made of.

    Args:
        names: Old to new names.
        upstream: FusionBench's config root.

    Raises:
        ExportError: A config needs one that neither side has.
    """

    def __init__(self, names: Names, upstream: Path):
        self.names, self.upstream = names, upstream
        self.folder = names.sources.root / "config" / "method"
        self.chosen = [
            p.stem for p in sorted(self.folder.glob("*.yaml")) if self._is(p)
        ]
        # Name below config/method/ -> name in the method's own folder.
        self.moved: dict[str, str] = {}
        for name in self.chosen:
            self._collect(name)

    def _is(self, path: Path) -> bool:
        return (
            self._target(path.stem) == f"fusion_plugins.{self.names.method.class_name}"
        )

    def _target(self, name: str) -> str | None:
        content = self._load(name)
        if "_target_" in content:
            return content["_target_"]
        targets = (self._target(base) for base in self._own_bases(content))
        return next((target for target in targets if target), None)

    def _load(self, name: str) -> dict:
        return OmegaConf.to_container(OmegaConf.load(self.folder / f"{name}.yaml"))

    def _own_bases(self, content: dict) -> Iterator[str]:
        for item in content.get("defaults", []):
            name = item.partition("@")[0] if isinstance(item, str) else ""
            if name and (self.folder / f"{name}.yaml").is_file():
                yield name

    def _collect(self, name: str) -> None:
        if name in self.moved:
            return
        new = name.rpartition("/")[2]
        if new in self.moved.values():
            raise ExportError(f"two configs of the method would be named {new}.yaml.")
        self.moved[name] = new
        for base in self._own_bases(self._load(name)):
            self._collect(base)

    def files(self) -> Iterator[tuple[str, str]]:
        """File name below config/method/ here, and the text to write."""
        for name in self.moved:
            yield f"{name}.yaml", self._moved_text(name)

    def _moved_text(self, name: str) -> str:
        lines, in_defaults, items = [], False, 0
        for line in (self.folder / f"{name}.yaml").read_text().splitlines():
            if not line.startswith((" ", "#", "-")):
                in_defaults = line.startswith("defaults:")
            if in_defaults and (match := _ITEM.fullmatch(line)):
                (item,) = OmegaConf.to_container(OmegaConf.create(f"- {match['item']}"))
                item = self._default(item, match["item"])
                line = match["lead"] + item + (match["note"] or "")
                items += 1
            lines.append(line)
        if items != len(self._load(name).get("defaults", [])):
            raise ExportError(f"{name}.yaml: write its defaults one to a line.")
        return self._comments("\n".join(lines) + "\n")

    def _default(self, item: str | dict, text: str) -> str:
        home = self.names.method.home
        if isinstance(item, str):
            name, _, package = item.partition("@")
            if name in self.moved:
                # Absolute: what a relative name means depends on who includes the file.
                return f"/method/{home}/{self.moved[name]}@{package or '_here_'}"
            if name != "_self_":
                self._require_upstream("method", name)
            return text
        for key, value in item.items():
            group = key.removeprefix("override ").removeprefix("optional ")
            group = group.partition("@")[0]
            group = group[1:] if group.startswith("/") else f"method/{group}"
            if group == "method" and value in self.moved:
                text = text.replace(value, f"{home}/{self.moved[value]}")
            elif isinstance(value, str):
                self._require_upstream(group, value)
        return text

    def _require_upstream(self, group: str, name: str) -> None:
        if not (self.upstream / group / f"{name}.yaml").is_file():
            raise ExportError(
                f"a config of '{self.names.method.name}' builds on {group}/{name}.yaml,"
                f" which {self.upstream} does not have. Use one that FusionBench ships."
            )

    def _comments(self, text: str) -> str:
        """Names in comments, commands among them, as they are there."""
        lines = [self._command(line) for line in text.splitlines(keepends=True)]
        text = self.names.text("".join(line for line in lines if line is not None))
        for old, new in self.moved.items():
            if "/" in old:
                text = text.replace(f"{old}.yaml", f"{new}.yaml")
        for old, new in self.names.method.wording.items():
            text = text.replace(old, new)
        return text

    def _command(self, line: str) -> str | None:
        """A line with its choices as they are there; None if one does not exist there."""
        if not line.startswith("#"):
            return line
        for match in reversed(list(_CHOICE.finditer(line))):
            choice = self._choice(match["kind"], match["value"])
            if choice is None:
                return None
            line = line[: match.start("value")] + choice + line[match.end("value") :]
        return line

    def _choice(self, kind: str, value: str) -> str | None:
        if kind == "method" and value in self.moved:
            return f"{self.names.method.home}/{self.moved[value]}"
        if kind in _TA8 and value in _KNOWN_POOLS:
            return _TA8[kind]
        ours = self.folder.parent / kind / f"{value}.yaml"
        return None if ours.is_file() else value
