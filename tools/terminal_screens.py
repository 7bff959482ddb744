"""Pictures of the terminal for the documentation, from what the commands really print.

    python tools/terminal_screens.py docs/images

The demo pool is built first if it is not in the cache, which takes some minutes.
"""

import fcntl
import os
import pty
import re
import struct
import sys
import tempfile
import termios
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.text import Text

BIN = Path(sys.executable).parent
WIDTHS = (80, 120)
COMMANDS = {
    "screen-awd": "fusion_bench method=awd modelpool=demo taskpool=demo",
    "screen-demo": "fusion-plugins demo run",
}
_CONTROL = re.compile(r"(\x1b\[A|\r\n|\n|\r)")
_NO_COLOUR = re.compile(r"\x1b(?!\[[\d;]*m|\[A)(\[[0-9;?]*[A-Za-z]|\].*?(\x1b\\|\x07))")


def main(target: Path) -> None:
    """Write every command's screen at every width."""
    with tempfile.TemporaryDirectory() as folder:
        run(WIDTHS[0], folder, COMMANDS["screen-demo"])  # keeps its results
        for width in WIDTHS:
            for name, command in COMMANDS.items():
                lines = screen(run(width, folder, command))
                picture = drawn([f"$ {command}", *lines], width)
                (target / f"{name}-{width}.svg").write_text(picture)


def run(width: int, folder: str, command: str) -> str:
    """All that a command writes to a terminal of this width; it must succeed."""
    status, written = on_terminal(
        width, folder, command.split(), TERM="xterm-256color", TERM_COLOR_SCHEME="dark"
    )
    if status:
        raise SystemExit(f"{command}: {written}")
    return written


def on_terminal(
    width: int,
    folder: str | Path,
    command: Sequence[str],
    execute: Callable[[Sequence[str], Mapping[str, str]], NoReturn] | None = None,
    **environment: str,
) -> tuple[int, str]:
    """Exit status of a command of this environment, and all that it writes.

    Args:
        width: Of the terminal.
        folder: Where it runs.
        command: Its name and its words.
        execute: Becomes the command, given with its path, in another way than `exec`.
        **environment: Variables that differ from this process's.
    """
    process, terminal = pty.fork()
    if not process:
        os.chdir(folder)
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
        kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
        words = [str(BIN / command[0]), *command[1:]]
        if execute is not None:
            execute(words, kept | environment)
        os.execve(words[0], words, kept | environment)
    written = b""
    try:
        while part := os.read(terminal, 65536):
            written += part
    except OSError:  # how Linux says that the other side is closed
        pass
    return os.waitpid(process, 0)[1], written.decode()


def screen(written: str) -> list[str]:
    """The lines that are left in the end, with their colours; progress bars overwrite."""
    lines, row, anew = [""], 0, False
    for part in _CONTROL.split(_NO_COLOUR.sub("", written)):
        if part == "\x1b[A":
            row, anew = max(row - 1, 0), True
        elif part in ("\n", "\r\n"):
            row, anew = row + 1, False
            lines += [""] * (row + 1 - len(lines))
        elif part == "\r":
            anew = True
        elif part:
            lines[row] = part if anew else lines[row] + part
            anew = False
    return [line.rstrip() for line in lines if line.strip()]


def drawn(lines: list[str], width: int) -> str:
    """An SVG picture of a terminal."""
    console = Console(record=True, width=width, file=StringIO(), force_terminal=True)
    for line in lines:
        console.print(Text.from_ansi(line), soft_wrap=False)
    return console.export_svg(title=lines[0].removeprefix("$ "), unique_id="screen")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
