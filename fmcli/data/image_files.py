"""Find image files, read them, and convert them to the input of a network."""

import mmap
import os
import re
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from fmcli.choices import Invert
from fmcli.data.albumentations import import_albumentations
from fmcli.data.arrays import to_images
from fmcli.data.background import DARK, LIGHT, MIDDLE, Background, border_medians, classify_border_medians
from fmcli.data.idx import open_idx
from fmcli.errors import DataError, printable
from fmcli.storage.reading import open_array

MAX_IMAGE_PIXELS = 64_000_000  # a larger image may be a decompression bomb
MAX_IMAGE_FILE_BYTES = 256 << 20  # size of an uncompressed image of MAX_IMAGE_PIXELS
MAX_JPEG_SCANS = 32  # a scan of a few bytes can take as long to decode as the whole image
IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".pgm", ".ppm"}
)
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_MAX_16_BIT = 65535
_STRIP_PIXELS = 1 << 20
_JPEG_MARKER = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")
_JPEG_SCAN, _JPEG_END = 0xDA, 0xD9
_EXIF_ORIENTATION = 0x0112
_QUARTER_TURNS = (5, 6, 7, 8)  # EXIF orientations that swap height and width


@dataclass(frozen=True, slots=True, eq=False)
class LoadedImage:
    """An image converted to network input, or the reason why the image could not be read.

    Args:
        name: Path as the user gave it.
        index: Index in an array file; None for an image file.
        pixels: uint8 (C, H, W), or None if the image could not be read.
        error: Reason why the image could not be read, or None.
    """

    name: str
    index: int | None
    pixels: NDArray[np.uint8] | None
    error: str | None = None


@dataclass
class ImageReader:
    """Read images of any size and colour as network input.

    An image that already has the input shape is only inverted, if needed: a network that was trained on white clothes
    on black must not see black clothes on white.

    Args:
        input_shape: Input shape of the network (C, H, W); C is 1 or 3.
        background: Background of the training images.
        invert: `auto`, `never` or `always`. `auto` inverts an image with a light border if nearly all training images
            have a dark border, and vice versa.
    """

    input_shape: tuple[int, int, int]
    background: Background
    invert: Invert = "auto"

    def read(self, inputs: Iterable[str]) -> Iterator[LoadedImage]:
        """Yield every image of every input in order. Read one at a time.

        Args:
            inputs: Paths of image files, folders, `.npy` files and IDX files.
        """
        for name in inputs:
            try:
                yield from self._read_input(name)
            except DataError as error:
                yield LoadedImage(name, None, None, error.message)

    def _read_input(self, name: str) -> Iterator[LoadedImage]:
        path = Path(name)
        mode = _file_mode(name)
        if stat.S_ISDIR(mode):
            found = False
            unreadable: list[OSError] = []
            for file in find_image_files(path, unreadable.append):
                found = True
                yield self._read_file(file, str(file))
            for error in unreadable:
                yield LoadedImage(str(error.filename), None, None, printable(error.strerror))
            if not found and not unreadable:
                raise DataError(f"the folder has no image files (names ending in {', '.join(sorted(IMAGE_SUFFIXES))})")
        elif not stat.S_ISREG(mode):
            raise DataError("not a file or a folder")
        elif is_array_file(path):
            images = read_array(path)
            _check_dimensions(*images.shape[2:])
            for index, image in enumerate(images):
                yield LoadedImage(name, index, self._to_input(image.transpose(1, 2, 0)))
        else:
            yield self._read_file(path, name)

    def _read_file(self, path: Path, name: str) -> LoadedImage:
        try:
            return LoadedImage(name, None, self._to_input(self.decode(path)))
        except Exception as error:  # decoders raise many types for damaged files
            return LoadedImage(name, None, None, _reason(error))

    def decode(self, path: Path) -> NDArray[np.uint8]:
        """Return an image file in the original size with the network's number of channels, uint8 (H, W, C).

        Raises:
            DataError: The path is not a file, or the image is too large.
            Exception: Any error of the decoder.
        """
        with _open_image(path) as image:
            if image.format in ("JPEG", "MPO"):
                _check_scans(path)
            ImageOps.exif_transpose(image, in_place=True)
            pixels = np.empty((image.height, image.width, self.input_shape[0]), np.uint8)
            scale = _scale_of(image) if image.mode.startswith(("I", "F")) else None  # 16 bits per pixel or more
            background = self._choose_background(image) if image.has_transparency_data else None
            for rows, strip in _strips(image):  # converting the whole image would need memory for several copies
                pixels[rows] = self._convert(strip if scale is None else _to_8_bits(strip, scale), background)
            return pixels

    def _choose_background(self, image: Image.Image) -> str:
        """Return the colour for transparent pixels: the training images' background, unless it hides the object."""
        is_light = not self.background.endswith("dark")
        brightness = _median_of_visible(image)
        hides_object = brightness >= LIGHT if is_light else brightness <= DARK
        return "white" if is_light != hides_object else "black"

    def _convert(self, image: Image.Image, background: str | None) -> NDArray[np.uint8]:
        """Return uint8 (H, W, C) with the network's number of channels. Draw transparent pixels on the background."""
        if background is not None:
            image = Image.alpha_composite(Image.new("RGBA", image.size, background), image.convert("RGBA"))
        return np.atleast_3d(np.asarray(image.convert("L" if self.input_shape[0] == 1 else "RGB")))

    def _to_input(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Convert an image of any size and colour, (H, W, C), to the network's input shape, (C, H, W)."""
        channels, height, width = self.input_shape
        if image.shape[2] != channels:
            image = self._convert(Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image), None)
        if self._must_invert(image):
            image = 255 - image
        if image.shape[:2] != (height, width):
            image = np.atleast_3d(self._resize(image=image)["image"])
        return np.ascontiguousarray(image.transpose(2, 0, 1))

    def _must_invert(self, image: NDArray[np.uint8]) -> bool:
        if self.invert != "auto" or self.background not in ("dark", "light"):
            return self.invert == "always"
        [brightness] = border_medians(image.transpose(2, 0, 1)[None])
        return bool((brightness > MIDDLE) == (self.background == "dark"))

    @cached_property
    def _resize(self) -> Any:
        """An albumentations pipeline that resizes an image in proportion and pads the rest."""
        library = import_albumentations()
        _, height, width = self.input_shape
        resize = library.LongestMaxSize(max_size_hw=(height, width), area_for_downscale="image")
        pad = library.PadIfNeeded(height, width, fill=255 if self.background.endswith("light") else 0)
        return library.Compose([resize, pad])


