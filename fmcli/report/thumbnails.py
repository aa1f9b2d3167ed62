"""Datasets as documents; sample images as blocks of colour in a terminal."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.color import Color
from rich.console import Console, Group, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from fmcli.errors import printable

_THUMBNAIL = 14  # columns of a sample in the terminal; a row of text holds two rows of pixels
_UPPER_HALF = "▀"
_RAMP = " .:-=+*#%@"  # from dark to light, where there is no colour


def choose_samples(labels: NDArray[np.int64], n_classes: int, each: int) -> list[NDArray[np.int64]]:
    """Return, for each class, the positions of its first images."""
    return [np.flatnonzero(labels == label)[:each] for label in range(n_classes)]


def terminal_grid(
    images: NDArray[np.uint8], labels: NDArray[np.int64], class_names: tuple[str, ...], console: Console
) -> RenderableType:
    """Return one sample of each class, as many beside each other as fit.

    Args:
        images: uint8 (N, C, H, W).
        labels: (N,).
        class_names: In label order.
        console: As wide and colourful as the terminal is.
    """
    chosen = [(label, rows[0]) for label, rows in enumerate(choose_samples(labels, len(class_names), 1)) if len(rows)]
    coloured = console.color_system is not None and not console.no_color
    across = max(1, console.width // (_THUMBNAIL + 2))
    grid = Table.grid(padding=(0, 2, 1, 0))
    for _ in range(across):
        grid.add_column(width=_THUMBNAIL)
    cells = [
        Group(Text(printable(class_names[label])[:_THUMBNAIL]), _thumbnail(images[index], coloured))
        for label, index in chosen
    ]
    for start in range(0, len(cells), across):
        grid.add_row(*cells[start : start + across])
    return grid


def _thumbnail(image: NDArray[np.uint8], coloured: bool) -> Text:
    """Return an image as half blocks, two pixels to a character; without colour, as characters of its brightness."""
    rgb = Image.fromarray(to_rgb(image))
    height = max(2, round(_THUMBNAIL * rgb.height / rgb.width / 2) * 2)
    pixels = np.asarray(rgb.resize((_THUMBNAIL, height), Image.Resampling.BOX))
    text = Text()
    for upper, lower in zip(pixels[0::2], pixels[1::2], strict=True):
        for above, below in zip(upper, lower, strict=True):
            if coloured:
                text.append(_UPPER_HALF, Style(color=_color(above), bgcolor=_color(below)))
            else:
                brightness = (above.mean() + below.mean()) / 2
                text.append(_RAMP[int(brightness * len(_RAMP) / 256)])
        text.append("\n")
    return text


def _color(pixel: NDArray[np.uint8]) -> Color:
    return Color.from_rgb(*(int(value) for value in pixel))


def to_rgb(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return uint8 (H, W, 3) of an image (C, H, W): grey from its first channel, unless it has three."""
    return np.ascontiguousarray(
        np.repeat(image[:1], 3, axis=0).transpose(1, 2, 0) if len(image) != 3 else image.transpose(1, 2, 0)
    )
