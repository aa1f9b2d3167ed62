"""Foreign images: found, read, and turned into what a network was trained on."""

import mmap
import os
import re
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from fmcli.choices import Invert
from fmcli.data.albumentations import import_albumentations
from fmcli.data.background import DARK, LIGHT, MIDDLE, Background, border_medians, classify_border_medians
from fmcli.data.idx import open_idx, to_images
from fmcli.errors import DataError, printable
from fmcli.storage.reading import open_array

MAX_IMAGE_PIXELS = 64_000_000  # pixels; more is a bomb, not a small image
MAX_IMAGE_FILE_BYTES = 256 << 20  # bytes of such an image, not compressed
MAX_JPEG_SCANS = 32  # of a JPEG, each of which may have a few bytes and take as long as the whole image
IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".pgm", ".ppm"}
)
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_BRIGHTEST = 65535  # of 16 bits
_STRIP = 1 << 20  # pixels that are recoloured at once
_JPEG_MARKER = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")
_ORIENTATION, _LYING = 0x0112, (5, 6, 7, 8)  # of EXIF: those that turn an image by a quarter
_SCAN, _END = 0xDA, 0xD9


@dataclass(frozen=True, slots=True, eq=False)
class LoadedImage:
    """An image ready for the network, or what was wrong with it.

    Args:
        name: Its path as the user gave it.
        index: Its place in an array file, else None.
        pixels: uint8 (C, H, W), or None where it could not be read.
        error: Why not.
    """

    name: str
    index: int | None
    pixels: NDArray[np.uint8] | None
    error: str | None = None


def classify_background_of_files(paths: Iterable[Path], channels: int) -> Background:
    """Return what images have at their border; those that cannot be read do not count.

    Args:
        paths: Of images of any size.
        channels: 1 or 3, of the images that they are to become.
    """
    reader = ImageReader((channels, 1, 1), "any")
    medians = []
    for path in paths:
        with suppress(Exception):  # whatever a decoder raises is told when the image is read
            medians.append(border_medians(reader.decode(path).transpose(2, 0, 1)[None]))
    return classify_border_medians(np.concatenate(medians)) if medians else "any"


