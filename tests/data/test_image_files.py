import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import fmcli.data.image_files
from fmcli.data import load_source
from fmcli.data.background import classify_background
from fmcli.data.image_files import ImageReader, find_image_files, is_array_file
from fmcli.recipe import DataSpec
from tests.helpers import write_idx

GREY, COLOUR = (1, 28, 28), (3, 32, 24)


@pytest.fixture(scope="module")
def readers():
    """Return readers by input shape, background and inversion. They are reused, because creating one takes time."""
    made = {}

    def reader(shape=GREY, background="dark", invert="auto"):
        return made.setdefault((shape, background, invert), ImageReader(shape, background, invert))

    return reader


@pytest.fixture
def read(readers, tmp_path, monkeypatch):
    """Return a function that reads inputs in the folder of the test."""
    monkeypatch.chdir(tmp_path)

    def read_all(*names, **options):
        return list(readers(**options).read([str(name) for name in names]))

    return read_all


@pytest.fixture
def read_one(read):
    def pixels(name, **options):
        [image] = read(name, **options)
        assert image.error is None
        assert image.pixels.dtype == np.uint8
        assert image.pixels.shape == options.get("shape", GREY)
        assert image.pixels.flags.c_contiguous
        return image.pixels

    return pixels


def error_of(images):
    [image] = images
    assert image.pixels is None
    assert image.error
    return image.error


def garment(height=28, width=28):
    """Return a bright shape on black, (H, W), in which no two rows or columns are equal."""
    drawn = np.zeros((height, width), np.uint8)
    drawn[2:-2, 2:-2] = np.add.outer(np.arange(height - 4) * 2, np.arange(width - 4) * 3) % 150 + 100
    return drawn


def save(name, array, mode=None, **options):
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(name, **options)
    return name


def box(pixels, above=127):
    """Return the inclusive bounds (top, bottom, left, right) of the bright pixels."""
    rows, columns = (np.flatnonzero((pixels[0] > above).any(axis=axis)) for axis in (1, 0))
    return rows[0], rows[-1], columns[0], columns[-1]


# --- formats, colours, depths -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.png", {}),
        ("a.webp", {"lossless": True}),
        ("a.bmp", {}),
        ("a.tif", {}),
        ("a.tiff", {"compression": "tiff_lzw"}),
        ("a.pgm", {}),
        ("a.gif", {}),
        ("a.PNG", {}),
    ],
)
def test_image_of_the_input_size_is_not_changed(name, options, read_one):
    np.testing.assert_array_equal(read_one(save(name, garment(), **options))[0], garment())


def test_jpeg_is_nearly_unchanged(read_one):
    smooth = np.zeros((28, 28), np.uint8)
    smooth[4:24, 4:24] = 200
    for name in ("a.jpg", "a.jpeg"):
        pixels = read_one(save(name, smooth, quality=95))[0]
        assert np.abs(pixels.astype(int) - smooth).max() < 12


def test_file_name_of_a_given_image_needs_no_suffix(read_one):
    save("a.png", garment())
    os.rename("a.png", "no-ending")
    np.testing.assert_array_equal(read_one("no-ending")[0], garment())


def test_colour_image_for_a_colour_network_is_not_changed(read_one):
    colours = np.random.default_rng(0).integers(0, 255, (32, 24, 3)).astype(np.uint8)
    pixels = read_one(save("a.png", colours), shape=COLOUR, background="any")
    np.testing.assert_array_equal(pixels, colours.transpose(2, 0, 1))


def test_grey_image_is_the_same_in_every_channel(read_one):
    pixels = read_one(save("a.png", garment(32, 24)), shape=COLOUR)
    for channel in pixels:
        np.testing.assert_array_equal(channel, garment(32, 24))


def test_colour_image_becomes_grey_by_its_luminance(read_one):
    colours = np.zeros((28, 28, 3), np.uint8)
    colours[4:24, 4:10, 0] = colours[4:24, 10:16, 1] = colours[4:24, 16:22, 2] = 255
    pixels = read_one(save("a.png", colours))[0]
    assert pixels[10, [5, 12, 18, 25]].tolist() == pytest.approx([0.299 * 255, 0.587 * 255, 0.114 * 255, 0], abs=1)


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "LA"])
def test_grey_values_survive_any_colour_mode(mode, read_one):
    np.testing.assert_array_equal(read_one(save("a.png", garment(), mode))[0], garment())


