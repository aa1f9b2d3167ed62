"""Sample images drawn with characters in a terminal."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.color import Color
from rich.console import Console, Group, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from fmcli.errors import printable

_THUMBNAIL_WIDTH = 14  # characters; one line of text shows two rows of pixels
_UPPER_HALF = "▀"
_GREY_RAMP = " .:-=+*#%@"  # from dark to light, for terminals without colour


def choose_samples(labels: NDArray[np.int64], n_classes: int, each: int) -> list[NDArray[np.int64]]:
    """Return the indices of the first `each` images of every class."""
    return [np.flatnonzero(labels == label)[:each] for label in range(n_classes)]


def terminal_grid(
    images: NDArray[np.uint8], labels: NDArray[np.int64], class_names: tuple[str, ...], console: Console
) -> RenderableType:
    """Return one sample of each class in a grid as wide as the terminal.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
        class_names: Class names in label order.
        console: Console that will print the grid.
    """
    samples = enumerate(choose_samples(labels, len(class_names), 1))
    coloured = console.color_system is not None and not console.no_color
    n_columns = max(1, console.width // (_THUMBNAIL_WIDTH + 2))
    grid = Table.grid(padding=(0, 2, 1, 0))
    for _ in range(n_columns):
        grid.add_column(width=_THUMBNAIL_WIDTH)
    cells = [
        Group(Text(printable(class_names[label])[:_THUMBNAIL_WIDTH]), _thumbnail(images[indices[0]], coloured))
        for label, indices in samples
        if len(indices)
    ]
    for start in range(0, len(cells), n_columns):
        grid.add_row(*cells[start : start + n_columns])
    return grid


def _thumbnail(image: NDArray[np.uint8], coloured: bool) -> Text:
    """Return an image as half blocks of two pixels each, or without colour as characters of similar brightness."""
    rgb = Image.fromarray(to_rgb(image))
    height = max(2, round(_THUMBNAIL_WIDTH * rgb.height / rgb.width / 2) * 2)
    pixels = np.asarray(rgb.resize((_THUMBNAIL_WIDTH, height), Image.Resampling.BOX))
    text = Text()
    for upper, lower in zip(pixels[0::2], pixels[1::2], strict=True):
        for above, below in zip(upper, lower, strict=True):
            if coloured:
                text.append(_UPPER_HALF, Style(color=_color(above), bgcolor=_color(below)))
            else:
                brightness = (above.mean() + below.mean()) / 2
                text.append(_GREY_RAMP[int(brightness * len(_GREY_RAMP) / 256)])
        text.append("\n")
    return text


def _color(pixel: NDArray[np.uint8]) -> Color:
    return Color.from_rgb(*(int(value) for value in pixel))


def to_rgb(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert an image (C, H, W) to RGB, (H, W, 3). Unless it has three channels, its first is shown in grey."""
    return np.ascontiguousarray(
        np.repeat(image[:1], 3, axis=0).transpose(1, 2, 0) if len(image) != 3 else image.transpose(1, 2, 0)
    )
