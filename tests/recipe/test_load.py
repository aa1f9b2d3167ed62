"""Finding and reading recipe files."""

import os
import subprocess
import sys

import pytest

from fmcli.choices import BUILT_IN_SOURCES
from fmcli.errors import ExitStatus, RecipeError
from fmcli.recipe import dump_recipe, find_recipe, load_recipe, recipe_description, shipped_recipes
from tests.recipe.helpers import MINIMAL


def test_recipes_are_shipped():
    assert "quick" in shipped_recipes()


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipe_loads_by_name_and_round_trips(name, write):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description
    assert recipe == load_recipe(write(dump_recipe(recipe), "another-name.toml"))


def test_recipe_is_found_by_path_and_by_folder(write, tmp_path):
    path = write(MINIMAL, "recipe.toml")
    assert load_recipe(path) == load_recipe(f"{tmp_path}/")
    assert load_recipe(path).name == "recipe"


def test_file_without_toml_ending_is_found(write, tmp_path, monkeypatch):
    write(MINIMAL, "plain")
    monkeypatch.chdir(tmp_path)
    assert find_recipe("plain").name == "plain"


@pytest.mark.parametrize("name", ["nowhere.toml", "no/where", "./quick", "quick\0.toml"])
def test_missing_file_is_named(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="no recipe at") as caught:
        load_recipe(name)
    assert caught.value.exit_status == ExitStatus.USAGE
    assert caught.value.hint


def test_mistyped_name_suggests_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="'quikc'; did you mean 'quick'"):
        load_recipe("quikc")


def test_folder_without_recipe_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="no recipe at"):
        load_recipe(f"{tmp_path}/")


@pytest.mark.parametrize("text", ["[data", "a = ", "data = 1\ndata = 2", "x = " + "[" * 5000])
def test_invalid_toml_is_a_recipe_error(text, write):
    with pytest.raises(RecipeError, match=r"mine\.toml is not valid TOML"):
        load_recipe(write(text))


def test_error_names_the_byte_that_is_not_utf8(write):
    with pytest.raises(RecipeError, match=r"mine\.toml is not UTF-8 text: byte 2"):
        load_recipe(write(b"# \xff\n"))


def test_file_larger_than_a_mebibyte_is_refused(write):
    largest = MINIMAL + "#\n" * (((1 << 20) - len(MINIMAL)) // 2)
    largest += "#" * ((1 << 20) - len(largest))
    assert load_recipe(write(largest))
    with pytest.raises(RecipeError, match="larger than 1048576 bytes"):
        load_recipe(write(largest + "#"))


@pytest.mark.parametrize(
    ("text", "description"),
    [
        ("# Says it.\n# More.\n", "Says it."),
        ("\n\n#Says it.  \r\n", "Says it."),
        ("#:schema ./recipe.schema.json\n# Says it.\n", "Says it."),
        ("a = 1\n# Too late.\n", ""),
        ("", ""),
    ],
)
def test_description_is_the_first_comment_line(text, description):
    assert recipe_description(text) == description


def test_recipes_load_without_heavy_libraries():
    heavy = ("torch", "torchvision", "albumentations", "sklearn", "matplotlib", "numpy", "PIL")
    code = f"import sys, fmcli.recipe as r; r.load_recipe('quick'); print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONSAFEPATH": ""},
    )
    assert done.stdout.strip() == "[]"


def test_known_sources_have_classes_and_a_shape():
    known = BUILT_IN_SOURCES["fashion-mnist"]
    assert known.input_shape == (1, 28, 28)
    assert len(set(known.class_names)) == 10