def test_two_tone_image(read_one):
    expected = np.where(garment() > 127, 255, 0)
    np.testing.assert_array_equal(read_one(save("a.png", expected.astype(np.uint8), "1"))[0], expected)


def test_palette_with_a_transparent_colour(read_one):
    image = Image.fromarray(np.where(garment() > 0, 1, 0).astype(np.uint8)).convert("P")
    image.putpalette([255, 255, 255, 200, 200, 200])
    image.save("a.png", transparency=0)
    pixels = read_one("a.png")[0]
    assert set(np.unique(pixels)) == {0, 200}
    assert pixels[0, 0] == 0


def icon(level):
    """Return a square of one level on transparent pixels: uint8 (28, 28, 4)."""
    image = np.zeros((28, 28, 4), np.uint8)
    image[..., :3] = 90  # hidden where alpha is 0
    image[8:20, 8:20] = (level, level, level, 255)
    return image


@pytest.mark.parametrize(
    ("background", "colour"), [("dark", 0), ("mostly dark", 0), ("any", 255), ("light", 255), ("mostly light", 255)]
)
def test_transparent_pixels_become_the_background(background, colour, read_one):
    pixels = read_one(save("a.png", icon(160)), background=background)[0]
    assert (pixels[0, 0], pixels[14, 14]) == (colour, 160)


@pytest.mark.parametrize(
    ("background", "invert", "level", "shown"),
    [
        ("dark", "auto", 20, (0, 235)),  # on white, and therefore inverted
        ("light", "auto", 240, (255, 15)),
        ("mostly dark", "auto", 20, (255, 20)),
        ("any", "auto", 240, (0, 240)),
        ("any", "never", 240, (0, 240)),
        ("dark", "never", 20, (255, 20)),
        ("light", "never", 240, (0, 240)),
        ("mostly light", "never", 240, (0, 240)),
    ],
)
def test_transparent_pixels_do_not_hide_the_object(background, invert, level, shown, read_one):
    pixels = read_one(save("a.png", icon(level)), background=background, invert=invert)[0]
    assert (pixels[0, 0], pixels[14, 14]) == shown


def test_a_fully_transparent_image_is_read(read_one):
    assert np.ptp(read_one(save("a.png", np.zeros((28, 28, 4), np.uint8)))) == 0


def test_sixteen_bits_are_scaled_to_eight(read_one):
    for name in ("a.png", "a.tif"):
        pixels = read_one(save(name, garment().astype(np.uint16) * 257))[0]
        np.testing.assert_array_equal(pixels, garment())


def test_sixteen_bits_in_the_other_order_are_the_same(read_one):
    deep = np.arange(28 * 28, dtype=np.uint16).reshape(28, 28) * 80
    tags = [(256, 28), (257, 28), (258, 16), (259, 1), (262, 1), (273, 122), (277, 1), (278, 28), (279, 1568)]
    for order, sign in ((">", b"MM"), ("<", b"II")):
        table = b"".join(struct.pack(f"{order}HHIHxx", tag, 3, 1, value) for tag, value in tags)
        head = sign + struct.pack(f"{order}HIH", 42, 8, len(tags))
        Path(f"{sign.decode()}.tif").write_bytes(head + table + bytes(4) + deep.astype(f"{order}u2").tobytes())
    with Image.open("MM.tif") as image:
        assert image.mode == "I;16B"
    assert np.array_equal(read_one("MM.tif"), read_one("II.tif"))
    assert np.array_equal(read_one("MM.tif"), (deep / 257).astype(np.uint8)[None])


@pytest.mark.parametrize(
    ("array", "brightest"),
    [
        (garment().astype(np.float32) / 255, "0.843137"),
        (garment().astype(np.uint16), "215"),
        (garment().astype(np.uint16) * 16, "3440"),  # 12 bits
        (garment().astype(np.int32) * 1000, "215000"),
        (garment().astype(np.float32) * np.nan, "nan"),
    ],
    ids=["fractions", "8 bits in 16", "12 bits in 16", "32 bits", "NaN"],
)
def test_deep_pixels_of_unknown_brightness_are_refused(array, brightest, read):
    error = error_of(read(save("a.tif", array)))
    assert f"the value of white is unknown: pixels have more than 8 bits, and the brightest is {brightest}" in error
    assert "save the image with 8 bits" in error