def classify_background_of_files(paths: Iterable[Path], channels: int) -> Background:
    """Classify the background of image files, ignoring unreadable files.

    Args:
        paths: Image files of any size.
        channels: Channels to convert the images to, 1 or 3.
    """
    reader = ImageReader((channels, 1, 1), "any")
    medians = []
    for path in paths:
        with suppress(Exception):  # errors are reported later, when the image is read as input
            medians.append(border_medians(reader.decode(path).transpose(2, 0, 1)[None]))
    return classify_border_medians(np.concatenate(medians)) if medians else "any"


class ImageHeader(NamedTuple):
    """Size and colour of an image file.

    Args:
        size: (height, width) after the EXIF orientation is applied.
        is_grey: Whether the image has no colours.
    """

    size: tuple[int, int]
    is_grey: bool


def read_image_header(path: Path) -> ImageHeader:
    """Read the size and colour of an image file without decoding the pixels.

    Raises:
        DataError: The file cannot be read or is not an image.
    """
    try:
        with _open_image(path) as image:
            # Pillow has already applied the orientation of a TIFF.
            turned = image.format != "TIFF" and image.getexif().get(_EXIF_ORIENTATION, 1) in _QUARTER_TURNS
            size = (image.width, image.height) if turned else (image.height, image.width)
            return ImageHeader(size, _is_grey(image))
    except Exception as error:  # decoders raise many types for damaged files
        raise DataError(
            f"cannot read {printable(path)}: {_reason(error)}", hint="remove the file, or convert it to PNG"
        ) from error


