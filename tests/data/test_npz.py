"""NumPy archives as a source: `npz:FILE`."""

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fmcli.data import load_source
from fmcli.data.sources import npz
from fmcli.errors import DataError
from fmcli.recipe.data import DataSpec

IMAGES = np.random.default_rng(0).integers(0, 255, (12, 5, 6)).astype(np.uint8)
LABELS = np.arange(12) % 3
MEDMNIST = {
    "train_images": IMAGES,
    "train_labels": LABELS[:, None],
    "val_images": IMAGES[:4],
    "val_labels": LABELS[:4, None].astype(np.uint8),
    "test_images": IMAGES[6:],
    "test_labels": LABELS[6:, None],
}


def load(path: Path, **fields: object):
    return load_source(DataSpec(source=f"npz:{path}", **fields))


def saved(path: Path, arrays: dict[str, np.ndarray], *, packed: bool = True) -> Path:
    (np.savez_compressed if packed else np.savez)(path, **arrays)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        load(path)
    return caught.value.message


def hint(path: Path) -> str:
    with pytest.raises(DataError, match="has no train images with labels") as caught:
        load(path)
    return str(caught.value.hint)


def npy(shape: tuple[int, ...], content: bytes, descr: object = "|u1", *, columns_first: bool = False) -> bytes:
    file = io.BytesIO()
    header = {"descr": descr, "fortran_order": columns_first, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + content


def archive(path: Path, changes: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    """Write the arrays of MedMNIST, some of them replaced by other bytes."""
    with zipfile.ZipFile(path, "w", method) as file:
        for name, array in MEDMNIST.items():
            own = io.BytesIO()
            np.save(own, array)
            file.writestr(f"{name}.npy", changes.get(name, own.getvalue()))
    return path


@pytest.mark.parametrize("packed", [False, True])
def test_medmnist_is_read_with_its_validation_set(tmp_path, packed):
    source = load(saved(tmp_path / "a.npz", MEDMNIST, packed=packed), validation={"own": True})
    assert source.train.class_names == ("0", "1", "2")
    assert np.array_equal(source.train.images, IMAGES[:, None])
    assert source.train.labels.tolist() == LABELS.tolist()
    assert np.array_equal(source.test.images[:, 0], IMAGES[6:])
    assert source.validation is not None
    assert source.validation.labels.tolist() == LABELS[:4].tolist()


def test_keras_archives_are_read_in_colour(tmp_path):
    colour = np.repeat(IMAGES[..., None], 3, axis=3)
    path = saved(tmp_path / "a.npz", {"x_train": colour, "y_train": LABELS, "x_test": colour[:2], "y_test": LABELS[:2]})
    source = load(path, classes=("a", "b", "c"))
    assert source.train.input_shape == (3, 5, 6)
    assert source.train.class_names == ("a", "b", "c")
    assert source.validation is None


def test_many_images_are_mapped(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.npz", MEDMNIST)
    in_memory = load(path)
    monkeypatch.setattr(npz, "MAX_IN_MEMORY_BYTES", 10)
    mapped = load(path)
    assert mapped.train.is_mapped
    assert not in_memory.train.is_mapped
    assert mapped.train.digest == in_memory.train.digest


def test_a_relative_file_is_looked_for_below_the_data_root(tmp_path):
    saved(tmp_path / "a.npz", MEDMNIST)
    assert len(load_source(DataSpec(source="npz:a.npz"), data_root=tmp_path).train) == 12


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"test_images": None}, "no test images"),
        ({"train_images": IMAGES.astype(float)}, "images must be uint8"),
        ({"train_images": IMAGES[:, :, :, None, None]}, "expected (N, H, W), (N, H, W, C)"),
        ({"train_images": np.zeros((0, 5, 6), np.uint8)}, "a.npz"),
        ({"train_labels": LABELS[:3]}, "12 images but 3 labels"),
        ({"train_labels": np.zeros((12, 14), int)}, "must be integers from 0"),
        ({"train_labels": LABELS - 1}, "must be integers from 0"),
        ({"train_labels": LABELS.astype(float)}, "must be integers from 0"),
        ({"train_labels": np.array(["a"] * 12, object)}, "Python objects"),
        ({"train_labels": LABELS + 1_000_000}, "10000 classes"),
        ({"test_images": IMAGES[:6, :3]}, "must have the same shape"),
        ({"train_images": np.asfortranarray(IMAGES)}, "in Fortran order"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, change, said):
    arrays = {name: array for name, array in {**MEDMNIST, **change}.items() if array is not None}
    assert said in refusal(saved(tmp_path / "a.npz", arrays))


def test_arrays_with_other_names_are_refused(tmp_path):
    arrays = {"pixels": IMAGES, "classes": LABELS}
    assert hint(saved(tmp_path / "a.npz", arrays)).endswith("; arrays found: pixels, classes")
    assert hint(saved(tmp_path / "b.npz", {})).endswith("; arrays found: none")
    many = {f"a{number}": LABELS for number in range(10)}
    assert hint(saved(tmp_path / "c.npz", many)).endswith("a6, a7 and 2 more")


@pytest.mark.parametrize("content", [b"", b"PK", b"no archive at all" * 100])
def test_files_that_are_not_archives_are_refused(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    assert "cannot read" in refusal(tmp_path / "a.npz")


def test_missing_files_and_folders_are_refused(tmp_path):
    assert "cannot read" in refusal(tmp_path / "nothing.npz")
    assert "cannot read" in refusal(tmp_path)


@pytest.mark.parametrize("kept", [30, 200, -60, -1])
def test_a_file_that_was_cut_short_is_refused(tmp_path, kept):
    path = saved(tmp_path / "a.npz", MEDMNIST)
    path.write_bytes(path.read_bytes()[:kept])
    assert "cannot read" in refusal(path)


def test_a_flipped_bit_is_noticed(tmp_path):
    path = saved(tmp_path / "a.npz", MEDMNIST, packed=False)
    content = bytearray(path.read_bytes())
    content[content.index(IMAGES.tobytes()) + 7] ^= 1
    path.write_bytes(content)
    assert "CRC" in refusal(path)


@pytest.mark.parametrize(
    "lie",
    [
        npy((1 << 40,), b"1234"),
        npy((12, 5, 7), IMAGES.tobytes()),
        npy((-12, -5, 6), IMAGES.tobytes()),
        npy((12, 5, 6), IMAGES.tobytes(), columns_first=True),
        npy((12, 5, 6), IMAGES.tobytes(), [("a", "|u1")]),
        npy((12, 5, 6), IMAGES.tobytes(), "|V1"),
        npy((12, 5, 6), b"", "|V0"),
        npy((12,), b"\0" * 96, "|O"),
        b"\x93NUMPY\2\0" + struct.pack("<I", 1 << 31) + b"{",
        b"\x93NUMPY\3\0" + struct.pack("<I", 2) + b"{}",
        b"\x93NUMPY\1\0" + struct.pack("<H", 9000) + b"(" * 9000,
        b"no array",
    ],
)
def test_false_headers_are_refused(tmp_path, lie):
    assert "a.npz" in refusal(archive(tmp_path / "a.npz", {"train_images": lie}))


def test_bombs_are_refused_before_they_are_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "ANY_RATIO_BYTES", 1 << 20)
    bomb = npy((4096, 32, 32), bytes(4 << 20))
    assert "200 times" in refusal(archive(tmp_path / "a.npz", {"train_images": bomb}))


def test_compressions_that_numpy_does_not_write_are_refused(tmp_path):
    assert "compression method that NumPy does not write" in refusal(archive(tmp_path / "a.npz", {}, zipfile.ZIP_LZMA))


@pytest.mark.parametrize("lie", ["none", "end", "zip64"])
def test_an_archive_of_very_many_files_is_refused(tmp_path, lie):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        for number in range(20_000):
            file.writestr(f"{number}.npy", b"")
    content = (tmp_path / "a.npz").read_bytes()
    end = content[-22:]
    if lie == "end":  # the list's offset looks like another end
        end = end[:16] + b"PK\5\6" + end[20:]
    elif lie == "zip64":  # the zip64 record overrides the smaller one
        size, offset = struct.unpack("<II", end[12:20])
        record = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 20_000, 20_000, size, offset)
        locator = struct.pack("<4sIQI", b"PK\6\7", 0, len(content) - 22, 1)
        end = record + locator + end[:12] + struct.pack("<I", 10) + end[16:]
    (tmp_path / "a.npz").write_bytes(content[:-22] + end)
    assert "list of files" in refusal(tmp_path / "a.npz")
