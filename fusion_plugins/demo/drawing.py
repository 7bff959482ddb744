"""Draw one image of a generated task: (rng, label, size) -> uint8 (size, size, 3).

Every function depends on its arguments alone, so a seeded generator fixes the data.
"""

import colorsys
import functools
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "bar")
TEXTURES = (
    "horizontal stripes",
    "vertical stripes",
    "rising stripes",
    "falling stripes",
    "checkerboard",
    "dots",
    "circles",
    "rays",
)
LETTERS = tuple("ACEHKLOSTX")
COUNTS = ("one", "two", "three", "four", "five")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
_HUES = (0.0, 0.08, 0.16, 0.33, 0.5, 0.63, 0.76, 0.9)
_FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif")
_SCALE = 4  # vector shapes are drawn larger and shrunk, for smooth edges


def _blend(
    rng: np.random.Generator, mask: np.ndarray, noise: float = 0.08
) -> np.ndarray:
    """Colour a mask (size, size) in 0..1, light on dark, and add noise."""
    front, back = rng.uniform(0.6, 1, 3), rng.uniform(0, 0.4, 3)
    image = mask[..., None] * front + (1 - mask[..., None]) * back
    image = image + rng.normal(0, noise, image.shape)
    return (image.clip(0, 1) * 255).round().astype(np.uint8)


def _outline(shape: str) -> np.ndarray:
    """Corners, shape (points, 2), in the unit circle or square."""
    if shape == "bar":
        return np.array([[-1, -0.25], [1, -0.25], [1, 0.25], [-1, 0.25]])
    if shape == "cross":
        a, b = 0.3, 1.0
        quarter = np.array([[a, a], [a, b], [-a, b]])
        turn = np.array([[0, 1], [-1, 0]])
        return np.concatenate(
            [quarter @ np.linalg.matrix_power(turn, k) for k in range(4)]
        )
    points = {"triangle": 3, "square": 4, "star": 10}.get(shape, 40)
    angle = 2 * math.pi * np.arange(points) / points
    radius = np.where(np.arange(points) % 2, 0.4 if shape == "star" else 1.0, 1.0)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius[:, None]


def draw_shape(rng: np.random.Generator, label: int, size: int) -> np.ndarray:
    """One filled shape at a random place, size, tilt and pair of colours."""
    big = size * _SCALE
    angle, radius = rng.uniform(-0.3, 0.3), rng.uniform(0.3, 0.42) * big
    centre = rng.uniform(radius, big - radius, 2)
    turn = np.array(
        [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
    )
    canvas = Image.new("L", (big, big), 0)
    draw = ImageDraw.Draw(canvas)
    corners = _outline(SHAPES[label]) @ turn
    draw.polygon([tuple(p) for p in corners * radius + centre], fill=255)
    if SHAPES[label] == "ring":
        draw.polygon([tuple(p) for p in corners * radius * 0.6 + centre], fill=0)
    small = canvas.resize((size, size), Image.Resampling.BOX)
    return _blend(rng, np.asarray(small) / 255)


def draw_texture(rng: np.random.Generator, label: int, size: int) -> np.ndarray:
    """A periodic pattern with random period (5 to 10 pixels), phase and tilt."""
    y, x = np.mgrid[:size, :size].astype(float)
    frequency = 2 * math.pi / rng.uniform(5, 10)
    phase = rng.uniform(0, 2 * math.pi, 2)
    name = TEXTURES[label]
    stripes = {"horizontal": 90, "vertical": 0, "rising": 45, "falling": 135}
    tilt = math.radians(stripes.get(name.split()[0], 0) + rng.uniform(-12, 12))
    along = x * math.cos(tilt) + y * math.sin(tilt)
    across = y * math.cos(tilt) - x * math.sin(tilt)
    first = np.sin(frequency * along + phase[0])
    second = np.sin(frequency * across + phase[1])
    centre = rng.uniform(0.3, 0.7, 2) * size
    if name == "checkerboard":
        wave = np.sign(first * second)
    elif name == "dots":
        wave = np.where(first + second > 0.9, 1.0, -1.0)
    elif name == "circles":
        wave = np.sin(frequency * np.hypot(x - centre[0], y - centre[1]) + phase[0])
    elif name == "rays":
        spokes = rng.integers(5, 9)
        wave = np.sin(spokes * np.arctan2(y - centre[1], x - centre[0]) + phase[0])
    else:
        wave = first
    return _blend(rng, (wave + 1) / 2, noise=0.12)


@functools.cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / f"{name}.ttf"), size)


def draw_letter(rng: np.random.Generator, label: int, size: int) -> np.ndarray:
    """A capital letter in a random font, turned by up to 15 degrees, under noise."""
    big = size * 2
    font = _font(_FONTS[rng.integers(len(_FONTS))], int(rng.integers(44, 56)))
    canvas = Image.new("L", (big, big), 0)
    centre = big / 2 + rng.uniform(-4, 4, 2)
    draw = ImageDraw.Draw(canvas)
    draw.text(tuple(centre), LETTERS[label], fill=255, font=font, anchor="mm")
    canvas = canvas.rotate(rng.uniform(-15, 15), Image.Resampling.BILINEAR)
    small = canvas.resize((size, size), Image.Resampling.BOX)
    return _blend(rng, np.asarray(small) / 255, noise=0.15)


def _scatter(
    rng: np.random.Generator, count: int, radius: float, size: int
) -> np.ndarray:
    """Centres (count, 2) of discs at least 2 pixels apart; starts over when stuck."""
    while True:
        centres = rng.uniform(radius + 1, size - radius - 1, (count, 2))
        gaps = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
        if (gaps + 4 * size * np.eye(count) > 2 * radius + 2).all():
            return centres


def draw_count(rng: np.random.Generator, label: int, size: int) -> np.ndarray:
    """`label` + 1 discs that do not touch."""
    y, x = np.mgrid[:size, :size].astype(float)
    mask = np.zeros((size, size))
    radius = rng.uniform(0.09, 0.11) * size
    for centre in _scatter(rng, label + 1, radius, size):
        distance = np.hypot(x - centre[0], y - centre[1])
        mask = np.maximum(mask, (radius - distance + 0.5).clip(0, 1))
    return _blend(rng, mask)


def draw_colour(rng: np.random.Generator, label: int, size: int) -> np.ndarray:
    """A mosaic of random hues in which one hue covers the most cells."""
    cells, share = 6, rng.uniform(0.3, 0.5)
    hues = np.asarray(_HUES)[rng.integers(len(_HUES), size=cells * cells)]
    hues[rng.random(cells * cells) < share] = _HUES[label]
    hues = hues + rng.normal(0, 0.012, hues.shape)
    light = rng.uniform([0.45, 0.5], [1.0, 1.0], (cells * cells, 2))
    rgb = [
        colorsys.hsv_to_rgb(h % 1, s, v) for h, (s, v) in zip(hues, light, strict=True)
    ]
    grid = np.asarray(rgb).reshape(cells, cells, 3)
    rows = np.arange(size) * cells // size
    image = grid[rows][:, rows] + rng.normal(0, 0.05, (size, size, 3))
    return (image.clip(0, 1) * 255).round().astype(np.uint8)
