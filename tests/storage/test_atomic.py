"""Folder names that are safe on any file system, and folders that appear complete or not at all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmcli.errors import FmcliError
from fmcli.storage.atomic import folder_names, new_folder, write_atomic

NAMES = ["tiny/k3", "/etc/passwd", "../../k3", "a b", "ключ"]
HOSTILE = ["..", ".", "", "/", "a/k", "a-k", "A-K", "a-k-2", "0-a-k", "ensemble.toml", "Recipe.TOML", "é", "e\u0301"]


def test_folder_names_resemble_member_names():
    assert folder_names(NAMES) == ["tiny-k3", "etc-passwd", "k3", "a-b", "ключ"]
    assert folder_names(["k3", "k5-1", "m_1.0"]) == ["k3", "k5-1", "m_1.0"]


@given(st.lists(st.text(max_size=300) | st.sampled_from(HOSTILE), max_size=20))
def test_folder_names_are_safe_and_unique(names):
    folders = folder_names(names)
    assert len(folders) == len(names)
    assert len({folder.casefold() for folder in folders}) == len(names)
    for folder in folders:
        assert 0 < len(folder.encode()) <= 110
        assert not folder.startswith(".")
        assert not set(folder) & set("/\\\0:")
        assert folder.casefold() not in ("ensemble.toml", "recipe.toml")


@pytest.mark.parametrize("exists", [False, True])
def test_a_new_folder_appears_complete(tmp_path, exists):
    folder = tmp_path / "a" / "b"
    if exists:
        folder.mkdir(parents=True)
    with new_folder(folder) as part:
        (part / "inner").mkdir()
        (part / "inner" / "file").write_text("content")
        assert not (folder / "inner").exists()
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == [
        "a", "a/b", "a/b/inner", "a/b/inner/file"
    ]  # fmt: skip
    assert folder.stat().st_mode & 0o777 == (tmp_path / "a").stat().st_mode & 0o777


def write_in_part(folder):
    with new_folder(folder) as part:
        (part / "file").write_text("content")
        raise OSError("no room")


@given(st.text("分類é𝄞a", min_size=1, max_size=80))
def test_files_with_long_names_can_be_written(tmp_path_factory, name):
    """File systems limit names to 255 bytes, and the name of the temporary file is longer than the name."""
    path = tmp_path_factory.mktemp("long") / name[: 240 // len("𝄞".encode())]
    write_atomic(path, b"content")
    assert path.read_bytes() == b"content"


@pytest.mark.parametrize("exists", [False, True])
def test_a_new_folder_disappears_after_an_error(tmp_path, exists):
    if exists:
        (tmp_path / "b").mkdir()
    with pytest.raises(FmcliError, match="no room"):
        write_in_part(tmp_path / "b")
    assert [path.name for path in tmp_path.rglob("*")] == (["b"] if exists else [])
