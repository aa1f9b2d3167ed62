import gzip
import hashlib
import resource
import struct
import threading

import numpy as np
import pytest
import torch

from fmcli.choices import BUILT_IN_SOURCES, SPLITS
from fmcli.cli.remedies import hint_of
from fmcli.data import (
    DeviceLoader,
    ImageSet,
    Splits,
    draw_sample,
    evaluation_loader,
    load_source,
    load_splits,
    resolve_normalization,
    split_images,
)
from fmcli.data import idx as idx_files
from fmcli.data.arrays import to_images
from fmcli.data.cache import cache_folder
from fmcli.data.idx import open_idx, read_idx
from fmcli.data.sources import fashion_mnist as fashion_mnist_source
from fmcli.data.sources.fashion_mnist import FASHION_MNIST_FILES, find_fashion_mnist
from fmcli.ensemble.predictions import digest_arrays
from fmcli.errors import DataError, ExitStatus
from fmcli.recipe import DataSpec
from fmcli.recipe.data import FirstImages, OwnValidation, PixelScale, RandomFraction, Resplit
from fmcli.storage.locks import LOCK_FILE
from tests.helpers import draw_quadrants, idx_bytes, write_idx, write_idx_folder

FASHION = DataSpec(source="fashion-mnist")


def idx(folder, **fields):
    return DataSpec(source=f"idx:{folder}", **fields)


# --- IDX files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gz", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("shape", [(5,), (2, 3), (2, 3, 4), (2, 3, 4, 3), (0, 3, 4)])
def test_idx_file_is_read_back(shape, dtype, gz, tmp_path):
    array = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    read, content = read_idx(write_idx(tmp_path / "file-ubyte", array, gz=gz))
    np.testing.assert_array_equal(read, array)
    assert read.dtype.kind == array.dtype.kind
    assert read.dtype.itemsize == array.dtype.itemsize
    assert content == idx_bytes(array)


def test_digest_of_content_does_not_depend_on_compression(tmp_path):
    array = np.arange(12, dtype="u1").reshape(3, 4)
    plain, gzipped = (read_idx(write_idx(tmp_path / "file-ubyte", array, gz=gz))[1] for gz in (False, True))
    assert hashlib.sha256(plain).digest() == hashlib.sha256(gzipped).digest()


GOOD = idx_bytes(np.arange(24, dtype="u1").reshape(2, 3, 4))
TERABYTES = struct.pack(">BBBB3I", 0, 0, 8, 3, 1 << 20, 1 << 10, 1 << 10)
GIGABYTES = struct.pack(">BBBB3I", 0, 0, 8, 3, 7 << 10, 1 << 10, 1 << 10)
BROKEN = {
    "empty": (b"", "the first bytes are missing"),
    "cut in the magic": (GOOD[:3], "not an IDX file"),
    "cut in the header": (GOOD[:10], "ends inside the header"),
    "cut in the data": (GOOD[:-1], "has 23 bytes of data; expected 24"),
    "header alone": (GOOD[:16], "has 0 bytes of data; expected 24"),
    "too long": (GOOD + b"x", "has more than 24 bytes of data; expected 24"),
    "not zero at first": (b"\1" + GOOD[1:], "not an IDX file: the first bytes are 01000803"),
    "unknown type": (b"\0\0\x0a" + GOOD[3:], "not an IDX file"),
    "rank 0": (b"\0\0\x08\0" + GOOD[4:], "not an IDX file"),
    "rank 5": (b"\0\0\x08\5" + GOOD[4:], "not an IDX file"),
    "text": (b"<!DOCTYPE html>", "not an IDX file"),
    "claims terabytes": (TERABYTES, r"claims 1099511627776 bytes, but the file has \d+"),
    "claims gigabytes": (
        GIGABYTES + b"x",
        r"claims 7516192768 bytes, but the file has \d+(; the limit is 200 times the packed size)?$",
    ),
}


@pytest.mark.parametrize("gz", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize(("content", "problem"), BROKEN.values(), ids=BROKEN)
def test_broken_idx_file_is_refused_by_name(content, problem, gz, tmp_path):
    path = tmp_path / ("broken-ubyte" + ".gz" * gz)
    path.write_bytes(gzip.compress(content) if gz else content)
    with pytest.raises(DataError, match=problem) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)
    assert caught.value.exit_status == ExitStatus.DATA


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:8],
        lambda content: content[:-12],
        lambda content: content[:-8] + b"\0\0\0\0" + content[-4:],
        lambda content: content[:12] + bytes(byte ^ 0xFF for byte in content[12:30]) + content[30:],
        lambda content: b"not gzip at all",
        lambda content: content + b"not gzip at all",
    ],
    ids=["empty", "header", "cut", "checksum", "garbled", "text", "trailing"],
)
def test_corrupt_gzip_is_refused(damage, tmp_path):
    content = gzip.compress(idx_bytes(np.random.default_rng(0).integers(0, 255, (9, 9)).astype("u1")))
    (tmp_path / "a-ubyte.gz").write_bytes(damage(content))
    with pytest.raises(DataError, match=r"a-ubyte\.gz"):
        read_idx(tmp_path / "a-ubyte.gz")


