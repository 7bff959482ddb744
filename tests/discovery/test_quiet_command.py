"""What the commands print on a terminal: lines for people, at 80 columns and wider."""

import re
from pathlib import Path

import pytest
from forked import become, call

from fusion_plugins.awd import report
from fusion_plugins.learned import results
from tools.terminal_screens import on_terminal

EIGHT = (
    "methods=[pretrained,experts,simple_average,task_arithmetic,ties_merging,awd,"
    "{adamerging: {steps: 2, guard_every: 0}},{tinting_pp: {rounds: 2, guard_every: 0}}]"
)

PLAIN = {"TERM": "xterm", "OMP_NUM_THREADS": "1"}

pytestmark = pytest.mark.slow


def lines_on_terminal(
    width: int, folder: Path, *words: str, at_once: bool = True
) -> tuple[int, list[str]]:
    """Exit status of `fusion_bench`, and the lines that a terminal shows in the end.

    Not at once: as a user starts it, which imports everything first.
    """
    arguments = [width, folder, ["fusion_bench", *words]]
    found = call(_at_once, *arguments) if at_once else on_terminal(*arguments, **PLAIN)
    return found[0], shown(found[1])


def _at_once(*arguments) -> tuple[int, str]:
    report.save_pictures = results.save_pictures = lambda *_: []  # most of the time
    return on_terminal(*arguments, execute=become, **PLAIN)


def shown(text: str) -> list[str]:
    """Apply the few control sequences that progress bars use."""
    lines, row = [""], 0
    for part in re.split(r"(\x1b\[A|\r\n|\n|\r)", text):
        if part == "\x1b[A":
            row = max(row - 1, 0)
        elif part in ("\n", "\r\n"):
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part != "\r":
            plain = re.sub(r"\x1b(\[[0-9;?]*[A-Za-z]|\].*?\x1b\\)", "", part)
            lines[row] = (plain + lines[row][len(plain) :]).rstrip()
    return lines[:-1] if lines[-1] == "" else lines


def height(lines: list[str], width: int) -> int:
    """Lines on the screen; long ones take several."""
    return sum(max(-(-len(line) // width), 1) for line in lines)


@pytest.mark.parametrize(
    ("width", "at_once", "method"), [(80, False, "simple_average"), (120, True, "awd")]
)
def test_a_merge_prints_a_table_in_percent(
    tiny_pool_root, tmp_path, width, at_once, method
):
    pools = [f"{p}=demo" for p in ("modelpool", "taskpool")]
    roots = [f"{p}.root={tiny_pool_root}" for p in ("modelpool", "taskpool")]
    words = (f"method={method}", *pools, *roots)
    status, lines = lines_on_terminal(width, tmp_path, *words, at_once=at_once)
    text = "\n".join(lines)
    assert status == 0 and height(lines, width) <= 25, text
    assert lines[0] == f"Merging: method={method} modelpool=demo taskpool=demo"
    assert re.search(r"^ task +accuracy % ", text, re.MULTILINE)
    for task in ("average", "digits", "textures", "colours"):
        assert re.search(rf"^ {task} +\d+\.\d ", text, re.MULTILINE), text
    assert "Results: ./outputs/fabric_model_fusion/" in text
    assert "The merged model is not saved; merged_model_save_path=FOLDER" in text
    assert "CONFIG" not in text and "Instantiate" not in text and "Profiler" not in text


def test_a_comparison_of_eight_methods_drops_no_task(tiny_pool_root, tmp_path):
    pools = [f"{p}=demo" for p in ("modelpool", "taskpool")]
    roots = [f"{p}.root={tiny_pool_root}" for p in ("modelpool", "taskpool")]
    words = ("--config-name", "compare", EIGHT, *pools, *roots)
    status, lines = lines_on_terminal(80, tmp_path, *words)
    text = "\n".join(lines)
    assert status == 0 and height(lines, 80) <= 40, text
    assert all(len(line) <= 80 for line in lines if line.startswith(" ")), text
    assert re.search(r"^cell 3 of 8: simple_average-seed0, about .* left$", text, re.M)
    for task in ("average", "digits", "textures", "colours"):
        assert task in text
