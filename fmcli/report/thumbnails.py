"""Sample images drawn with characters in a terminal."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.color import Color
from rich.columns import Columns
from rich.console import Console, Group
from rich.style import Style
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
) -> Columns:
    """Return one sample of each class in a grid as wide as the terminal.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
        class_names: Class names in label order.
        console: Console that will print the grid.
    """
    coloured = console.color_system is not None and not console.no_color
    cells = [
        Group(Text(printable(name)[:_THUMBNAIL_WIDTH]), _thumbnail(images[chosen[0]], coloured))
        for name, chosen in zip(class_names, choose_samples(labels, len(class_names), 1), strict=True)
        if len(chosen)
    ]
    return Columns(cells, width=_THUMBNAIL_WIDTH, padding=(0, 2, 1, 0))


def _thumbnail(image: NDArray[np.uint8], coloured: bool) -> Text:
    """Return an image as half blocks with two pixels each. Without colours, use characters of similar brightness."""
    rgb = Image.fromarray(to_rgb(image))
    height = max(2, round(_THUMBNAIL_WIDTH * rgb.height / rgb.width / 2) * 2)
    pixels = np.asarray(rgb.resize((_THUMBNAIL_WIDTH, height), Image.Resampling.BOX))
    text = Text()
    for upper, lower in zip(pixels[0::2], pixels[1::2], strict=True):
        for above, below in zip(upper, lower, strict=True):
            if coloured:
                colours = [Color.from_rgb(*pixel.tolist()) for pixel in (above, below)]
                text.append(_UPPER_HALF, Style(color=colours[0], bgcolor=colours[1]))
            else:
                brightness = (above.mean() + below.mean()) / 2
                text.append(_GREY_RAMP[int(brightness * len(_GREY_RAMP) / 256)])
        text.append("\n")
    return text


def to_rgb(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert an image (C, H, W) to RGB, (H, W, 3). If it does not have three channels, show the first in grey."""
    channels = image if len(image) == 3 else np.repeat(image[:1], 3, axis=0)
    return np.ascontiguousarray(channels.transpose(1, 2, 0))