def test_an_array_above_the_limit_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(idx_files, "MAX_ARRAY_BYTES", 23)
    path = write_idx(tmp_path / "a-ubyte", np.arange(24, dtype="u1"))
    with pytest.raises(DataError, match="claims 24 bytes; the limit is 23"):
        read_idx(path)


# --- IDX files that stay on the disk ------------------------------------------------------------------------

IMAGES = np.random.default_rng(0).integers(0, 256, (50, 6, 6, 3)).astype("u1")


@pytest.fixture
def little_memory(monkeypatch):
    monkeypatch.setattr(idx_files, "MAX_IN_MEMORY_BYTES", 100)


@pytest.mark.parametrize("gz", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("array", [IMAGES, IMAGES[..., 0], IMAGES.transpose(0, 3, 1, 2)])
def test_large_idx_file_is_mapped(array, gz, little_memory, tmp_path):
    path = write_idx(tmp_path / "file-ubyte", array, gz=gz)
    content = path.read_bytes()
    opened = open_idx(path)
    assert isinstance(opened, np.memmap)
    np.testing.assert_array_equal(opened, array)
    images = to_images(opened, where=path)
    assert isinstance(images, np.memmap)
    np.testing.assert_array_equal(images, to_images(array, where=path))
    assert path.read_bytes() == content


def test_small_idx_file_is_read(tmp_path):
    assert not isinstance(open_idx(write_idx(tmp_path / "file-ubyte", IMAGES)), np.memmap)


def test_gzipped_file_is_unpacked_once(little_memory, monkeypatch, tmp_path):
    path = write_idx(tmp_path / "a-ubyte", IMAGES, gz=True)
    open_idx(path)
    (first,) = unpacked()
    with monkeypatch.context() as patch:
        patch.setattr(idx_files, "_unpack", None)
        np.testing.assert_array_equal(open_idx(path), IMAGES)
    path.unlink()
    np.testing.assert_array_equal(open_idx(write_idx(tmp_path / "a-ubyte", IMAGES[1:], gz=True)), IMAGES[1:])
    (other,) = unpacked()
    assert other != first


def unpacked():
    written = (path for path in (cache_folder() / "unpacked").iterdir() if path.name != LOCK_FILE)
    return [path for path in written if path.suffix != ".sha256"]


def test_a_damaged_file_is_unpacked_again(little_memory, tmp_path):
    path = write_idx(tmp_path / "a-ubyte", IMAGES, gz=True)
    open_idx(path)
    (made,) = unpacked()
    content = bytearray(made.read_bytes())
    content[-1] ^= 1
    made.write_bytes(content)
    np.testing.assert_array_equal(open_idx(path), IMAGES)


def test_partial_files_of_killed_processes_are_removed(little_memory, tmp_path):
    path = write_idx(tmp_path / "a-ubyte", IMAGES, gz=True)
    torn = cache_folder() / "unpacked" / ".0123-1-1.abc.part"
    torn.parent.mkdir(parents=True)
    torn.write_bytes(b"half")
    open_idx(path)
    assert len(unpacked()) == 1
    assert not torn.exists()


@pytest.mark.parametrize("end", [-40, -6])
def test_damaged_gzipped_file_leaves_nothing_unpacked(end, little_memory, tmp_path):
    path = write_idx(tmp_path / "a-ubyte", IMAGES, gz=True)
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(DataError, match=r"cannot read .*a-ubyte\.gz"):
        open_idx(path)
    assert not unpacked()


def test_gzipped_file_with_more_bytes_than_the_header_claims_is_not_unpacked(little_memory, tmp_path):
    path = tmp_path / "a-ubyte.gz"
    path.write_bytes(gzip.compress(idx_bytes(IMAGES) + b"x"))
    with pytest.raises(DataError, match="has more than 5400 bytes"):
        open_idx(path)
    assert not unpacked()


def test_no_space_to_unpack_is_an_error_with_a_hint(little_memory, tmp_path):
    path = write_idx(tmp_path / "a-ubyte", IMAGES, gz=True)
    cache_folder().parent.mkdir(parents=True, exist_ok=True)
    cache_folder().write_text("a file where the folder should be")
    with pytest.raises(DataError, match=r"a-ubyte\.gz does not fit into memory and cannot be unpacked") as caught:
        open_idx(path)
    assert "XDG_CACHE_HOME" in caught.value.hint


@pytest.mark.parametrize("gz", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("validation", [FirstImages(first=7), RandomFraction(fraction=0.3, seed=1)])
def test_batches_are_the_same_from_memory_and_from_a_file(validation, gz, monkeypatch, tmp_path):
    folder = write_idx_folder(tmp_path, *draw_quadrants(40, seed=1), gz=gz)
    spec = idx(folder, validation=validation)
    in_memory = load_splits(spec)
    monkeypatch.setattr(idx_files, "MAX_IN_MEMORY_BYTES", 100)
    on_disk = load_splits(spec)
    for one, other in zip(in_memory.present().values(), on_disk.present().values(), strict=True):
        assert (one.is_mapped, other.is_mapped) == (False, True)
        np.testing.assert_array_equal(one.images, other.images)
        assert one.digest == other.digest == digest_arrays(one.images, one.labels)
        assert one.moments == other.moments
        np.testing.assert_array_equal(one.sample(3).images, other.sample(3).images)
        loaders = [DeviceLoader(images, batch_size=3, device=torch.device("cpu")) for images in (one, other)]
        assert np.shares_memory(loaders[0]._images, one.pixels)
        order = torch.randperm(len(one), generator=torch.Generator().manual_seed(0)).numpy()
        for loader in loaders:
            for skip in (0, 2):
                batches = loader.epoch(torch.Generator().manual_seed(0), skip=skip)
                for first, (images, labels) in zip(range(3 * skip, len(one), 3), batches, strict=True):
                    np.testing.assert_array_equal(images, one.images[order[first : first + 3]])
                    np.testing.assert_array_equal(labels, one.labels[order[first : first + 3]])
            np.testing.assert_array_equal(torch.cat(list(loader.batches())), one.images)


def test_the_streaming_thread_ends_if_the_epoch_is_closed(little_memory, tmp_path):
    spec = idx(write_idx_folder(tmp_path, *draw_quadrants(40, seed=1)))
    loader = DeviceLoader(load_source(spec).train, batch_size=3, device=torch.device("cpu"))
    before = threading.active_count()
    epoch = loader.epoch(torch.Generator())
    next(epoch)
    assert threading.active_count() == before + 1
    epoch.close()
    assert threading.active_count() == before


def test_missing_idx_file_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*nowhere: No such file"):
        read_idx(tmp_path / "nowhere")
    with pytest.raises(DataError, match="cannot read"):
        read_idx(tmp_path)


@pytest.mark.parametrize("content", [TERABYTES, GIGABYTES], ids=["terabytes", "gigabytes"])
def test_false_header_needs_no_memory(content, tmp_path):
    (tmp_path / "liar").write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError):
        read_idx(tmp_path / "liar")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes


@pytest.mark.parametrize(
    ("shape", "result"),
    [
        ((5, 4, 6), (5, 1, 4, 6)),
        ((5, 4, 6, 3), (5, 3, 4, 6)),
        ((5, 4, 6, 1), (5, 1, 4, 6)),
        ((5, 3, 4, 6), (5, 3, 4, 6)),
        ((5, 1, 4, 6), (5, 1, 4, 6)),
    ],
)
def test_channels_come_first(shape, result):
    assert to_images(np.zeros(shape, np.uint8), where="it").shape == result


def test_channels_last_pixels_keep_their_colours():
    array = np.random.default_rng(0).integers(0, 255, (2, 4, 5, 3)).astype(np.uint8)
    np.testing.assert_array_equal(to_images(array, where="it")[1, 2], array[1, :, :, 2])


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((5, 4, 6, 2), np.uint8),
        np.zeros((5, 4), np.uint8),
        np.zeros(5, np.uint8),
        np.zeros((5, 4, 6), np.int8),
        np.zeros((5, 4, 6), np.float32),
        np.zeros((0, 4, 6), np.uint8),
        np.zeros((5, 0, 6), np.uint8),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_array_without_images_is_refused(array):
    with pytest.raises(DataError, match="the file"):
        to_images(array, where="the file")


# --- folders of IDX files -----------------------------------------------------------------------------------


@pytest.fixture
def quadrants():
    return draw_quadrants(40, seed=3)


@pytest.mark.parametrize("gz", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("test_name", ["t10k", "test"])
def test_folder_is_read(gz, test_name, quadrants, tmp_path):
    test = draw_quadrants(8, seed=4)
    source = load_source(idx(write_idx_folder(tmp_path, *quadrants, test=test, gz=gz, test_name=test_name)))
    np.testing.assert_array_equal(source.train.images[:, 0], quadrants[0])
    np.testing.assert_array_equal(source.train.labels, quadrants[1])
    np.testing.assert_array_equal(source.test.images[:, 0], test[0])
    assert source.train.labels.dtype == np.int64
    assert source.train.class_names == source.test.class_names == ("0", "1", "2", "3")
    assert source.validation is None
    assert source.path == tmp_path


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 5), (64, 3)])
@pytest.mark.parametrize("n_classes", [1, 2, 37, 256])
def test_any_image_size_and_class_count(height, width, n_classes, tmp_path):
    labels = np.arange(n_classes, dtype=np.uint8)
    images = np.random.default_rng(0).integers(0, 255, (n_classes, height, width)).astype(np.uint8)
    train = load_source(idx(write_idx_folder(tmp_path, images, labels))).train
    assert train.input_shape == (1, height, width)
    assert len(train.class_names) == n_classes
    assert train.counts().tolist() == [1] * n_classes