def find_image_files(folder: Path, on_error: Callable[[OSError], None] | None = None) -> Iterator[Path]:
    """Yield the image files in a folder and its subfolders, sorted by name.

    Image files are recognized by their suffix. Hidden files and folders are skipped, and links to folders are not
    followed.

    Args:
        folder: Folder to search.
        on_error: Called for each subfolder that cannot be read. Default: raise an error.

    Raises:
        DataError: A subfolder cannot be read and `on_error` is None.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"cannot read {printable(error.filename)}: {error.strerror}")

    for parent, folders, names in os.walk(folder, onerror=on_error or refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith("."):
                yield Path(parent, name)


def is_array_file(path: Path) -> bool:
    """Return whether a file has the name of a `.npy` or IDX file."""
    return path.name.removesuffix(".gz").endswith((".npy", "-ubyte", ".idx"))


def read_array(path: Path) -> NDArray[np.uint8]:
    """Return the images of a `.npy` or IDX file, uint8 (N, C, H, W). A `.npy` file is memory-mapped.

    Raises:
        DataError: The file cannot be read or does not contain images.
    """
    if path.suffix != ".npy":
        return to_images(open_idx(path), where=path)
    try:
        array = open_array(path)
    except Exception as error:  # NumPy parses the header as Python, so a damaged one can raise anything
        raise DataError(f"cannot read this array: {_reason(error)}") from error
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3):  # a single image, grey or colour
        array = array[None]
    return to_images(array, where="this array")


@contextmanager
def _open_image(path: Path) -> Iterator[Image.Image]:
    """Open an image file after checking its size. Ignore Pillow's warnings of odd metadata."""
    if not stat.S_ISREG(_file_mode(path)):  # reading from a named pipe would block
        raise DataError("not a file or a folder")
    size = path.stat().st_size
    if size > MAX_IMAGE_FILE_BYTES:
        raise DataError(f"the file has {size} bytes; the limit is {MAX_IMAGE_FILE_BYTES}")
    with warnings.catch_warnings(action="ignore"), Image.open(path, formats=_FORMATS) as image:
        _check_dimensions(image.height, image.width)
        yield image


def _reason(error: Exception) -> str:
    """Return the reason why an image could not be read."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format"
    if isinstance(error, Image.DecompressionBombError):  # Pillow's limit is above ours
        return f"too many pixels; the limit is {MAX_IMAGE_PIXELS}"
    return printable(getattr(error, "strerror", None) or str(error) or type(error).__name__)


def _is_grey(image: Image.Image) -> bool:
    palette = image.getpalette("RGB") if image.mode in ("P", "PA") else None
    if palette is not None:
        colours = np.array(palette).reshape(-1, 3)
        return bool((colours == colours[:, :1]).all())
    return image.mode.split(";")[0] in ("1", "L", "LA", "La", "I", "F")


def _strips(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    """Yield horizontal strips of an image, each with its rows."""
    height = max(_STRIP_PIXELS // image.width, 1)
    for top in range(0, image.height, height):
        bottom = min(top + height, image.height)
        yield slice(top, bottom), image.crop((0, top, image.width, bottom))


def _median_of_visible(image: Image.Image) -> int:
    """Return the median brightness, 0 to 255, weighted by opacity."""
    counts = np.zeros(256, np.int64)
    for _, strip in _strips(image):
        colours = strip.convert("RGBA")
        counts += colours.convert("L").histogram(colours.getchannel("A"))
    return int(np.searchsorted(counts.cumsum(), counts.sum() / 2))


def _scale_of(image: Image.Image) -> float:
    """Return the divisor that scales an image with more than 8 bits per pixel to 0 … 255.

    Raises:
        DataError: The scale is ambiguous: the pixels may have 12 bits, or be fractions.
    """
    brightest = max(float(np.asarray(strip).max()) for _, strip in _strips(image))
    if brightest == 0 or _MAX_16_BIT / 4 <= brightest <= _MAX_16_BIT:
        return _MAX_16_BIT / 255
    if image.mode.startswith("F") and 1 < brightest <= 255:
        return 1
    raise DataError(
        f"the value of white is unknown: pixels have more than 8 bits, and the brightest is {brightest:g}; "
        "save the image with 8 bits per pixel, or with 16 bits from 0 to 65535"
    )


def _to_8_bits(image: Image.Image, scale: float) -> Image.Image:
    return Image.fromarray((np.asarray(image, dtype=np.float64) / scale).clip(0, 255).astype(np.uint8))


def _check_dimensions(height: int, width: int) -> None:
    if not 0 < width * height <= MAX_IMAGE_PIXELS:
        raise DataError(f"the image has {width}×{height} pixels; the limit is {MAX_IMAGE_PIXELS} pixels")


def _check_scans(path: Path) -> None:
    """Refuse a progressive JPEG with very many scans, because decoding each scan visits all pixels."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        scans, position = 0, 0
        while (found := _JPEG_MARKER.search(content, position)) and content[found.start() + 1] != _JPEG_END:
            scans += content[found.start() + 1] == _JPEG_SCAN
            if scans > MAX_JPEG_SCANS:
                raise DataError(f"the JPEG has too many scans; the limit is {MAX_JPEG_SCANS}")
            position = found.end() + int.from_bytes(content[found.end() : found.end() + 2])


def _file_mode(path: str | Path) -> int:
    try:
        return os.stat(path).st_mode
    except (OSError, ValueError) as error:  # ValueError: the name contains NUL
        raise DataError(_reason(error)) from error
