"""A method's configs, moved into a folder of FusionBench's config root."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from .methods import ExportError, Method
from .sources import PACKAGE, Sources

_CHOICE = re.compile(r"\b(?P<kind>method|modelpool|taskpool)=(?P<value>[\w/.-]+)")
# Pools here -> what FusionBench has, for commands. Our offline pool has no counterpart:
# its commands are shown with the smallest pool from the hub.
_TA8 = {
    "modelpool": "CLIPVisionModelPool/clip-vit-base-patch32_TA8",
    "taskpool": "CLIPVisionModelTaskPool/clip-vit-classification_TA8",
}
_KNOWN_POOLS = ("clip-vit-b32_TA8", "demo")


class MethodConfigs:
    """The configs of one method and the parts they are made of.

    Args:
        sources: This project.
        method: Its configs are those that build its class.
        upstream: FusionBench's config root.

    Raises:
        ExportError: A config needs one that neither side has.
    """

    def __init__(self, sources: Sources, method: Method, upstream: Path):
        self.method, self.upstream = method, upstream
        self.folder = sources.root / "config" / "method"
        # Name below config/method/ -> name in the method's own folder.
        self.moved: dict[str, str] = {}
        for path in sorted(self.folder.glob("*.yaml")):
            if self._target(path.stem) == f"{PACKAGE}.{method.class_name}":
                self._collect(path.stem)

    def _load(self, name: str) -> dict[str, Any]:
        loaded = OmegaConf.load(self.folder / f"{name}.yaml")
        return OmegaConf.to_container(loaded)  # type: ignore[return-value]

    def _bases(self, name: str) -> list[str]:
        items = self._load(name).get("defaults", [])
        names = [i.partition("@")[0] for i in items if isinstance(i, str)]
        return [n for n in names if (self.folder / f"{n}.yaml").is_file()]

    def _target(self, name: str) -> str | None:
        own = self._load(name).get("_target_")
        found = [own, *map(self._target, self._bases(name) if own is None else ())]
        return next((target for target in found if target), None)

    def _collect(self, name: str) -> None:
        self.moved[name] = name.rpartition("/")[2]
        for base in self._bases(name):
            if base not in self.moved:
                self._collect(base)

    def files(self) -> Iterator[tuple[Path, str]]:
        """Each file here, and the text to write."""
        for name in self.moved:
            path = self.folder / f"{name}.yaml"
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            lines = [self.command(line) for line in lines]
            yield path, "".join(self._default(name, line) for line in lines)

    def _default(self, name: str, line: str) -> str:
        """A line of a defaults list as it is there; any other line as it is."""
        match = re.match(r"\s+- (?P<group>/[\w/]+@\w+: )?(?P<item>[\w/]+)", line)
        if match is None or match["item"] == "_self_":
            return line
        item, place = match["item"], match.span("item")
        if match["group"] is None and item in self.moved:
            # Absolute: what a relative name means depends on who includes the file.
            new = f"/method/{self.method.home}/{self.moved[item]}"
            new += "" if line[place[1] :].startswith("@") else "@_here_"
            return line[: place[0]] + new + line[place[1] :]
        group = (match["group"] or "/method@").strip("/").partition("@")[0]
        if not (self.upstream / group / f"{item}.yaml").is_file():
            raise ExportError(
                f"{name}.yaml builds on {group}/{item}.yaml, which {self.upstream} does"
                " not have. Use one that FusionBench ships."
            )
        return line

    def command(self, line: str) -> str:
        """A line whose command, if it is one, makes the choices there are there."""
        if not re.match(r"#?\s*fusion_bench .*method=", line):
            return line
        return _CHOICE.sub(lambda m: f"{m['kind']}={self._choice(*m.groups())}", line)

    def _choice(self, kind: str, value: str) -> str:
        if kind == "method" and value in self.moved:
            return f"{self.method.home}/{self.moved[value]}"
        return _TA8[kind] if kind in _TA8 and value in _KNOWN_POOLS else value