@pytest.mark.parametrize("shape", [(10, 6, 7, 3), (10, 3, 6, 7)])
def test_colour_images(shape, tmp_path):
    images = np.zeros(shape, np.uint8)
    source = load_source(idx(write_idx_folder(tmp_path, images, np.arange(10, dtype=np.uint8) % 2)))
    assert source.train.input_shape == source.test.input_shape == (3, 6, 7)


def test_class_with_only_test_images_counts(quadrants, tmp_path):
    images, labels = quadrants
    source = load_source(idx(write_idx_folder(tmp_path, images, labels, test=(images, labels + 1))))
    assert source.train.class_names == ("0", "1", "2", "3", "4")


def test_class_names_from_the_folder_and_from_the_recipe(quadrants, tmp_path):
    write_idx_folder(tmp_path, *quadrants, classes=["nord-west", "Süd ost", "", "c", "d"])
    assert load_source(idx(tmp_path)).train.class_names == ("nord-west", "Süd ost", "c", "d")
    spec = idx(tmp_path, classes=("a", "b", "c", "d", "spare"))
    assert load_source(spec).test.class_names == ("a", "b", "c", "d", "spare")


def test_separate_validation_set(quadrants, tmp_path):
    validation = draw_quadrants(12, seed=5)
    spec = idx(write_idx_folder(tmp_path, *quadrants, validation=validation), validation=OwnValidation(own=True))
    splits = load_splits(spec)
    np.testing.assert_array_equal(splits.validation.images[:, 0], validation[0])
    assert (len(splits.train), len(splits.test)) == (40, 20)


