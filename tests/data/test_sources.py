"""Every source is one module and one entry in `SOURCES`. All texts are derived from the entry."""

import ast
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import fmcli
from fmcli.choices import BUILT_IN_SOURCES, DEFAULT_SOURCE, SOURCE_FORMS, SOURCES, SourceKind
from fmcli.data import guess_source, load_source
from fmcli.data import sources as package
from fmcli.data.sources.base import SourceImages, SourceRequest
from fmcli.errors import DataError, RecipeError
from fmcli.recipe import DataSpec, recipe_keys, resolve_data
from fmcli.recipe.data import OwnValidation
from tests.helpers import draw_quadrants, write_idx_folder

PACKAGE = Path(fmcli.__file__).parent
NOT_SOURCES = {"__init__", "base", "checks"}
MAY_NAME_SOURCES = {PACKAGE / "choices.py", *(PACKAGE / "data" / "sources").iterdir()}


def test_every_source_is_a_module():
    modules = {path.stem for path in Path(package.__path__[0]).glob("*.py")} - NOT_SOURCES
    assert modules == {prefix.replace("-", "_") for prefix in SOURCES}


@pytest.mark.parametrize("prefix", SOURCES)
def test_modules_have_the_functions_that_their_entry_needs(prefix):
    module = import_module(f"fmcli.data.sources.{prefix.replace('-', '_')}")
    assert callable(module.load)
    assert hasattr(module, "recognizes") == SOURCES[prefix].takes_path
    assert hasattr(module, "fetch") == bool(SOURCES[prefix].built_in)


def test_default_source_is_built_in():
    assert DEFAULT_SOURCE in BUILT_IN_SOURCES


def test_no_other_code_contains_a_prefix():
    """Strings in code, not docstrings, which may give an example."""

    def names_a_source(text: str) -> bool:
        return text in BUILT_IN_SOURCES or text.startswith(tuple(f"{prefix}:" for prefix in SOURCES))

    def strings_in_code(path: Path) -> list[str]:
        nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        return [str(node.value) for node in nodes if isinstance(node, ast.Constant) and id(node) not in docstrings]

    others = {*PACKAGE.rglob("*.py")} - MAY_NAME_SOURCES
    assert not [(path, text) for path in others for text in strings_in_code(path) if names_a_source(text)]


# --- texts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", SOURCES)
def test_texts_name_every_source(prefix, cli):
    form, kind = SOURCE_FORMS[prefix], SOURCES[prefix]
    assert form in " ".join(cli("data", "info", "--help").out.split())
    assert form in cli("data", "info", "no-such-source").err
    tables = {table.choice or table.path: table for table in recipe_keys() if table.path.startswith("data")}
    meanings = {key.name: key.meaning for key in tables["data"].keys}
    assert f"`{form}`, {kind.description}" in meanings["source"]
    for key in kind.keys:
        assert form in meanings[key]
    assert (f"of `{form}`, {kind.own_validation}" in tables["own = true"].about) == bool(kind.own_validation)
    for built_in in BUILT_IN_SOURCES:
        assert built_in in cli("data", "fetch", "--help").out


def test_keys_of_other_sources_are_refused():
    with pytest.raises(RecipeError) as caught:
        resolve_data(DataSpec(source="idx:here"), ["data.size=[32,32]"])
    assert caught.value.problems == ("data: size is only valid for folder:DIR, not 'idx:here'",)


def test_own_validation_of_a_source_without_any_is_refused():
    with pytest.raises(ValueError, match=r"fashion-mnist has no separate validation images; use .*first = 5000"):
        DataSpec(source="fashion-mnist", validation=OwnValidation(own=True))


@pytest.mark.parametrize("source", ["", "folder", "folder:", "fashion-mnist:", "fashion-mnist:here", "pets"])
def test_incomplete_and_unknown_sources_are_refused(source):
    with pytest.raises(ValueError, match=r"did you mean '(folder:DIR|fashion-mnist)'|choose from|at least 1"):
        DataSpec(source=source)


def test_paths_without_a_prefix_are_recognized(tmp_path):
    (tmp_path / "pets" / "cat").mkdir(parents=True)
    (tmp_path / "pets" / "cat" / "1.png").touch()
    write_idx_folder(tmp_path / "digits", *draw_quadrants(20, seed=1))
    np.savez(tmp_path / "a.npz", np.zeros(3))
    assert guess_source(tmp_path / "pets") == f"folder:{tmp_path / 'pets'}"
    assert guess_source(tmp_path / "digits") == f"idx:{tmp_path / 'digits'}"
    assert guess_source(tmp_path / "a.npz") == f"npz:{tmp_path / 'a.npz'}"
    assert guess_source(tmp_path / "nothing") is None


# --- a new source -----------------------------------------------------------------------------------------


@pytest.fixture
def blank(monkeypatch):
    """Add a source of N black images, whose argument is not a path."""

    def load(request: SourceRequest) -> SourceImages:
        n_images = int(request.argument)
        images = np.zeros((n_images, 1, 4, 4), np.uint8)
        labels = np.arange(n_images) % 2 - module.lowest_label
        return SourceImages(Path("nowhere"), {"test": (images, labels), "train": (images, labels)})

    module = ModuleType("blank")
    module.load, module.lowest_label = load, 0
    monkeypatch.setitem(sys.modules, "fmcli.data.sources.all_black", module)
    monkeypatch.setitem(SOURCES, "all-black", SourceKind("black images", argument="N"))
    monkeypatch.setitem(SOURCE_FORMS, "all-black", "all-black:N")
    return module


def test_new_source_needs_an_entry_and_a_module(blank):
    splits = load_source(DataSpec(source="all-black:6"))
    assert (len(splits.train), splits.train.class_names) == (6, ("0", "1"))
    with pytest.raises(ValueError, match="did you mean 'all-black:N'"):
        DataSpec(source="all-blak:6")
    with pytest.raises(ValueError, match="channels is only valid for folder:DIR, not 'all-black:6'"):
        DataSpec(source="all-black:6", channels=3)


def test_missing_package_of_a_source_is_named(blank):
    def load(request: SourceRequest) -> SourceImages:
        raise ModuleNotFoundError("No module named 'pyarrow'", name="pyarrow")

    blank.load = load
    with pytest.raises(DataError, match="all-black:6 needs the package pyarrow") as caught:
        load_source(DataSpec(source="all-black:6"))
    assert caught.value.hint == "pip install pyarrow"


@pytest.mark.parametrize("missing", ["train", "test"])
def test_sources_need_training_and_test_images(missing, blank):
    def load(request: SourceRequest) -> SourceImages:
        arrays = np.zeros((2, 1, 4, 4), np.uint8), np.arange(2)
        splits = {split: arrays for split in ("train", "test", "validation") if split != missing}
        return SourceImages(Path("nowhere"), splits, names_hint="name them")

    blank.load = load
    with pytest.raises(DataError, match=f"nowhere has no {missing} images with labels") as caught:
        load_source(DataSpec(source="all-black:2"))
    assert caught.value.hint == "name them"


def test_images_of_a_new_source_are_checked(blank):
    blank.lowest_label = 1
    with pytest.raises(DataError, match=r"labels of nowhere \(test\) must be integers from 0"):
        load_source(DataSpec(source="all-black:6"))
    with pytest.raises(DataError, match=r"nowhere \(test\) has no images"):
        load_source(DataSpec(source="all-black:0"))
    blank.lowest_label = 0
    with pytest.raises(DataError, match="image 1 has label 1, but there are 1 classes"):
        load_source(DataSpec(source="all-black:6", classes=("only",)))