class ImageReader:
    """Reads images of any size and colour into a network's input.

    An image of the network's own size passes unchanged but for its background: what was trained on white
    clothes over black must not be shown black over white.

    Args:
        input_shape: (C, H, W) of the network's input, C of 1 or 3.
        background: What the network was trained on.
        invert: `auto` inverts an image whose border is light where nearly all in training had dark, and the other
            way round; or `never`, `always`.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        background: Background,
        invert: Invert = "auto",
    ) -> None:
        self.input_shape = input_shape
        self.background = background
        self.invert = invert
        self._resize: Any = None

    def read(self, inputs: Iterable[str]) -> Iterator[LoadedImage]:
        """Yield every image of every input, in order, reading as it goes.

        Args:
            inputs: Paths of images, folders, `.npy` and IDX files.
        """
        for name in inputs:
            try:
                yield from self._read_input(name)
            except DataError as error:
                yield LoadedImage(name, None, None, error.message)

    def _read_input(self, name: str) -> Iterator[LoadedImage]:
        path = Path(name)
        kind = _kind_of_file(name)
        if stat.S_ISDIR(kind):
            found = False
            locked: list[OSError] = []
            for inner in find_image_files(path, locked.append):
                found = True
                yield self._read_image(inner, str(inner))
            for error in locked:
                yield LoadedImage(str(error.filename), None, None, printable(error.strerror))
            if not found and not locked:
                raise DataError(f"no images in this folder (looked for {', '.join(sorted(IMAGE_SUFFIXES))})")
        elif not stat.S_ISREG(kind):
            raise DataError("not a file or a folder")
        elif is_array_file(path):
            images = read_array(path)
            _check_size(*images.shape[2:])
            for index, image in enumerate(images):
                yield LoadedImage(name, index, self._fit(image.transpose(1, 2, 0)))
        else:
            yield self._read_image(path, name)

    def _read_image(self, path: Path, name: str) -> LoadedImage:
        try:
            with warnings.catch_warnings(action="ignore"):  # of odd metadata
                pixels = self._fit(self.decode(path))
        except UnidentifiedImageError:
            return LoadedImage(name, None, None, "not an image of a known format")
        except Image.DecompressionBombError:  # Pillow's own limit is above ours
            return LoadedImage(name, None, None, f"too many pixels; the limit is {MAX_IMAGE_PIXELS}")
        except Exception as error:  # whatever a decoder raises is the image's fault
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            return LoadedImage(name, None, None, printable(reason))
        return LoadedImage(name, None, pixels)

    def decode(self, path: Path) -> NDArray[np.uint8]:
        """Return an image as it is but for the network's channels, uint8 (H, W, C).

        Raises:
            DataError: It is no file, or too large.
            Exception: Whatever its decoder raises.
        """
        _check_file(path)
        with Image.open(path, formats=_FORMATS) as image:
            _check_size(image.height, image.width)
            if image.format in ("JPEG", "MPO"):
                _check_scans(path)
            ImageOps.exif_transpose(image, in_place=True)
            pixels = np.empty((image.height, image.width, self.input_shape[0]), np.uint8)
            scale = _scale_of(image) if image.mode.startswith(("I", "F")) else None  # 16 bits a pixel or more
            paper = self._paper_for(image) if image.has_transparency_data else None
            for rows, strip in _strips(image):  # several copies of all of it would be much
                pixels[rows] = self._flatten(strip if scale is None else _eight_bits(strip, scale), paper)
            return pixels

    def _paper_for(self, image: Image.Image) -> str:
        """Return the colour to lay behind what is transparent: the background, unless that would hide the image."""
        is_light = not self.background.endswith("dark")
        middle = _median_of_visible(image)
        hides = middle >= LIGHT if is_light else middle <= DARK
        return "white" if is_light != hides else "black"

    def _flatten(self, image: Image.Image, paper: str | None) -> NDArray[np.uint8]:
        """Return uint8 (H, W, C) with the network's channels, what is transparent before paper of a colour."""
        if paper is not None:
            image = Image.alpha_composite(Image.new("RGBA", image.size, paper), image.convert("RGBA"))
        return _channels_last(np.asarray(image.convert("L" if self.input_shape[0] == 1 else "RGB")))

    def _fit(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return uint8 (C, H, W) of the network's size from (H, W, C) of any."""
        channels, height, width = self.input_shape
        if image.shape[2] != channels:
            image = _recolour(image, channels)
        if self._must_invert(image):
            image = 255 - image
        if image.shape[:2] != (height, width):
            image = _channels_last(self._resizer()(image=image)["image"])
        return np.ascontiguousarray(image.transpose(2, 0, 1))

    def _must_invert(self, image: NDArray[np.uint8]) -> bool:
        if self.invert != "auto" or self.background not in ("dark", "light"):
            return self.invert == "always"
        [middle] = border_medians(image.transpose(2, 0, 1)[None])
        return bool((middle > MIDDLE) == (self.background == "dark"))

    def _resizer(self) -> Any:
        """Return the albumentations pipeline that fits an image into the input, keeping its proportions."""
        if self._resize is None:
            library = import_albumentations()
            _, height, width = self.input_shape
            self._resize = library.Compose(
                [
                    library.LongestMaxSize(max_size_hw=(height, width), area_for_downscale="image"),
                    library.PadIfNeeded(height, width, fill=255 if self.background.endswith("light") else 0),
                ]
            )
        return self._resize


class ImageHeader(NamedTuple):
    """What an image's first bytes say of it.

    Args:
        size: (height, width), as it is to be seen.
        is_grey: It has no colours.
    """

    size: tuple[int, int]
    is_grey: bool


def read_image_header(path: Path) -> ImageHeader:
    """Read an image's size and kind, and of its pixels nothing but where a palette needs it.

    Raises:
        DataError: It cannot be read, or is not an image.
    """
    try:
        _check_file(path)
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=_FORMATS) as image:
            _check_size(image.height, image.width)
            turned = image.format != "TIFF" and image.getexif().get(_ORIENTATION, 1) in _LYING  # of a TIFF it is done
            size = (image.width, image.height) if turned else (image.height, image.width)
            return ImageHeader(size, _is_grey(image))
    except UnidentifiedImageError as error:
        raise DataError(f"{printable(path)} is not an image of a known format", hint="remove it") from error
    except Exception as error:  # whatever a decoder raises is the image's fault
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(
            f"cannot read {printable(path)}: {printable(reason)}", hint="remove it, or get it again"
        ) from error


def _is_grey(image: Image.Image) -> bool:
    palette = image.getpalette("RGB") if image.mode in ("P", "PA") else None
    if palette is not None:
        colours = np.array(palette).reshape(-1, 3)
        return bool((colours == colours[:, :1]).all())
    return image.mode.split(";")[0] in ("1", "L", "LA", "La", "I", "F")