def test_home_and_relative_folders(quadrants, tmp_path, monkeypatch):
    write_idx_folder(tmp_path / "here", *quadrants)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_source(idx("here")).train.digest == load_source(idx("~/here")).train.digest


def write_train(kind, array):
    return lambda folder: write_idx(folder / f"train-{kind}-ubyte", array)


def remove(pattern):
    return lambda folder: [path.unlink() for path in folder.glob(pattern)]


def name_classes(content):
    return lambda folder: (folder / "classes.txt").write_bytes(content)


COLOUR = np.zeros((40, 12, 12, 3), np.uint8)
MISFITS = {
    "a label too few": (write_train("labels-idx1", np.zeros(39, "u1")), r"\(train\) has 40 images but 39 labels"),
    "labels in columns": (
        write_train("labels-idx1", np.zeros((40, 1), "u1")),
        "must be integers from 0 of shape .* found uint8 of shape",
    ),
    "negative labels": (
        write_train("labels-idx1", np.full(40, -1, "i1")),
        "must be integers from 0 of shape .* found int8 of shape",
    ),
    "no training labels": (remove("train-labels*"), "has train images but no train labels"),
    "no training images": (remove("train-images*"), "has train labels but no train images"),
    "no test labels": (remove("t10k-labels*"), "has t10k images but no t10k labels"),
    "no test set": (remove("t10k-*"), "has no test images"),
    "no training set": (remove("train-*"), "has no train images"),
    "empty folder": (remove("*"), "has no train images"),
    "too few classes": (name_classes(b"a\nb\nc\n"), r"label 3, but there are 3 classes \(labels 0 to 2\)"),
    "two of a name": (name_classes(b"a\nb\na\nc\n"), "2 classes are named a$"),
    "names in Latin-1": (name_classes(b"a\nb\nc\nS\xfcd\n"), r"classes\.txt is not UTF-8"),
    "other size": (write_train("images-idx3", np.zeros((40, 12, 11), "u1")), "all images must have the same shape"),
    "colour and grey": (
        lambda folder: [step(folder) for step in (remove("train-images*"), write_train("images-idx4", COLOUR))],
        r"train images have shape \(3, 12, 12\); all images must have the same shape",
    ),
    "pixels that are no bytes": (write_train("images-idx3", np.zeros((40, 12, 12), "i2")), "images must be uint8"),
    "two channels": (write_train("images-idx3", np.zeros((40, 12, 12, 2), "u1")), "with 1 or 3 channels"),
    "no images": (write_train("images-idx3", np.zeros((0, 12, 12), "u1")), "has no images"),
}


