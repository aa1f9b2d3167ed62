"""A folder of images as a source: `folder:DIR`."""

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fmcli.cli.remedies import hint_of
from fmcli.data import load_source, resized_images
from fmcli.data.cache import cache_folder
from fmcli.data.image_files import ImageReader
from fmcli.errors import DataError, RecipeError
from fmcli.recipe import load_recipe
from fmcli.recipe.data import DataSpec


def draw(path: Path, level: int = 0, *, size: tuple[int, int] = (6, 4), mode: str = "L", **options: object) -> None:
    """Write an image of one grey level with a width and height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, level).convert(mode).save(path, **options)


def load(folder: Path, **fields: object):
    return load_source(DataSpec(source=f"folder:{folder}", **fields))


@pytest.fixture
def pets(tmp_path) -> Path:
    """Folder of three cats and two dogs for training, one of each for testing, in different grey levels."""
    for number in range(3):
        draw(tmp_path / f"pets/train/cat/{number}.png", 10 + number)
    for number in range(2):
        draw(tmp_path / f"pets/train/dog/deep/er/{number}.PNG", 200 + number)
    draw(tmp_path / "pets/test/cat/0.png", 50)
    draw(tmp_path / "pets/test/dog/0.bmp", 250)
    return tmp_path / "pets"


def levels_by_label(images) -> list[tuple[int, int]]:
    return sorted(zip(images.labels.tolist(), images.images[:, 0, 0, 0].tolist(), strict=True))


# --- listing --------------------------------------------------------------------------------------


def test_splits_and_classes_are_folders(pets):
    source = load(pets)
    assert source.train.class_names == ("cat", "dog")
    assert source.train.input_shape == (1, 4, 6)
    assert levels_by_label(source.train) == [(0, 10), (0, 11), (0, 12), (1, 200), (1, 201)]
    assert levels_by_label(source.test) == [(0, 50), (1, 250)]
    assert source.validation is None
    for images in (source.train, source.test):
        assert all((image == image[0, 0, 0]).all() for image in images.images)


@pytest.mark.parametrize("name", ["validation", "val", "valid"])
def test_a_separate_validation_set_is_used(pets, name):
    draw(pets / name / "dog" / "9.png", 240)
    source = load(pets, validation={"own": True})
    assert levels_by_label(source.validation) == [(1, 240)]


def test_without_split_folders_every_fifth_image_is_for_testing(tmp_path):
    for number in range(20):
        draw(tmp_path / "a" / f"{number}.png", number)
    for number in range(7):
        draw(tmp_path / "b" / f"{number}.png", 100 + number)
    source = load(tmp_path)
    assert source.test.counts().tolist() == [4, 2]
    assert source.train.counts().tolist() == [16, 5]
    every = levels_by_label(source.train) + levels_by_label(source.test)
    assert sorted(every) == [*((0, number) for number in range(20)), *((1, 100 + number) for number in range(7))]


def test_the_order_mixes_classes_and_depends_only_on_file_names(tmp_path):
    for number in range(40):
        draw(tmp_path / "one" / "train" / "ab"[number % 2] / f"{number}.png", number)
    for number in reversed(range(40)):
        draw(tmp_path / "two" / "train" / "ab"[number % 2] / f"{number}.png", number)
    for name in ("one", "two"):
        draw(tmp_path / name / "test" / "a" / "0.png")
    one, two = load(tmp_path / "one"), load(tmp_path / "two")
    assert one.train.digest == two.train.digest
    first = one.train.labels[:20]
    assert 4 < first.sum() < 16


def test_classes_can_be_put_into_another_order(pets):
    source = load(pets, classes=("dog", "cat"))
    assert source.train.class_names == ("dog", "cat")
    assert levels_by_label(source.test) == [(0, 250), (1, 50)]


def test_split_folders_may_have_other_names(pets):
    os.rename(pets / "train", pets / "Training")
    os.rename(pets / "test", pets / "TEST")
    assert load(pets).train.counts().tolist() == [3, 2]


def test_a_class_may_be_called_train(tmp_path):
    for name in ("train", "bus"):
        for number in range(5):
            draw(tmp_path / name / f"{number}.png", number)
    assert load(tmp_path).train.class_names == ("bus", "train")


def test_hidden_folders_and_other_files_are_ignored(pets):
    (pets / "train" / ".thumbnails").mkdir()
    (pets / "train" / "__MACOSX").mkdir()
    draw(pets / "train" / "cat" / ".thumbnails" / "0.png")
    (pets / "train" / "cat" / "._0.png").write_bytes(b"no image")
    (pets / "train" / "cat" / "notes.txt").write_text("no image")
    (pets / "README").write_text("no class")
    assert load(pets).train.counts().tolist() == [3, 2]


def test_a_relative_folder_is_looked_for_below_the_data_root(pets):
    found = load_source(DataSpec(source="folder:pets"), data_root=pets.parent)
    assert found.train.counts().tolist() == [3, 2]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda pets: os.rename(pets, pets.parent / "moved"), "is not a folder"),
        (lambda pets: os.rename(pets / "test", pets.parent / "test"), "no folder 'test'"),
        (lambda pets: (pets / "test" / "cow").mkdir(), "folders that are not classes: cow"),
        (lambda pets: os.rename(pets / "train", pets / "others"), "no folder 'train'"),
        (lambda pets: os.mkdir(pets / "TRAINING"), "both contain train images"),
        (lambda pets: os.mkdir(os.fsencode(pets / "train") + b"/caf\xe9"), "must be printable UTF-8"),
        (lambda pets: (pets / "train" / "cat" / "gone.png").symlink_to("nowhere"), "gone.png"),
        (lambda pets: (pets / "train" / "cow").mkdir(), "no training images of the class cow"),
        (
            lambda pets: [os.rename(path, pets / "train" / path.name) for path in pets.glob("train/*/*.png")],
            "of the class cat",
        ),
        (lambda pets: shutil.rmtree(pets / "train" / "dog"), "has only one class folder, cat"),
        (lambda pets: [path.unlink() for path in (pets / "test").rglob("*.*")], "(test) has no images"),
    ],
)
def test_folders_that_do_not_fit_are_refused(pets, change, said):
    change(pets)
    with pytest.raises(DataError) as caught:
        load(pets)
    assert said in caught.value.message


def test_images_in_train_itself_are_refused(tmp_path):
    draw(tmp_path / "train" / "cat.1.png")
    draw(tmp_path / "test" / "1.png")
    with pytest.raises(DataError, match="train has no class folders"):
        load(tmp_path)


def test_the_parent_of_the_right_folder_is_refused_with_a_hint(tmp_path):
    for name in ("cat", "dog"):
        draw(tmp_path / "unpacked" / "pets" / name / "1.png")
    with pytest.raises(DataError, match="has only one class folder, pets") as caught:
        load(tmp_path / "unpacked")
    assert f"data.source = 'folder:{tmp_path / 'unpacked' / 'pets'}'" in caught.value.hint


def test_a_class_with_only_a_test_image_is_refused(tmp_path):
    for name, count in (("cat", 5), ("dog", 1)):
        for number in range(count):
            draw(tmp_path / name / f"{number}.png")
    with pytest.raises(DataError, match="no training images of the class dog") as caught:
        load(tmp_path)
    assert "all images of this class are used for testing" in caught.value.hint
    os.rename(tmp_path / "dog" / "0.png", tmp_path / "dog" / "0.heic")
    with pytest.raises(DataError) as caught:
        load(tmp_path)
    assert "image files end in .bmp, .gif" in caught.value.hint


def test_a_folder_without_folders_is_refused(tmp_path):
    draw(tmp_path / "1.png")
    with pytest.raises(DataError, match="has no class folders"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (("cat",), "folders that are not classes: dog"),
        (("cat", "cow", "dog"), "no folder for the class cow"),
    ],
)
def test_classes_that_are_not_the_folders_are_refused(pets, classes, said):
    with pytest.raises(DataError, match=said):
        load(pets, classes=classes)


# --- pixels ----------------------------------------------------------------------------------------


def test_images_of_several_sizes_need_a_size(pets):
    draw(pets / "train" / "cat" / "wide.png", size=(12, 3))
    with pytest.raises(DataError) as caught:
        load(pets)
    assert "wide.png is 12×3" in caught.value.message
    assert "6×4" in caught.value.message
    assert "--set 'data.size=[32,32]'" in hint_of(caught.value)


def test_images_are_resized_in_proportion_and_padded_with_the_background(tmp_path):
    for behind in (0, 255):
        folder = tmp_path / str(behind)
        for number in range(8):
            drawn = Image.new("L", (20, 10), behind)
            drawn.paste(128, (5, 3, 15, 7))
            for split in ("train", "test"):
                (folder / split / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
                drawn.save(folder / split / "ab"[number % 2] / f"{number}.png")
        image = load(folder, size=(10, 10)).train.images[0, 0]
        assert image.shape == (10, 10)
        assert set(np.unique(image[[0, 1, -2, -1]])) == {behind}
        assert image[4, 5] == 128


@pytest.mark.parametrize(
    ("mode", "channels", "expected"),
    [("L", None, 1), ("1", None, 1), ("P", None, 1), ("LA", None, 1), ("RGB", None, 3), ("RGB", 1, 1), ("L", 3, 3)],
)
def test_images_are_grey_if_all_image_files_are_grey(pets, mode, channels, expected):
    draw(pets / "train" / "cat" / "one.png", 255, mode=mode)
    assert load(pets, channels=channels).train.input_shape == (expected, 4, 6)


@pytest.mark.parametrize("ending", ["png", "bmp", "gif", "tif"])
def test_an_image_with_a_coloured_palette_is_coloured(pets, ending):
    image = Image.new("P", (6, 4))
    image.putpalette([0, 0, 0, 9, 9, 9])
    image.save(pets / "train" / "cat" / f"one.{ending}")
    assert load(pets).train.input_shape == (1, 4, 6)
    image.putpalette([255, 0, 0])
    image.save(pets / "train" / "cat" / f"one.{ending}")
    assert load(pets).train.input_shape == (3, 4, 6)


def test_predicted_images_are_resized_like_training_images(tmp_path):
    """Padding does not count as background."""
    for number in range(8):
        draw(tmp_path / "ab"[number % 2] / f"{number}.png", 20 if number % 2 else 240, size=(20, 10))
    source = load(tmp_path, size=(10, 10))
    assert source.train.background == source.train.subset(slice(2)).background == "any"
    reader = ImageReader(source.train.input_shape, source.train.background)
    [loaded] = reader.read([str(tmp_path / "a" / "0.png")])
    assert any((loaded.pixels == image).all() for image in (*source.train.images, *source.test.images))
    for number in range(8):
        draw(tmp_path / "light" / "ab"[number % 2] / f"{number}.png", 240, size=(20, 10))
    assert load(tmp_path / "light", size=(10, 10)).train.background == "light"


@pytest.mark.parametrize("ending", ["jpg", "png", "tif"])
def test_the_exif_orientation_determines_the_size(pets, ending):
    turned = Image.Exif()
    turned[0x0112] = 6
    draw(pets / "train" / "cat" / f"turned.{ending}", size=(4, 6), exif=turned)
    assert load(pets).train.input_shape == (1, 4, 6)


def test_unreadable_images_are_named_together(pets):
    for number in range(5):
        (pets / "train" / "cat" / f"bad{number}.png").write_bytes(b"not an image")
    with pytest.raises(DataError) as caught:
        load(pets, size=(4, 6), channels=1)
    assert "5 of 12 image files cannot be read" in caught.value.message
    assert caught.value.message.count("bad") == 3
    assert caught.value.message.endswith("and 2 more")
    with pytest.raises(DataError, match=r"cannot read .*: not an image of a known format"):
        load(pets)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in folders here")
@pytest.mark.parametrize("fields", [{}, {"size": (4, 6), "channels": 1}])
def test_a_pipe_among_images_does_not_hang(pets, fields):
    os.mkfifo(pets / "train" / "cat" / "pipe.png")
    with pytest.raises(DataError, match="not a file"):
        load(pets, **fields)


def test_sizes_beyond_the_limit_are_refused(pets):
    with pytest.raises(DataError, match="too large"):
        load(pets, size=(5000, 5000))


# --- the cache -------------------------------------------------------------------------------------------


def test_images_are_decoded_once(pets, monkeypatch):
    first = load(pets)

    def refuse(*_: object) -> None:
        raise AssertionError("read again")

    with monkeypatch.context() as patch:
        patch.setattr(resized_images.ImageReader, "read", refuse)
        assert load(pets).train.digest == first.train.digest
        assert not load(pets).train.is_mapped
        with pytest.raises(AssertionError):
            load(pets, size=(8, 8))
    draw(pets / "train" / "cat" / "0.png", 99)
    os.utime(pets / "train" / "cat" / "0.png", (0, 0))
    assert (0, 99) in levels_by_label(load(pets).train)
    assert len(made_files()) == 1


def test_many_images_are_mapped(pets, monkeypatch):
    in_memory = load(pets)
    monkeypatch.setattr(resized_images, "MAX_IN_MEMORY_BYTES", 10)
    mapped = load(pets)
    assert mapped.train.is_mapped
    assert mapped.train.digest == in_memory.train.digest


def test_images_are_read_without_a_cache_too(pets):
    digest = load(pets).test.digest
    for path in (cache_folder() / "unpacked").iterdir():
        path.unlink()
    (cache_folder() / "unpacked").rmdir()
    (cache_folder() / "unpacked").write_text("a file where the folder should be")
    assert load(pets).test.digest == digest


def made_files():
    return [path for path in (cache_folder() / "unpacked").glob("[!.]*") if path.suffix != ".sha256"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-20],
        lambda content: b"",
        lambda content: content + b"x",
        lambda content: content[:200] + bytes([content[200] ^ 1]) + content[201:],  # a bit of a pixel
    ],
)
def test_a_damaged_cache_is_written_again(pets, damage):
    digest = load(pets).train.digest
    [made] = made_files()
    whole = made.read_bytes()
    made.write_bytes(damage(whole))
    assert load(pets).train.digest == digest
    assert made.read_bytes() == whole


def test_a_cached_file_without_a_digest_is_written_again(pets):
    digest = load(pets).train.digest
    [made] = made_files()
    made.with_name(f"{made.name}.sha256").unlink()  # as after a process is killed between the two writes
    made.write_bytes(b"")
    assert load(pets).train.digest == digest


def test_sha256sum_can_check_the_digest(pets):
    load(pets)
    [made] = made_files()
    line = f"{hashlib.sha256(made.read_bytes()).hexdigest()}  {made.name}\n"
    assert made.with_name(f"{made.name}.sha256").read_text() == line


def test_many_images_without_a_cache_are_refused(pets, monkeypatch):
    (cache_folder()).mkdir(parents=True, exist_ok=True)
    (cache_folder() / "unpacked").write_text("a file where the folder should be")
    monkeypatch.setattr(resized_images, "MAX_IN_MEMORY_BYTES", 10)
    with pytest.raises(DataError) as caught:
        load(pets)
    assert "XDG_CACHE_HOME" in caught.value.hint


def test_an_image_changed_in_place_is_read_again(pets):
    path = pets / "test" / "dog" / "0.bmp"
    before = path.stat()
    load(pets)
    draw(path, 77)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert (1, 77) in levels_by_label(load(pets).test)


# --- recipes and commands --------------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["size=[32, 32]", "channels=3"])
def test_size_and_channels_are_only_for_folders(line):
    with pytest.raises(RecipeError) as caught:
        load_recipe("quick", [f"data.{line}"])
    assert "only valid for folder:DIR" in str(caught.value.problems)


def test_a_folder_of_images_is_distinguished_from_a_run(cli, pets):
    refused = cli("data", "info", pets)
    assert refused.status == 2
    assert f"folder:{pets}" in refused.err
    shown = cli("data", "info", f"folder:{pets}", "--format", "json").json
    assert [(row["class"], row["train"], row["test"]) for row in shown["classes"]] == [("cat", 3, 1), ("dog", 2, 1)]


def test_images_of_several_sizes_can_be_looked_at(cli, pets):
    draw(pets / "train" / "cat" / "wide.png", size=(12, 3))
    refused = cli("data", "info", f"folder:{pets}")
    assert refused.status == 3
    assert "--set 'data.size=[32,32]'" in refused.err
    shown = cli("data", "info", f"folder:{pets}", "--set", "data.size=[8,9]", "-f", "json").json
    assert shown["input_shape"] == [1, 8, 9]
    for key, said in (
        ("data.siez=[8,8]", "data.siez: unknown key"),
        ("trainer.epochs=3", "trainer: expected a key of data"),
    ):
        refused = cli("data", "info", f"folder:{pets}", "--set", key)
        assert refused.status == 2
        assert said in refused.err


def test_an_unused_validation_set_is_reported(cli, pets):
    assert "not using" not in cli("data", "info", f"folder:{pets}").err
    draw(pets / "validation" / "dog" / "9.png", 240)
    told = cli("data", "info", f"folder:{pets}").err
    assert "not using the 1 validation images of the source" in told
    assert "data.validation = { own = true }" in told


def test_an_image_of_far_too_many_pixels_is_refused_by_its_header(pets):
    Image.new("P", (10_000, 8_000)).save(pets / "train" / "cat" / "huge.gif")
    with pytest.raises(DataError, match="the limit is"):
        load(pets)