def find_image_files(folder: Path, on_error: Callable[[OSError], None] | None = None) -> Iterator[Path]:
    """Yield the images below a folder, by their endings, in the order of their names.

    What is hidden is left alone, and links to folders are not followed.

    Args:
        folder: Where to look.
        on_error: Told of each folder in it that cannot be read; by default that is an error.

    Raises:
        DataError: A folder in it cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"cannot read {printable(error.filename)}: {error.strerror}")

    for here, folders, names in os.walk(folder, onerror=on_error or refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith("."):
                yield Path(here, name)


def is_array_file(path: Path) -> bool:
    """Tell whether a file's name says that it holds an array of images."""
    name = path.name.removesuffix(".gz")
    return name.endswith((".npy", "-ubyte", ".idx"))


def read_array(path: Path) -> NDArray[np.uint8]:
    """Return the images of a `.npy` or IDX file: uint8 (N, C, H, W); `.npy` stays on the disk until used.

    Raises:
        DataError: It is not such a file, or does not hold images.
    """
    if path.suffix != ".npy":
        return to_images(open_idx(path), where=path)
    try:
        array = open_array(path)
    except Exception as error:  # its header is parsed as Python and fails in as many ways
        reason = str(error) or type(error).__name__
        raise DataError(f"cannot read this array: {printable(reason)}") from error
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3):  # one image, grey or colour
        array = array[None]
    return to_images(array, where="this array")


def _strips(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    """Yield parts of an image as wide as it is, and their rows."""
    height = max(_STRIP // image.width, 1)
    for top in range(0, image.height, height):
        bottom = min(top + height, image.height)
        yield slice(top, bottom), image.crop((0, top, image.width, bottom))


def _median_of_visible(image: Image.Image) -> int:
    """Return how bright an image is where it is not transparent, 0 to 255."""
    counts = np.zeros(256, np.int64)
    for _, strip in _strips(image):
        colours = strip.convert("RGBA")
        counts += colours.convert("L").histogram(colours.getchannel("A"))
    return int(np.searchsorted(counts.cumsum(), counts.sum() / 2))


def _scale_of(image: Image.Image) -> float:
    """Return by what to divide the pixels of an image of 16 bits or more.

    Raises:
        DataError: How bright they are meant cannot be told: they may have 12 bits, or be fractions.
    """
    largest = max(float(np.asarray(strip).max()) for _, strip in _strips(image))
    if largest == 0 or _BRIGHTEST / 4 <= largest <= _BRIGHTEST:
        return _BRIGHTEST / 255
    if image.mode.startswith("F") and 1 < largest <= 255:
        return 1
    raise DataError(
        f"its brightest pixel is {largest:g}, of more than 8 bits: how bright that is cannot be told; "
        "save it with 8 bits a pixel, or with 16 from 0 to 65535"
    )


def _eight_bits(image: Image.Image, scale: float) -> Image.Image:
    return Image.fromarray((np.asarray(image, dtype=np.float64) / scale).clip(0, 255).astype(np.uint8))


def _check_file(path: Path) -> None:
    if not stat.S_ISREG(_kind_of_file(path)):  # a pipe in a folder would block
        raise DataError("not a file or a folder")
    if path.stat().st_size > MAX_IMAGE_FILE_BYTES:
        raise DataError(f"{path.stat().st_size} bytes; the limit is {MAX_IMAGE_FILE_BYTES}")


def _check_size(height: int, width: int) -> None:
    if not 0 < width * height <= MAX_IMAGE_PIXELS:
        raise DataError(f"{width}×{height} pixels; the limit is {MAX_IMAGE_PIXELS}")


def _check_scans(path: Path) -> None:
    """Refuse a JPEG that goes over its pixels again and again."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        scans, place = 0, 0
        while (found := _JPEG_MARKER.search(content, place)) and content[found.start() + 1] != _END:
            scans += content[found.start() + 1] == _SCAN
            if scans > MAX_JPEG_SCANS:
                raise DataError(f"more than {MAX_JPEG_SCANS} scans, the limit for a JPEG")
            place = found.end() + int.from_bytes(content[found.end() : found.end() + 2])


def _kind_of_file(path: str | Path) -> int:
    try:
        return os.stat(path).st_mode
    except (OSError, ValueError) as error:
        raise DataError(printable(getattr(error, "strerror", None) or error)) from error


def _channels_last(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return (H, W, C) from (H, W) or (H, W, C)."""
    return image[:, :, None] if image.ndim == 2 else image


def _recolour(image: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """Return an image with as many channels as the network takes."""
    if image.shape[2] == 1:
        return np.repeat(image, channels, axis=2)
    return np.asarray(Image.fromarray(image).convert("L"))[:, :, None]