def test_more_classes_than_a_byte_counts(tmp_path):
    labels = np.arange(300).astype(">i2")
    for prefix in ("train", "t10k"):
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte", np.zeros((300, 4, 4), np.uint8))
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte", labels)
    source = load_source(DataSpec(source=f"idx:{tmp_path}"))
    assert len(source.train.class_names) == 300
    assert source.train.labels.tolist() == list(range(300))


@pytest.mark.parametrize(("damage", "problem"), MISFITS.values(), ids=MISFITS)
def test_folder_that_does_not_fit_together_is_refused(damage, problem, quadrants, tmp_path):
    write_idx_folder(tmp_path, *quadrants)
    damage(tmp_path)
    with pytest.raises(DataError, match=problem):
        load_source(idx(tmp_path))


def test_label_beyond_the_recipes_classes_is_named(tmp_path):
    write_idx_folder(tmp_path, np.zeros((5, 4, 4), np.uint8), np.array([0, 1, 0, 2, 7], np.uint8))
    with pytest.raises(DataError, match=r"image 3 has label 2, but there are 2 classes \(labels 0 to 1\)") as caught:
        load_source(idx(tmp_path, classes=("a", "b")))
    assert "data.classes" in caught.value.hint


@pytest.mark.parametrize("name", ["nowhere", "file"])
def test_path_that_is_not_a_folder_is_refused(name, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=f"{name} is not a folder") as caught:
        load_source(idx(tmp_path / name))
    assert "idx:DIR" in caught.value.hint


# --- Fashion-MNIST ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(fashion_mnist):
    return load_source(FASHION, data_root=fashion_mnist)


@pytest.fixture
def no_system_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(fashion_mnist_source, "SYSTEM_FOLDER", tmp_path / "system")
    return tmp_path / "system"


@pytest.fixture
def published(monkeypatch):
    """Replace the published digests by digests of four small files; return a function that writes these files."""
    train, test = draw_quadrants(20, seed=6), draw_quadrants(8, seed=7)
    arrays = dict(zip(FASHION_MNIST_FILES, [*train, *test], strict=True))
    for name, array in arrays.items():
        monkeypatch.setitem(FASHION_MNIST_FILES, name, hashlib.sha256(idx_bytes(array)).hexdigest())

    def write(folder, *, gz=True):
        folder.mkdir(parents=True)
        for name, array in arrays.items():
            write_idx(folder / name, array, gz=gz)
        return folder

    return write


def test_real_images_are_all_there(real):
    assert (len(real.train), len(real.test)) == (60000, 10000)
    assert real.train.input_shape == real.test.input_shape == (1, 28, 28)
    assert real.train.counts().tolist() == [6000] * 10
    assert real.test.counts().tolist() == [1000] * 10
    assert real.train.class_names == BUILT_IN_SOURCES["fashion-mnist"].class_names
    assert real.validation is None


def test_real_images_are_the_images_of_the_reports(real):
    assert real.test.labels[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
    assert real.train.images.mean() / 255 == pytest.approx(0.2860, abs=1e-4)
    assert real.train.images.std() / 255 == pytest.approx(0.3530, abs=1e-4)


@pytest.mark.parametrize("gz", [False, True], ids=["plain", "gzip"])
def test_verified_files_are_loaded(gz, published, tmp_path):
    published(tmp_path / "root", gz=gz)
    assert len(load_source(FASHION, data_root=tmp_path / "root").train) == 20


def test_altered_copy_is_refused_by_name(published, tmp_path):
    folder = published(tmp_path / "root")
    labels = read_idx(folder / "t10k-labels-idx1-ubyte.gz")[0].copy()
    labels[3] = (labels[3] + 1) % 4
    write_idx(folder / "t10k-labels-idx1-ubyte", labels, gz=True)
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte\.gz is not the published file") as caught:
        load_source(FASHION, data_root=tmp_path / "root")
    assert "fmcli data fetch" in caught.value.hint


def test_truncated_copy_is_refused_by_name(published, tmp_path):
    path = published(tmp_path / "root") / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"cannot read .*train-images-idx3-ubyte\.gz") as caught:
        load_source(FASHION, data_root=tmp_path / "root")
    assert "get a new copy" in caught.value.hint


