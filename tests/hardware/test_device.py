"""Device names, precision and out-of-memory errors."""

import pytest
import torch

from fmcli.errors import DeviceError, Remedy
from fmcli.hardware.device import check_device_name, is_out_of_memory, resolve_device, use_bf16


@pytest.mark.parametrize("name", ["auto", "cpu", "cuda", "cuda:3", "mps"])
def test_valid_names_pass(name):
    assert check_device_name(name) == name


@pytest.mark.parametrize("name", ["", "gpu", "cpu:0", "cuda:-1", "mps:0"])
def test_invalid_names_are_refused(name):
    with pytest.raises(DeviceError, match="unknown device"):
        check_device_name(name)


def test_a_missing_gpu_is_refused():
    with pytest.raises(DeviceError, match="no device cuda:99: torch finds") as caught:
        resolve_device("cuda:99")
    assert caught.value.remedies == (Remedy("device", "auto"), Remedy("device", "cpu"))


def test_precision_is_taken_from_the_recipe_unless_it_is_auto():
    assert use_bf16("bf16", torch.device("cpu"))
    assert not use_bf16("fp32", torch.device("cpu"))
    assert not use_bf16("auto", torch.device("meta"))


def test_out_of_memory_errors_are_recognised():
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"))
    assert not is_out_of_memory(RuntimeError("shapes differ"))
