"""What an export writes, as a whole: all of it or nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Plan:
    """Files to write and to remove, and what a person should look at.

    Attributes:
        writes: Path -> content.
        removals: Files of an earlier export that this one no longer has.
        notes: Left-over mentions of this project, and parts the layout has no place for.
    """

    writes: dict[Path, str] = field(default_factory=dict)
    removals: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def apply(self) -> None:
        """Write everything; on an error put back what was there.

        Raises:
            OSError: A file cannot be written.
        """
        paths = [*self.writes, *self.removals]
        before = {p: p.read_bytes() if p.is_file() else None for p in paths}
        made: list[Path] = []
        try:
            for path, content in self.writes.items():
                _make_folders(path.parent, made)
                path.write_text(content, encoding="utf-8")
            for path in self.removals:
                path.unlink()
        except OSError:
            for path, old in before.items():
                _put_back(path, old)
            for folder in reversed(made):
                folder.rmdir()
            raise


def _make_folders(folder: Path, made: list[Path]) -> None:
    if not folder.is_dir():
        _make_folders(folder.parent, made)
        folder.mkdir()
        made.append(folder)


def _put_back(path: Path, content: bytes | None) -> None:
    if content is None:
        if path.is_file():
            path.unlink()
    elif not path.is_file() or path.read_bytes() != content:
        path.write_bytes(content)  # not one that cannot be written: that is unchanged