def test_images_of_another_dataset_are_refused(drawn_images, no_system_folder):
    with pytest.raises(DataError, match="train-images-idx3-ubyte is not the published file"):
        load_source(FASHION, data_root=drawn_images)


@pytest.mark.parametrize("below", ["fashion-mnist", "FashionMNIST/raw", "."])
def test_folders_below_the_data_root(below, published, no_system_folder, tmp_path):
    folder = published(tmp_path / "root" / below)
    assert find_fashion_mnist(tmp_path / "root").samefile(folder)


def test_folders_are_searched_in_order(published, no_system_folder, tmp_path, monkeypatch):
    root, env, cache = tmp_path / "root", tmp_path / "env", tmp_path / "cache"
    monkeypatch.setenv("FMCLI_DATA", str(env))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    assert find_fashion_mnist(root) is None

    system = published(no_system_folder / "fashion-mnist")
    assert find_fashion_mnist(root) == find_fashion_mnist(None) == system
    cached = published(cache / "fmcli" / "fashion-mnist")
    assert find_fashion_mnist(root) == find_fashion_mnist(None) == cached
    published(env)
    assert find_fashion_mnist(None) == env
    assert find_fashion_mnist(root) == cached  # --data-root replaces FMCLI_DATA
    published(root)
    assert find_fashion_mnist(root) == root


def test_folder_with_a_missing_file_is_skipped(published, no_system_folder, tmp_path):
    system = published(no_system_folder / "fashion-mnist")
    (published(tmp_path / "root") / "t10k-labels-idx1-ubyte.gz").unlink()
    assert find_fashion_mnist(tmp_path / "root") == system


def test_missing_images_name_every_folder_and_the_next_command(no_system_folder, tmp_path):
    with pytest.raises(DataError, match="Fashion-MNIST was not found") as caught:
        load_source(FASHION, data_root=tmp_path / "root")
    for folder in (tmp_path / "root", no_system_folder):
        assert str(folder) in caught.value.message
    assert caught.value.hint == "to download it: fmcli data fetch fashion-mnist"


def test_own_class_names_must_cover_the_labels(published, tmp_path):
    published(tmp_path / "root")
    renamed = load_source(DataSpec(source="fashion-mnist", classes=tuple("abcd")), data_root=tmp_path / "root")
    assert renamed.train.class_names == ("a", "b", "c", "d")
    with pytest.raises(DataError, match="there are 3 classes"):
        load_source(DataSpec(source="fashion-mnist", classes=tuple("abc")), data_root=tmp_path / "root")


# --- splits -------------------------------------------------------------------------------------------------


def numbered(n, first=0):
    """Return n images that contain their number; of every 10 labels, 6, 3 and 1 have the same class."""
    numbers = np.arange(first, first + n)
    images = numbers.astype("<u4").view(np.uint8).reshape(n, 1, 2, 2)
    labels = np.array([0, 0, 1, 0, 0, 1, 0, 0, 1, 2])[numbers % 10].astype(np.int64)
    return ImageSet(images, labels, ("a", "b", "c"))


def numbers_of(images):
    return np.ascontiguousarray(images.images).reshape(len(images), 4).view("<u4")[:, 0].tolist()


SOURCE = Splits(numbered(1000), None, numbered(200, first=1000))


def split(source=SOURCE, **fields):
    return split_images(source, DataSpec(source="idx:drawn", **fields))


def test_without_validation_nothing_is_set_aside():
    splits = split()
    assert splits.validation is None
    assert numbers_of(splits.train) == list(range(1000))
    assert list(splits.present()) == ["train", "test"]


def test_first_images_are_set_aside():
    splits = split(validation=FirstImages(first=150))
    assert numbers_of(splits.validation) == list(range(150))
    assert numbers_of(splits.train) == list(range(150, 1000))
    assert numbers_of(splits.test) == list(range(1000, 1200))


@pytest.mark.parametrize("first", [1000, 1001, 10**9])
def test_training_images_must_remain(first):
    with pytest.raises(DataError, match=f"first = {first} leaves no training images; the source has 1000") as caught:
        split(validation=FirstImages(first=first))
    assert "stratify = true" in str(caught.value.remedies[0].value)


@pytest.mark.parametrize("stratify", [False, True])
def test_fraction_is_drawn_from_its_seed(stratify):
    def drawn(seed):
        splits = split(validation=RandomFraction(fraction=0.2, seed=seed, stratify=stratify))
        return numbers_of(splits.train), numbers_of(splits.validation), numbers_of(splits.test)

    train, validation, test = drawn(1)
    assert (len(train), len(validation)) == (800, 200)
    assert sorted(train + validation) == list(range(1000))
    assert test == list(range(1000, 1200))
    assert drawn(1) == (train, validation, test)
    assert set(drawn(2)[1]) != set(validation)


