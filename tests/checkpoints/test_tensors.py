"""Safetensors files: equal content gives byte-identical files, in any process."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from fmcli.checkpoints import checkpoint
from fmcli.checkpoints.tensors import load_tensors, save_tensors
from fmcli.ensemble.predictions import Predictions, save_predictions
from fmcli.errors import CheckpointError
from fmcli.storage.atomic import order_metadata
from fmcli.training import state

TEXT = {f"key {number}": f"väl\n{number}" for number in range(12)}
TENSORS = {
    "weight": torch.arange(12.0).reshape(3, 4),
    "steps": torch.tensor(3),
    "half": torch.ones(5, dtype=torch.bfloat16),
    "bytes": torch.arange(7, dtype=torch.uint8),
    "nothing": torch.zeros(0, 2),
}
PROGRAM = """\
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.checkpoints.test_tensors import TENSORS, TEXT, predictions
from fmcli.ensemble.predictions import save_predictions
from fmcli.checkpoints.tensors import save_tensors
save_tensors(Path(sys.argv[2]), dict(reversed(TENSORS.items())), dict(reversed(TEXT.items())))
save_predictions(Path(sys.argv[3]), predictions())
"""


def predictions():
    return Predictions(
        logits=np.arange(6, dtype=np.float32).reshape(2, 3),
        labels=np.array([2, 0]),
        class_names=("a", "b", "ç"),
        member="k3",
        split="test",
        data_digest="d",
        recipe_digest="r",
        group="3",
    )


def test_two_processes_write_the_same_bytes(tmp_path, request):
    names = ("ours", "theirs", "our predictions", "their predictions")
    ours, theirs, our_predictions, their_predictions = (tmp_path / name for name in names)
    save_tensors(ours, TENSORS, TEXT)
    save_predictions(our_predictions, predictions())
    arguments = [str(request.config.rootpath), str(theirs), str(their_predictions)]
    subprocess.run([sys.executable, "-c", PROGRAM, *arguments], check=True)
    assert theirs.read_bytes() == ours.read_bytes()
    assert their_predictions.read_bytes() == our_predictions.read_bytes()


def test_the_same_process_writes_the_same_bytes_again(tmp_path):
    for number in range(5):
        save_tensors(tmp_path / f"{number}", TENSORS, TEXT)
        save_predictions(tmp_path / f"predictions {number}", predictions())
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 2


def test_safetensors_reads_sorted_metadata(tmp_path):
    save_tensors(tmp_path / "file", TENSORS, TEXT)
    found = load_file(tmp_path / "file")
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    with safe_open(tmp_path / "file", framework="pt") as file:
        metadata = file.metadata()
    assert {name: metadata[name] for name in TEXT} == TEXT
    assert metadata.keys() - TEXT.keys() == {"digest"}
    assert load_tensors(tmp_path / "file")[0] == TEXT


@pytest.mark.parametrize("length", range(9))
def test_tensors_stay_aligned_for_any_length_of_metadata(tmp_path, length):
    save_tensors(tmp_path / "file", {"weight": torch.ones(2)}, {"note": "ü" * length})
    content = (tmp_path / "file").read_bytes()
    assert int.from_bytes(content[:8], "little") % 8 == 0
    assert order_metadata(content) == content


@pytest.mark.parametrize(
    ("expected", "kind"),
    [(checkpoint.FORMAT, "checkpoint"), (state.FORMAT, "training state"), (None, "safetensors file")],
)
def test_the_expected_kind_of_a_missing_file_is_named(tmp_path, expected, kind):
    with pytest.raises(CheckpointError, match=f"no {kind} at .*file"):
        load_tensors(tmp_path / "file", expected)
