"""Drawing label maps: the classes' colors over the photo, with a legend beside them."""

import math
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .classes import ClassTable
from .labels import colored

PAPER = (255, 255, 255)
INK = (32, 32, 32)
# Names longer than this are cut in the legend.
_LONGEST_NAME = 28


def blend(image: Image.Image, labels: np.ndarray, table: ClassTable, opacity: float) -> Image.Image:
    """Lay the colors of labels, uint8 H×W, over an RGB picture; pixels of no class keep its color.

    `opacity` is from 0 (the picture alone) to 1. ValueError if it is outside, or the labels do not
    have the picture's size.
    """
    if isinstance(opacity, bool) or not isinstance(opacity, (int, float)) or not 0 <= opacity <= 1:
        raise ValueError(f"opacity must be a number from 0 to 1, not {opacity!r}")
    if labels.shape != (image.height, image.width):
        raise ValueError(f"labels {labels.shape} do not fit a picture {image.height}×{image.width}")
    mixed = Image.blend(image, colored(labels, table.palette).convert("RGB"), opacity)
    void = labels >= len(table)
    return Image.composite(image, mixed, Image.fromarray(void)) if void.any() else mixed


def add_legend(image: Image.Image, table: ClassTable, shares: Mapping[str, float]) -> Image.Image:
    """Add colors, names and shares below an RGB landscape or beside a portrait, its upper left.

    `shares` are by class name, in the order to show; zeros are left out. Letters grow with the
    picture, but a small one gets a larger sheet to keep them readable.
    """
    rows = [(name, share) for name, share in shares.items() if share > 0]
    if not rows:
        return image.copy()
    legend = _draw_legend(image.size, table, rows)
    corner = (0, image.height) if image.width >= image.height else (image.width, 0)
    ends = np.add(corner, legend.size)
    sheet = Image.new("RGB", tuple(np.maximum(ends, image.size).tolist()), PAPER)
    sheet.paste(image, (0, 0))
    sheet.paste(legend, corner)
    return sheet


def percent(share: float) -> str:
    """Format a share with one decimal, but never a positive one as "0.0 %"."""
    return "<0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"


def _draw_legend(
    size: tuple[int, int], table: ClassTable, rows: list[tuple[str, float]]
) -> Image.Image:
    """Draw the entries in columns that fit a picture of `size` (width, height)."""
    width, height = size
    em = max(13, round(math.sqrt(width * height) / 40))
    font = ImageFont.load_default(em)
    line, gap = round(1.6 * em), em // 2
    names = [" ".join(name.split()) for name, _ in rows]
    names = [n if len(n) <= _LONGEST_NAME else f"{n[: _LONGEST_NAME - 3]}..." for n in names]
    name_width = math.ceil(max(font.getlength(name) for name in names))
    share_width = math.ceil(max(font.getlength(percent(share)) for _, share in rows))
    cell = em + gap + name_width + em + share_width + 2 * em
    if width >= height:  # below: as many columns as the picture is wide
        lines = math.ceil(len(rows) / min(len(rows), max(1, (width + em) // cell)))
    else:  # beside: columns as long as the picture, but not too short if it is small
        lines = min(len(rows), max(12, (height - em) // line))
    columns = math.ceil(len(rows) / lines)
    sheet = Image.new("RGB", (columns * cell + em, lines * line + em), PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, (name, share) in enumerate(rows):
        column, row = divmod(index, lines)
        x, y = em + column * cell, (em + line) // 2 + row * line  # y: the middle of the line
        box = (x, y - em // 2, x + em, y - em // 2 + em)
        color = table.palette[table.names.index(name)]
        draw.rectangle(box, fill=color, outline=INK, width=max(1, em // 16))
        draw.text((x + em + gap, y), names[index], INK, font, anchor="lm")
        right = x + em + gap + name_width + em + share_width
        draw.text((right, y), percent(share), INK, font, anchor="rm")
    return sheet