def test_labels_stay_with_their_images():
    for images in split(validation=RandomFraction(fraction=0.3, seed=5)).present().values():
        np.testing.assert_array_equal(images.labels, numbered(1200).labels[numbers_of(images)])
    for images in split(resplit=Resplit(train=0.5, validation=0.2)).present().values():
        np.testing.assert_array_equal(images.labels, numbered(1200).labels[numbers_of(images)])


def test_stratified_fraction_is_the_same_for_every_class():
    splits = split(validation=RandomFraction(fraction=0.2, seed=9, stratify=True))
    assert splits.validation.counts().tolist() == [120, 60, 20]
    assert splits.train.counts().tolist() == [480, 240, 80]
    plain = split(validation=RandomFraction(fraction=0.2, seed=9))
    assert plain.validation.counts().tolist() != [120, 60, 20]


@pytest.mark.parametrize(
    ("source", "validation"),
    [
        (Splits(numbered(1), None, numbered(1)), RandomFraction(fraction=0.5)),
        (Splits(numbered(10), None, numbered(10)), RandomFraction(fraction=0.5, stratify=True)),
    ],
)
def test_too_few_images_for_a_fraction(source, validation):
    with pytest.raises(DataError, match=r"cannot set aside 0\.5 of \d+ training images") as caught:
        split(source, validation=validation)
    assert ("stratify" in caught.value.hint) == validation.stratify


def test_a_class_is_not_set_aside_as_a_whole():
    labels = np.array([0] * 19 + [1])
    images = ImageSet(np.zeros((20, 1, 2, 2), np.uint8), labels, ("many", "one", "none"))
    source = Splits(images, None, images)
    refused, kept = [], []
    for seed in range(20):
        try:
            kept.append(split(source, validation=RandomFraction(fraction=0.25, seed=seed)).train.counts().tolist())
        except DataError as error:
            refused.append((error.message, hint_of(error)))
    assert set(map(tuple, kept)) == {(14, 1, 0)}
    [(message, hint)] = set(refused)
    assert "leaves no training images of the class one" in message
    assert "stratify = true" in hint


@pytest.mark.parametrize(
    "fields", [{"validation": FirstImages(first=12)}, {"resplit": Resplit(train=0.03, validation=0.9, seed=1)}]
)
def test_a_split_without_training_images_of_a_class_is_refused(fields):
    images = ImageSet(np.zeros((30, 1, 2, 2), np.uint8), np.repeat([0, 1, 2], 10), ("a", "b", "c"))
    with pytest.raises(DataError, match="leaves no training images of the class a"):
        split(Splits(images, None, images), **fields)


def test_first_of_each_class_keep_their_order():
    few = numbered(30).first_of_each_class(4)
    assert numbers_of(few) == [0, 1, 2, 3, 4, 5, 8, 9, 12, 19, 29]
    assert few.labels.tolist() == numbered(30).labels[numbers_of(few)].tolist()


def test_bootstrap_sample_is_drawn_with_replacement():
    pixels = np.arange(250, dtype=np.uint8).reshape(250, 1, 1, 1)
    images = ImageSet(pixels, np.arange(250) % 7, tuple("abcdefg"))
    sample = draw_sample(images, 250, torch.Generator().manual_seed(0))
    assert len(sample) == 250
    assert sample.class_names == images.class_names
    assert np.array_equal(sample.labels, sample.images.ravel() % 7)
    # The expected number is 1 - 1/e of all images, 158, with a standard deviation of 5.
    assert 138 < len(np.unique(sample.images)) < 178
    again, other = (draw_sample(images, 250, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert sample.digest == again.digest != other.digest
    assert len(draw_sample(images, 3, torch.Generator())) == 3


def test_resplit_shuffles_all_images():
    splits = split(resplit=Resplit(train=0.6, validation=0.15, seed=3))
    parts = [numbers_of(images) for images in splits.present().values()]
    assert [len(part) for part in parts] == [720, 180, 300]
    assert sorted(number for part in parts for number in part) == list(range(1200))
    assert any(number >= 1000 for number in parts[0])
    assert any(number < 1000 for number in parts[2])
    again = split(resplit=Resplit(train=0.6, validation=0.15, seed=3))
    assert [numbers_of(images) for images in again.present().values()] == parts
    other = split(resplit=Resplit(train=0.6, validation=0.15, seed=4))
    assert numbers_of(other.test) != parts[2]


def test_resplit_without_validation():
    splits = split(resplit=Resplit(train=0.75, validation=0.0))
    assert splits.validation is None
    assert (len(splits.train), len(splits.test)) == (900, 300)


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        ({"train": 0.001, "validation": 0.5}, "training"),
        ({"train": 0.5, "validation": 0.4999}, "test"),
        ({"train": 0.5, "validation": 0.01}, "validation"),
    ],
)
def test_resplit_that_leaves_a_split_empty_is_refused(parts, name):
    with pytest.raises(DataError, match=rf"data\.resplit leaves no {name} images: the source has 20"):
        split(Splits(numbered(10), None, numbered(10)), resplit=Resplit(**parts))


