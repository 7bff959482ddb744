"""The commands and Python blocks of README and docs, and how each is run.

A block without a mark is run. `<!-- needs: hub -->` or `<!-- needs: gpu -->` on the line
before it marks one that cannot be run everywhere: its fusion_bench commands must still
compose, as must those on pools of which there is no tiny one here; each of these families
has tests of its own that run it. Commands are run as written, but for five reductions:
pools are replaced by a tiny one of the same kind, learned methods take two steps,
comparisons are dry runs, sweeps take an option's first and last value, and other programs
only parse their arguments. So do commands
inside a sentence.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
NEEDS = ("hub", "gpu")

_FENCE = re.compile(
    r"(?:<!-- needs: (?P<needs>[\w, ]+) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)

_INLINE = re.compile(
    r"`((?:fusion-plugins|make|python benchmarks/|python -m (?:fusion_plugins|tools))[^`]*)`"
)


@dataclass(frozen=True)
class Example:
    page: Path
    line: int
    language: str
    needs: str | None
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """A shell block as argument lists, without comments."""
        joined = self.text.replace("\\\n", " ")
        lines = (shlex.split(line, comments=True) for line in joined.splitlines())
        return [words for words in lines if words]


def examples(language: str) -> list[Example]:
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in _FENCE.finditer(text):
            if match["language"] == language:
                line = text.count("\n", 0, match.start("language")) + 1
                needs = match["needs"]
                found.append(Example(page, line, language, needs, match["text"]))
    return found


def languages() -> set[str]:
    """Every language a block claims to be in, over all pages."""
    return {
        match["language"]
        for page in PAGES
        for match in _FENCE.finditer(page.read_text())
    }


def inline_commands() -> list[list[str]]:
    """Our programs' command lines inside sentences, each once."""
    texts = [_FENCE.sub("", page.read_text()) for page in PAGES]
    found = (
        shlex.split(command) for text in texts for command in _INLINE.findall(text)
    )
    return [list(words) for words in dict.fromkeys(map(tuple, found)) if len(words) > 1]
