"""The report's colours with and without colour vision deficiency."""

import re
from itertools import combinations

import numpy as np
import pytest

from fusion_plugins.common import CYCLE, STYLE
from fusion_plugins.compare.looks import GREY
from fusion_plugins.compare.report.page import TEMPLATES

CSS = (TEMPLATES / "page.css").read_text("utf-8")
# Full protanopia and deuteranopia on linear RGB: Machado, Oliveira, Fernandes (2009).
VISION = {
    "full": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
}
TO_XYZ = np.array(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
)


def themes():
    """Every block of colours in the style sheet: name -> value."""
    blocks = [b for b in re.findall(r"\{([^{}]*)\}", CSS) if "--c0:" in b]
    return [dict(re.findall(r"--([\w-]+):\s*(#[0-9a-f]+)", block)) for block in blocks]


def test_the_page_in_the_light_has_the_colours_of_the_figures():
    light = themes()[0]
    assert [light[f"c{place}"] for place in range(len(CYCLE))] == list(CYCLE)
    assert (light["grey"], light["text"]) == (GREY, STYLE["text.color"])


def linear(colour):
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    rgb = np.array([int(digits[i : i + 2], 16) for i in (0, 2, 4)]) / 255
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    xyz = TO_XYZ @ np.clip(rgb, 0, 1) / [0.9505, 1, 1.089]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_both_ways_to_the_dark_theme_have_the_same_colours():
    light, by_system, by_button = themes()
    assert by_system == by_button
    assert light.keys() == by_system.keys()


@pytest.mark.parametrize("theme", themes()[:2], ids=["light", "dark"])
@pytest.mark.parametrize("vision", VISION)
def test_methods_can_be_told_apart(theme, vision):
    names = [f"c{index}" for index in range(len(CYCLE))] + ["grey"]
    for one, other in combinations(names, 2):
        seen = [lab(VISION[vision] @ linear(theme[name])) for name in (one, other)]
        # About 2 can just be told apart side by side; lines are not side by side.
        assert np.linalg.norm(seen[0] - seen[1]) > 18, (one, other)


@pytest.mark.parametrize("theme", themes()[:2], ids=["light", "dark"])
def test_lines_and_bars_stand_out_from_the_page(theme):
    def luminance(name):
        return linear(theme[name]) @ TO_XYZ[1] + 0.05

    for name in [f"c{index}" for index in range(len(CYCLE))] + ["grey"]:
        ratio = luminance(name) / luminance("surface")
        assert max(ratio, 1 / ratio) > 3, name