def test_a_deep_image_that_is_black_is_read(read_one):
    assert read_one(save("a.png", np.zeros((28, 28), np.uint16))).max() == 0


@pytest.mark.parametrize("mode", ["L", "RGBA", "PA", "I;16", "F"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_an_image_read_in_strips_is_the_same(mode, orientation, read, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (41, 23, 4), np.uint8)
    whole = Image.fromarray(pixels[..., 0].astype(np.uint16) * 250 if mode == "I;16" else pixels)
    exif = Image.Exif()
    exif[0x112] = orientation
    (whole if mode == "I;16" else whole.convert(mode)).save("a.tif", exif=exif)
    [at_once] = read("a.tif", shape=(3, 40, 20), invert="never")
    for size in (1, 23 * 7):
        monkeypatch.setattr(fmcli.data.image_files, "_STRIP_PIXELS", size)
        [in_strips] = read("a.tif", shape=(3, 40, 20), invert="never")
        assert np.array_equal(in_strips.pixels, at_once.pixels)


def test_first_frame_of_an_animation_counts(read_one):
    frames = [Image.fromarray(garment()), Image.new("L", (28, 28), 255)]
    for name in ("a.gif", "a.webp"):
        frames[0].save(name, save_all=True, append_images=frames[1:], lossless=True)
        np.testing.assert_array_equal(read_one(name)[0], garment())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_a_camera_is_followed(orientation, read_one):
    turn = {
        1: lambda image: image,
        2: np.fliplr,
        3: lambda image: np.rot90(image, 2),
        4: np.flipud,
        5: np.transpose,
        6: lambda image: np.rot90(image, 1),  # viewers turn it clockwise
        7: lambda image: np.rot90(image, 2).T,
        8: lambda image: np.rot90(image, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    name = save("a.png", np.ascontiguousarray(turn[orientation](garment())), exif=exif)
    np.testing.assert_array_equal(read_one(name)[0], garment())


# --- size ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [2, 5])
def test_larger_image_is_averaged_down(factor, read_one):
    large = np.kron(garment(), np.ones((factor, factor), np.uint8))
    np.testing.assert_array_equal(read_one(save("a.png", large))[0], garment())


@pytest.mark.parametrize(
    ("height", "width", "shape", "expected"),
    [
        (100, 50, (1, 28, 28), (0, 27, 7, 20)),
        (50, 100, (1, 28, 28), (7, 20, 0, 27)),
        (7, 14, (1, 28, 28), (7, 20, 0, 27)),
        (40, 40, (1, 32, 24), (4, 27, 0, 23)),
        (64, 48, (1, 32, 24), (0, 31, 0, 23)),
        (4, 4, (1, 28, 28), (0, 27, 0, 27)),
        (1, 1, (1, 28, 28), (0, 27, 0, 27)),
        (300, 1, (1, 28, 28), (0, 27, 13, 13)),
        (1, 3000, (1, 28, 28), (13, 13, 0, 27)),
    ],
)
def test_proportions_are_kept_and_the_rest_is_background(height, width, shape, expected, read_one):
    name = save("a.png", np.full((height, width), 200, np.uint8))
    pixels = read_one(name, shape=shape, invert="never")
    top, bottom, left, right = box(pixels)
    assert np.abs(np.subtract((top, bottom, left, right), expected)).max() <= 1  # an odd pixel can be on either side
    assert bottom - top == expected[1] - expected[0]
    assert right - left == expected[3] - expected[2]
    outside = pixels.copy()
    outside[:, top : bottom + 1, left : right + 1] = 0
    assert outside.max() == 0


def test_rest_is_light_for_a_network_trained_on_white(read_one):
    name = save("a.png", np.full((56, 28, 3), 255, np.uint8))
    assert read_one(name, shape=COLOUR, background="light").min() == 255


# --- background ---------------------------------------------------------------------------------------------


def bordered(border, inside, n=1, channels=1):
    images = np.full((n, channels, 28, 28), border, np.uint8)
    images[:, :, 1:-1, 1:-1] = inside
    return images


@pytest.mark.parametrize(
    ("borders", "background"),
    [
        ([0, 0, 0, 0], "dark"),
        ([64, 0, 30, 255], "mostly dark"),
        ([64, 0, 30, 127], "dark"),
        ([0] * 99 + [255], "dark"),
        ([255, 255, 200, 191], "light"),
        ([255, 255, 255, 0], "mostly light"),
        ([255, 255, 255, 128], "light"),
        ([0, 0, 255, 255], "any"),
        ([100, 120, 140, 90], "any"),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_background_is_the_colour_of_most_borders(borders, background, channels):
    images = np.concatenate([bordered(border, 255 - border, channels=channels) for border in borders])
    assert classify_background([images]) == classify_background(np.array_split(images, 3)) == background


def test_real_clothes_have_a_dark_background(fashion_mnist):
    images = load_source(DataSpec(source="fashion-mnist"), data_root=fashion_mnist).test.images
    assert classify_background([images]) == "dark"


@pytest.mark.parametrize(
    ("background", "invert", "on_dark_inverted", "on_light_inverted"),
    [
        ("dark", "auto", False, True),
        ("light", "auto", True, False),
        ("any", "auto", False, False),
        ("mostly dark", "auto", False, False),
        ("mostly light", "auto", False, False),
        ("dark", "never", False, False),
        ("light", "never", False, False),
        ("dark", "always", True, True),
        ("light", "always", True, True),
        ("any", "always", True, True),
    ],
)
def test_inversion(background, invert, on_dark_inverted, on_light_inverted, read_one):
    for drawn, inverted in ((garment(), on_dark_inverted), (255 - garment(), on_light_inverted)):
        pixels = read_one(save("a.png", drawn), background=background, invert=invert)[0]
        np.testing.assert_array_equal(pixels, 255 - drawn if inverted else drawn)


def test_photograph_on_white_looks_like_a_training_image_after_resizing(read_one):
    pixels = read_one(save("a.png", 255 - garment(56, 40)))
    assert pixels[0, 0, 0] == pixels[0, 14, 0] == pixels[0, -1, -1] == 0
    assert pixels[0, 14, 14] > 90


def test_arrays_are_inverted_like_image_files(read):
    np.save("a.npy", np.stack([garment(), 255 - garment()]))
    for image in read("a.npy"):
        np.testing.assert_array_equal(image.pixels[0], garment())


# --- folders, arrays, order ---------------------------------------------------------------------------------


def test_folder_and_subfolders_are_read_in_the_order_of_names(read):
    os.makedirs("photos/b/deep")
    os.makedirs("photos/a")
    names = [
        "photos/10.png",
        "photos/2.JPG",
        "photos/z.png",
        "photos/a/1.png",
        "photos/b/1.webp",
        "photos/b/deep/0.png",
    ]
    for level, name in enumerate(reversed(names)):
        save(name, np.full((28, 28), level, np.uint8))
    for name in ("photos/notes.txt", "photos/a/.DS_Store", "photos/b/1.npy"):
        with open(name, "w") as file:
            file.write("not an image")
    images = read("photos")
    assert [image.name for image in images] == names
    assert [image.error for image in images] == [None] * 6
    assert {image.index for image in images} == {None}
    assert [str(path) for path in find_image_files(Path("photos"))] == names


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="all folders can be read here")
def test_a_folder_without_permission_is_reported_and_the_rest_is_read(read):
    for name in ("photos/a", "photos/b"):
        os.makedirs(name)
        save(f"{name}/1.png", garment())
    os.chmod("photos/a", 0)
    try:
        images = read("photos", "photos/a")
    finally:
        os.chmod("photos/a", 0o700)
    told = [(image.name, image.error) for image in images]
    assert told == [("photos/b/1.png", None), ("photos/a", "Permission denied"), ("photos/a", "Permission denied")]


def test_an_unreadable_subfolder_is_reported(read, monkeypatch):
    os.makedirs("photos/b")
    save("photos/b/1.png", garment())

    def walk(folder, onerror):
        onerror(PermissionError(13, "Permission denied", "photos/a"))
        yield "photos/b", [], ["1.png"]

    monkeypatch.setattr(os, "walk", walk)
    told = [(image.name, image.error) for image in read("photos")]
    assert told == [("photos/b/1.png", None), ("photos/a", "Permission denied")]


def test_inputs_keep_their_order_and_their_names(read, tmp_path):
    save("b.png", garment())
    save("a.png", garment())
    names = [
        "./b.png",
        "a.png",
        "b.png",
        ".//a.png",
        str(tmp_path / "a.png"),
        "../" + tmp_path.name + "/b.png",
        "./c.png",
    ]
    assert [image.name for image in read(*names)] == names


def test_images_are_read_one_by_one(readers, tmp_path):
    save(tmp_path / "a.png", garment())

    def inputs():
        yield str(tmp_path / "a.png")
        raise AssertionError("read ahead")

    assert next(readers().read(inputs())).error is None


@pytest.mark.parametrize(
    ("shape", "n_images"),
    [
        ((28, 28), 1),
        ((4, 28, 28), 4),
        ((2, 28, 28, 1), 2),
        ((2, 1, 28, 28), 2),
        ((2, 28, 28, 3), 2),
        ((2, 3, 28, 28), 2),
    ],
)
def test_numpy_array_gives_an_image_each(shape, n_images, read):
    np.save("a.npy", np.broadcast_to(np.uint8(77), shape))
    images = read("a.npy")
    assert [(image.name, image.index, image.error) for image in images] == [
        ("a.npy", index, None) for index in range(n_images)
    ]
    assert all((image.pixels == 77).all() and image.pixels.shape == GREY for image in images)


def test_numpy_array_of_another_size_is_fitted(read):
    np.save("a.npy", np.full((3, 10, 20), 80, np.uint8))
    assert [image.pixels.shape for image in read("a.npy", shape=COLOUR)] == [COLOUR] * 3


def test_colour_array_becomes_grey_like_a_colour_image(read):
    colours = np.random.default_rng(0).integers(0, 100, (28, 28, 3)).astype(np.uint8)
    save("a.png", colours)
    np.save("a.npy", colours[None])
    from_png, from_array = read("a.png", "a.npy")
    np.testing.assert_array_equal(from_png.pixels, from_array.pixels)


@pytest.mark.parametrize("gz", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("name", ["some-images-idx3-ubyte", "some.idx"])
def test_idx_file_gives_an_image_each(gz, name, read, tmp_path):
    images = np.stack([garment(), garment()[::-1]])
    loaded = read(write_idx(tmp_path / name, images, gz=gz))
    np.testing.assert_array_equal(np.stack([image.pixels[0] for image in loaded]), images)
    assert [image.index for image in loaded] == [0, 1]


def test_array_files_are_known_by_their_names(tmp_path):
    for name in ("a.npy", "a-ubyte", "a-ubyte.gz", "a.idx", "a.idx.gz"):
        assert is_array_file(tmp_path / name)
    for name in ("a.png", "npy", "a.gz"):
        assert not is_array_file(tmp_path / name)


# --- unreadable files ------------------------------------------------------------------------------------


def png_header(height, width):
    """Return a PNG file whose header claims a size, with almost no data."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(bytes(100)))
        + chunk(b"IEND", b"")
    )


def make(name, content):
    with open(name, "wb") as file:
        file.write(content)


def make_truncated(name):
    save("whole.png", np.random.default_rng(0).integers(0, 255, (90, 90)).astype(np.uint8))
    with open("whole.png", "rb") as file:
        make(name, file.read()[:-2000])


def make_checksum_error(name):
    save("whole.png", garment())
    with open("whole.png", "rb") as file:
        content = bytearray(file.read())
    content[60] ^= 0xFF
    make(name, content)


BAD = {
    "missing": (lambda name: None, "No such file or directory"),
    "text": (lambda name: make(name, b"hello"), "not an image of a known format"),
    "nothing": (lambda name: make(name, b""), "not an image of a known format"),
    "truncated": (make_truncated, "truncated"),
    "damaged": (make_checksum_error, ""),
    "folder": (os.mkdir, "the folder has no image files"),
    "pipe": (os.mkfifo, "not a file or a folder"),
    "dangling link": (lambda name: os.symlink("nowhere", name), "No such file or directory"),
    "link to itself": (lambda name: os.symlink(name, name), "Too many levels of symbolic links"),
    "bomb": (lambda name: make(name, png_header(8001, 8000)), "8000×8001 pixels; the limit is 64000000"),
    "larger bomb": (lambda name: make(name, png_header(9600, 9600)), "9600×9600 pixels; the limit is 64000000"),
    "largest bomb": (lambda name: make(name, png_header(60000, 60000)), "too many pixels; the limit is 64000000"),
    "vector": (lambda name: make(name, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "known format"),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize(("make_bad", "error"), BAD.values(), ids=BAD)
def test_bad_image_is_reported_and_the_rest_is_read(make_bad, error, read):
    save("good.png", garment())
    make_bad("bad.png")
    first, bad, last = read("good.png", "bad.png", "good.png")
    assert bad.name == "bad.png"
    assert bad.pixels is None
    assert re.search(error, bad.error)
    assert bad.error
    assert "\n" not in bad.error
    for good in (first, last):
        np.testing.assert_array_equal(good.pixels[0], garment())


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "kind", ["missing", "text", "truncated", "pipe", "dangling link", "bomb", "larger bomb", "folder"]
)
def test_bad_image_in_a_folder_is_reported_and_the_rest_is_read(kind, read):
    os.mkdir("photos")
    save("photos/a.png", garment())
    save("photos/c.png", garment())
    BAD[kind][0]("photos/b.png")
    images = read("photos")
    bad = [image.name for image in images if image.error]
    assert bad == ([] if kind in ("missing", "folder") else ["photos/b.png"])
    assert [image.name for image in images if not image.error] == ["photos/a.png", "photos/c.png"]


@pytest.mark.parametrize("name", ["", "no/such/folder/a.png", "x" * 5000 + ".png", "a\0b.png", "good.png/a.png"])
def test_impossible_path_is_a_data_error(name, read):
    save("good.png", garment())
    bad, good = read(name, "good.png")
    assert bad.name == name
    assert bad.error
    assert good.error is None


def test_empty_folder_is_an_error(read):
    os.makedirs("empty/also-empty")
    assert "the folder has no image files" in error_of(read("empty"))
    make("empty/notes.txt", b"hello")
    assert "the folder has no image files" in error_of(read("empty"))


def test_folder_that_is_named_like_an_image_is_read_as_a_folder(read):
    os.mkdir("a.png")
    save("a.png/b.png", garment())
    assert [image.name for image in read("a.png")] == ["a.png/b.png"]


def with_pickle(name):
    np.save(name, np.array([{"a": 1}], dtype=object), allow_pickle=True)


def with_zip(name):
    with open(name, "wb") as file:
        np.savez(file, images=np.zeros((28, 28), np.uint8))


PROMISE = b"{'descr': '|u1', 'fortran_order': False, 'shape': (%d, 28, 28)}" % 2**40
TERABYTES = b"\x93NUMPY\x01\0\x76\0" + PROMISE.ljust(117) + b"\n"
BAD_ARRAYS = {
    "floats": (lambda name: np.save(name, np.zeros((2, 28, 28), np.float32)), "has dtype float32"),
    "signed": (lambda name: np.save(name, np.zeros((2, 28, 28), np.int8)), "has dtype int8"),
    "pickled": (with_pickle, "cannot read this array"),
    "zip": (with_zip, "cannot read this array"),
    "fields": (lambda name: np.save(name, np.zeros(3, [("a", "u1")])), "images must be uint8"),
    "one axis": (lambda name: np.save(name, np.zeros(28, np.uint8)), "has shape (28,)"),
    "five axes": (lambda name: np.save(name, np.zeros((1, 1, 1, 28, 28), np.uint8)), "has shape"),
    "two channels": (lambda name: np.save(name, np.zeros((1, 28, 28, 2), np.uint8)), "with 1 or 3 channels"),
    "no images": (lambda name: np.save(name, np.zeros((0, 28, 28), np.uint8)), "has no images"),
    "no height": (lambda name: np.save(name, np.zeros((3, 0, 28), np.uint8)), "has no images"),
    "nothing": (lambda name: make(name, b""), "cannot read this array"),
    "text": (lambda name: make(name, b"hello world, hello all"), "cannot read this array"),
    "cut": (lambda name: make(name, b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', "), "cannot read this array"),
    "odd header": (lambda name: make(name, b"\x93NUMPY\x01\x00\x14\x00{'descr': (         "), "cannot read this array"),
    "terabytes": (lambda name: make(name, TERABYTES), "cannot read this array"),
    "missing": (lambda name: None, "No such file"),
    "pipe": (os.mkfifo, "not a file or a folder"),
}  # fmt: skip


@pytest.mark.timeout(30)
@pytest.mark.parametrize(("make_bad", "error"), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_bad_array_is_reported_and_the_rest_is_read(make_bad, error, read):
    make_bad("bad.npy")
    save("good.png", garment())
    bad, good = read("bad.npy", "good.png")
    assert (bad.name, bad.index, bad.pixels) == ("bad.npy", None, None)
    assert error in bad.error
    assert good.error is None


def test_pickle_is_never_loaded(read, tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    import pickle

    np.save("a.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    make("b.npy", pickle.dumps(Trap()))
    for name in ("a.npy", "b.npy"):
        assert "cannot read this array" in error_of(read(name))
    assert not (tmp_path / "sprung").exists()


def test_bad_idx_file_is_an_error(read, tmp_path):
    make("bad-ubyte", b"hello")
    assert "not an IDX file" in error_of(read("bad-ubyte"))
    assert "has shape (3,)" in error_of(read(write_idx(tmp_path / "labels-ubyte", np.zeros(3, np.uint8))))


def test_odd_metadata_gives_no_warning(read_one):
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01\x12\0\x03\0\0\0\x01"  # claims more entries than there are
    np.testing.assert_array_equal(read_one(save("a.png", garment(), exif=exif))[0], garment())


@given(
    damage=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=5),
    cut=st.booleans(),
    kind=st.sampled_from(["png", "jpg", "webp", "gif", "bmp", "npy", "-ubyte"]),
)
@settings(max_examples=150)
def test_damaged_files_never_raise(damage, cut, kind, readers, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()
    whole, damaged = (folder / f"{name}{'' if kind == '-ubyte' else '.'}{kind}" for name in ("whole", "damaged"))
    if not whole.exists():
        array = np.random.default_rng(0).integers(0, 255, (9, 9, 9)).astype(np.uint8)
        {"npy": lambda: np.save(whole, array), "-ubyte": lambda: write_idx(whole, array)}.get(
            kind, lambda: save(whole, array[0])
        )()
    content = bytearray(whole.read_bytes())
    for position, value in damage:
        content[position % len(content)] = value
    damaged.write_bytes(content[: damage[0][0] % len(content)] if cut else content)
    for image in readers().read([str(damaged)]):
        assert (image.pixels is None) == bool(image.error)


# --- names --------------------------------------------------------------------------------------------------


NAMES = {
    "space": "with space.png",
    "newline": "new\nline.png",
    "dash": "-dash.png",
    "script": "ünï×.png",
    "quotes": "tab\t'quote\".png",
    "colour": "\x1b[31m.png",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_any_name_is_kept(name, read):
    os.mkdir("photos")
    save(f"photos/a{name}", garment())
    make(f"photos/b{name}", b"broken")
    good, bad = read("photos")
    assert (good.name, bad.name) == (f"photos/a{name}", f"photos/b{name}")
    assert bad.error.isprintable()
    save(name, garment())
    assert [image.name for image in read(name) if not image.error] == [name]


def test_name_of_undecodable_bytes_is_kept(read):
    name = os.fsdecode(b"\xff\xe9t\xe9.png")
    try:
        save("a.png", garment())
        os.rename("a.png", name)
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    [image] = read(name)
    assert (image.name, image.error) == (name, None)
    [image] = read(".")
    assert os.fsencode(image.name) == b"\xff\xe9t\xe9.png"
    assert read(os.fsdecode(b"\xff.missing"))[0].error == "No such file or directory"


def test_a_colour_array_is_one_image(read, tmp_path):
    np.save(tmp_path / "colour.npy", np.full((40, 30, 3), 200, np.uint8))
    [image] = read("colour.npy")
    assert (image.index, image.error) == (0, None)