def test_source_without_validation_images_is_refused():
    with pytest.raises(DataError, match="idx:drawn has no separate validation images") as caught:
        split(validation=OwnValidation(own=True))
    assert "first = 5000" in caught.value.hint


def test_splits_by_name():
    splits = split(validation=FirstImages(first=1))
    assert [len(splits.named(name)) for name in SPLITS] == [999, 1, 200]
    with pytest.raises(DataError, match="there are no validation images"):
        Splits(numbered(3), None, numbered(3)).named("validation")


def test_digest_depends_on_pixels_labels_and_order():
    images = numbered(10)
    labels = images.labels.copy()
    labels[0] += 1
    others = [
        images.subset(slice(9)),
        images.subset(np.arange(10)[::-1]),
        ImageSet(images.images, labels, images.class_names),
        ImageSet(255 - images.images, images.labels, images.class_names),
    ]
    assert len({other.digest for other in [images, *others]}) == 5
    assert images.subset(np.arange(10)).digest == images.digest


# --- normalization ------------------------------------------------------------------------------------------


def coloured(*channels):
    images = np.array(channels, dtype=np.uint8).reshape(1, len(channels), 2, 2).repeat(3, axis=0)
    return ImageSet(images, np.zeros(3, np.int64), ("a",))


PIXELS = torch.tensor([0, 51, 102, 255], dtype=torch.uint8).view(1, 1, 2, 2)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("unit", [0, 0.2, 0.4, 1]),
        ("symmetric", [-1, -0.6, -0.2, 1]),
        # For 0, 51, 102, 255: mean 102, variance (102² + 51² + 0 + 153²) / 4 = 9103.5.
        ("standard", [-102 / 9103.5**0.5, -51 / 9103.5**0.5, 0, 153 / 9103.5**0.5]),
        (PixelScale(), [0, 0.2, 0.4, 1]),
        (PixelScale(mean=0.2, std=0.5), [-0.4, 0, 0.4, 1.6]),
        (PixelScale(divide_by=1, mean=51, std=2), [-25.5, 0, 25.5, 102]),
        (PixelScale(divide_by=51), [0, 1, 2, 5]),
    ],
)
def test_normalization_by_hand(spec, expected):
    normalize = resolve_normalization(spec, coloured([0, 51, 102, 255]))
    result = normalize(PIXELS)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.flatten(), torch.tensor(expected, dtype=torch.float32), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(normalize(PIXELS.float()), result)


def test_standard_normalizes_each_channel_separately():
    train = coloured([0, 0, 10, 10], [100, 100, 200, 200], [7, 7, 7, 7])
    result = resolve_normalization("standard", train)(torch.from_numpy(train.images))
    expected = torch.tensor([[-1.0, -1, 1, 1], [-1, -1, 1, 1], [0, 0, 0, 0]]).view(3, 2, 2)
    torch.testing.assert_close(result[0], expected)


def test_standard_of_one_colour_stays_finite():
    train = coloured([9, 9, 9, 9])
    assert resolve_normalization("standard", train)(PIXELS).isfinite().all()


def test_standard_uses_only_the_training_images(quadrants, tmp_path):
    spec = idx(write_idx_folder(tmp_path, *quadrants), validation=FirstImages(first=10))
    splits = load_splits(spec)
    normalize = resolve_normalization(spec.normalize, splits.train)
    values = normalize(torch.from_numpy(np.array(splits.train.images)))
    assert values.mean().item() == pytest.approx(0, abs=1e-5)
    assert values.std(correction=0).item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("n_images", "shape", "batch"),
    [(600, (1, 28, 28), 500), (600, (3, 64, 64), 500), (200, (3, 128, 128), 125), (2, (1, 2048, 2048), 1)],
)
def test_evaluation_batches_of_large_images_are_smaller(n_images, shape, batch):
    images = ImageSet(np.zeros((n_images, *shape), np.uint8), np.zeros(n_images, np.int64), ("a",))
    assert evaluation_loader(images, torch.device("cpu")).batch_size == batch
