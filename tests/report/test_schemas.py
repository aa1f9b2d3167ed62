"""The JSON output of each command has the keys that docs/schemas describes, and no other."""

import contextlib
import io
import json
from pathlib import Path

import jsonschema
import pytest

from fmcli.cli import run
from tests.helpers import draw_quadrants, write_idx_folder

SCHEMAS = Path(__file__).parent.parent.parent / "docs" / "schemas"
RECIPE = """
data = { source = "idx:drawn", validation = { fraction = 0.25 } }
model = { family = "kernel-cnn", form = "pooled", widths = [4], kernel_size = 3 }
trainer = { epochs = 1, batch_size = 32 }
members = [{ name = "a", copies = 3 }, { name = "b", copies = 3, model.kernel_size = 5 }]
reference = { source = "a report", test_accuracy = 0.5, test_recall = { "0" = 0.5 } }
search = { trials = 2, space = { "optimizer.lr" = { low = 1e-4, high = 1e-2 } } }
"""
COMMANDS = {
    "train-plan": "train --recipe small.toml --output run --plan",
    "train": "train --recipe small.toml --output run",
    "evaluate": "evaluate run",
    "ensemble-evaluate": "ensemble evaluate run",
    "ensemble-compare": "ensemble compare run a=run/a-1 b=run/b-1",
    "ensemble-compare-draws": "ensemble compare run --draws 10 --size 2",
    "ensemble-select": "ensemble select run --output run/chosen.toml",
    "ensemble-fit": "ensemble fit run --vote weighted-soft --output run/fitted.toml",
    "data-info": "data info small.toml",
    "recipe-list": "recipe list",
    "recipe-keys": "recipe keys trainer",
    "recipe-summary": "recipe show small.toml --summary",
    "reproduce": "reproduce small.toml --seeds 2 --output runs",
    "search": "search --recipe small.toml --output found",
    "predict": "predict run drawn/t10k-images-idx3-ubyte broken.png --top 2 --reject-below 0.5",
}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """The JSON output of each command on drawn images."""
    folder = tmp_path_factory.mktemp("schemas")
    images, labels = draw_quadrants(200)
    write_idx_folder(folder / "drawn", images, labels)
    (folder / "small.toml").write_text(RECIPE, "utf-8")
    (folder / "broken.png").write_text("no image", "utf-8")
    found = {}
    with contextlib.chdir(folder):
        for name, words in COMMANDS.items():
            with contextlib.redirect_stdout(io.StringIO()) as stdout:
                run([*words.split(), "--format", "json"])
            found[name] = json.loads(stdout.getvalue())
    return found


def read_schema(name):
    return json.loads((SCHEMAS / f"{name}.schema.json").read_text("utf-8"))


@pytest.mark.parametrize("name", COMMANDS)
def test_output_matches_its_schema(name, outputs):
    schema = read_schema(name)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(outputs[name], schema)
    assert sorted(documented_keys(schema) - used_keys(outputs[name])) == []


def test_each_schema_is_tested():
    assert {path.name.removesuffix(".schema.json") for path in SCHEMAS.iterdir()} == set(COMMANDS)


def documented_keys(schema):
    keys = set(schema.get("properties", {}))
    parts = [*schema.get("properties", {}).values(), schema.get("items"), schema.get("additionalProperties")]
    return keys.union(*(documented_keys(part) for part in parts if isinstance(part, dict)))


def used_keys(output):
    if isinstance(output, list):
        return set().union(*map(used_keys, output))
    return set(output).union(*map(used_keys, output.values())) if isinstance(output, dict) else set()
