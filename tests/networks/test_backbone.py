"""Networks of torchvision: sizes, stems, initial weights, weights from a file, bfloat16, folding."""

import copy
import os

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from fmcli.errors import RecipeError
from fmcli.networks.backbone import Backbone, measure_backbone
from fmcli.networks.backbone_weights import check_weights
from fmcli.networks.bf16 import Bf16Twin
from fmcli.networks.build import build_model
from fmcli.networks.dropout import Dropout, set_dropout_generator
from fmcli.networks.inference import InferenceNetwork
from fmcli.networks.torchvision_networks import build_on_meta, find_stem
from fmcli.networks.tracing import trace_network
from fmcli.recipe.families.torchvision import TorchvisionSpec
from fmcli.recipe.layers import Backbone as BackboneSpec
from fmcli.recipe.tracing import count_multiply_adds, count_parameters

SMALL = "mobilenet_v3_small"  # with batch norm, squeeze-excite and dropout
SHAPE = (1, 16, 16)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def build(name=SMALL, shape=SHAPE, seed=0, n_classes=4, init="torch", **keys):
    traces = trace_network(TorchvisionSpec(name=name, **keys), shape, n_classes)
    return build_model(traces, init=init, generator=None if seed is None else seeded(seed))


def randomize_statistics(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5, generator=seeded(1))
            nn.init.uniform_(module.running_var, 0.5, 2, generator=seeded(2))
    return model


# --- sizes and stems -------------------------------------------------------------------------------------


def test_resnet18_has_its_well_known_size_for_cifar():
    """11.17 million parameters, as in github.com/kuangliu/pytorch-cifar."""
    traces = trace_network(TorchvisionSpec(name="resnet18"), (3, 32, 32), 10)
    assert count_parameters(traces) == 11_173_962
    stem, blocks, halved = 3 * 9 * 64 * 32**2, 64 * 64 * 9 * 32**2, 64 * 128 * 16**2
    assert count_multiply_adds(traces) == stem + 4 * blocks + 3 * (9 * halved + 3 * blocks + halved) + 512 * 10
    model = build("resnet18", (3, 32, 32), n_classes=10)
    assert sum(weight.numel() for weight in model.parameters()) == 11_173_962
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_large_images_get_torchvisions_own_network():
    for name in ("vit_b_32", "resnet18", "swin_t"):
        found = build_on_meta(name, (3, 224, 224), 1000).state_dict()
        with torch.device("meta"):
            expected = models.get_model(name).state_dict()
        assert {key: tensor.shape for key, tensor in found.items()} == {key: one.shape for key, one in expected.items()}
    assert find_stem(build_on_meta("resnet18", (2, 64, 80), 5))[1].weight.shape == (64, 2, 7, 7)


@pytest.mark.parametrize(
    ("name", "side", "kernel", "stride"),
    [
        ("resnet18", 28, 3, 1),
        ("densenet121", 28, 3, 1),
        ("squeezenet1_0", 16, 3, 1),
        (SMALL, 63, 3, 1),
        ("vgg11", 32, 3, 1),
        ("regnet_x_400mf", 16, 3, 1),
        ("swin_t", 28, 2, 2),
        ("convnext_tiny", 32, 4, 4),
        ("convnext_tiny", 8, 1, 1),
        ("vit_b_16", 28, 2, 2),
        ("vit_b_32", 48, 4, 4),
    ],
)
def test_small_images_keep_their_resolution_in_the_stem(name, side, kernel, stride):
    network = build_on_meta(name, (1, side, side), 4)
    stem = find_stem(network)[1]
    assert (stem.in_channels, stem.kernel_size, stem.stride) == (1, (kernel, kernel), (stride, stride))
    assert network.to("meta")(torch.empty(2, 1, side, side, device="meta")).shape == (2, 4)
    if name in ("resnet18", "densenet121"):
        assert nn.MaxPool2d not in map(type, network.modules())
    if name == "vit_b_16":
        assert network.encoder.pos_embedding.shape == (1, 14**2 + 1, 768)


@pytest.mark.parametrize(
    ("name", "shape", "problem"),
    [
        ("resnet19", (1, 28, 28), "name: got 'resnet19'; did you mean 'resnet18'?"),
        ("fcn_resnet50", (3, 64, 64), "name: got 'fcn_resnet50'; did you mean"),
        ("inception_v3", (1, 28, 28), "name: inception_v3 cannot take images of 28×28 pixels"),
        ("maxvit_t", (1, 28, 28), "name: maxvit_t cannot take images of 28×28 pixels"),
        ("vit_b_16", (1, 28, 32), "name: vit_b_16 cannot take images of 28×32 pixels"),
        ("vgg11", (1, 2, 2), ""),
    ],
)
def test_a_network_that_cannot_be_is_refused(name, shape, problem):
    if not problem:
        assert measure_backbone(BackboneSpec(name=name, n_classes=4), shape, 4)
        return
    with pytest.raises(RecipeError) as caught:
        trace_network(TorchvisionSpec(name=name), shape, 4)
    [found] = caught.value.problems
    assert found.startswith(problem)


# --- initial weights -------------------------------------------------------------------------------------


def test_equal_seeds_give_equal_weights_and_no_global_random_number_is_used():
    torch.manual_seed(7)
    state = torch.get_rng_state()
    build_on_meta("swin_t", SHAPE, 4)
    model = build()
    set_dropout_generator(model, seeded())
    model.train()(torch.rand(2, *SHAPE, generator=seeded()))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(8)
    same, different = build().state_dict(), build(seed=1).state_dict()
    names = [key for key, _ in model.named_parameters()]
    assert all(torch.equal(dict(model.named_parameters())[key], same[key]) for key in names)
    assert not all(torch.equal(different[key], same[key]) for key in names)


def test_other_initializations_apply_to_all_kernels():
    model = build(init="he-normal")
    kernel = model[0].network.features[5].block[0][0].weight.detach()
    assert float(kernel.std()) == pytest.approx((2 / kernel.shape[1]) ** 0.5, rel=0.1)
    assert not build(init="glorot-uniform")[0].network.classifier[3].bias.any()


def test_a_network_without_seed_takes_the_weights_of_another():
    model, empty = build("mnasnet0_5"), build("mnasnet0_5", seed=None)
    empty.load_state_dict(dict(model.state_dict()))  # as from a file, without the versions of modules
    images = torch.rand(2, *SHAPE)
    assert torch.equal(model.eval()(images), empty.eval()(images))


def test_random_layers_draw_from_the_generator_of_the_member():
    model = build("efficientnet_b0").train()
    images = torch.rand(8, *SHAPE, generator=seeded())
    copies = [copy.deepcopy(model) for _ in range(3)]
    for one, seed in zip(copies, (1, 1, 2), strict=True):
        set_dropout_generator(one, seeded(seed))
    first, again, other = (one(images) for one in copies)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert any(isinstance(module, Dropout) for module in model.modules())


# --- weights from a file ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Weights of torchvision's own network for colour images and 1000 classes."""
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    torch.manual_seed(3)
    save_file(models.get_model(SMALL).state_dict(), path)
    return path


@pytest.mark.parametrize(
    ("channels", "expected"),
    [
        (3, ("classifier.3.weight", "classifier.3.bias")),
        (1, ("features.0.0.weight", "classifier.3.weight", "classifier.3.bias")),
    ],
)
def test_all_weights_but_classifier_and_different_stem_come_from_the_file(pretrained, channels, expected):
    torch.manual_seed(3)
    source = models.get_model(SMALL).state_dict()
    shape = (channels, 16, 16)
    [backbone] = build(shape=shape, weights=str(pretrained))
    assert backbone.initialized == expected
    found, without = backbone.network.state_dict(), build(shape=shape)[0].network.state_dict()
    for name, tensor in found.items():
        assert torch.equal(tensor, (without if name in expected else source)[name]), name


def test_counters_of_batch_norm_may_be_missing(pretrained, tmp_path):
    """The files that torchvision publishes for its older networks have none."""
    torch.manual_seed(3)
    source = models.get_model(SMALL).state_dict()
    path = tmp_path / "older.safetensors"
    save_file({name: tensor for name, tensor in source.items() if not name.endswith("num_batches_tracked")}, path)
    check_weights(BackboneSpec(name=SMALL, weights=str(path), n_classes=4), SHAPE)
    [older], [current] = (build(weights=str(file)) for file in (path, pretrained))
    assert older.initialized == current.initialized
    for name, tensor in current.network.state_dict().items():
        assert torch.equal(older.network.state_dict()[name], tensor), name


def change_weights(tensors):
    tensors["features.1.extra"] = torch.zeros(1)
    del tensors["features.0.1.running_mean"], tensors["features.2.block.0.0.weight"]
    tensors["classifier.0.bias"] = torch.zeros(7)


def test_weights_that_do_not_fit_are_named(pretrained, tmp_path):
    torch.manual_seed(3)
    tensors = models.get_model(SMALL).state_dict()
    change_weights(tensors)
    path = tmp_path / "changed.safetensors"
    save_file(tensors, path)
    layer = BackboneSpec(name=SMALL, weights=str(path), n_classes=4)
    with pytest.raises(RecipeError) as caught:
        check_weights(layer, SHAPE)
    assert caught.value.problems == (
        f"weights: {path} does not fit the network: 2 missing (features.0.1.running_mean, "
        "features.2.block.0.0.weight); 1 unexpected (features.1.extra); "
        "1 of another shape (classifier.0.bias 7 instead of 1024)",
    )
    check_weights(BackboneSpec(name=SMALL, weights=str(pretrained), n_classes=4), SHAPE)
    with pytest.raises(RecipeError, match=r"missing \(.* and \d+ more\)"):
        check_weights(BackboneSpec(name="resnet18", weights=str(pretrained), n_classes=4), SHAPE)


@pytest.mark.parametrize("damage", ["missing", "folder", "text", "truncated", "NUL", "pipe"])
def test_a_file_that_has_no_weights_is_refused(pretrained, tmp_path, damage):
    path = tmp_path / "file"
    match damage:
        case "folder":
            path.mkdir()
        case "text":
            path.write_text("[weights]\n" * 100)
        case "truncated":
            path.write_bytes(pretrained.read_bytes()[:-100])
        case "NUL":
            path = tmp_path / "a\0b"
        case "pipe":
            os.mkfifo(path)
    with pytest.raises(RecipeError) as caught:
        check_weights(BackboneSpec(name=SMALL, weights=str(path), n_classes=4), SHAPE)
    [problem] = caught.value.problems
    assert problem.startswith("weights: cannot read ")


# --- bfloat16 and prediction -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [SMALL, "squeezenet1_1"])
def test_bf16_training_multiplies_in_bf16_and_keeps_weights_in_fp32(name):
    model = build(name).train()
    set_dropout_generator(model, seeded())
    twin = Bf16Twin(model)
    logits = twin(torch.rand(2, *SHAPE, generator=seeded()))
    logits.float().logsumexp(dim=1).sum().backward()
    twin.collect_gradients()
    kernels = [module.weight for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(kernels) > 10
    for kernel in kernels:
        assert kernel.dtype == kernel.grad.dtype == torch.float32
        assert torch.equal(kernel.grad, kernel.grad.bfloat16().float())
    assert all(weight.grad is not None for weight in model.parameters())


@pytest.mark.parametrize("name", [SMALL, "resnet18", "squeezenet1_1"])
def test_the_folded_network_gives_the_same_logits(name):
    model = randomize_statistics(build(name)).eval()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    images = torch.rand(4, *SHAPE, generator=seeded())
    network, in_bf16 = InferenceNetwork(model), InferenceNetwork(model, bf16=True)
    assert nn.BatchNorm2d not in map(type, network.modules())
    with torch.inference_mode():
        expected = model(images)
        size = float(expected.abs().max())
        torch.testing.assert_close(network(images), expected, rtol=0, atol=1e-5 * size)
        rounded = in_bf16(images)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, expected, rtol=0, atol=0.03 * size)
    assert not torch.equal(rounded, rounded.bfloat16().float())  # the classifier is not in bfloat16
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert isinstance(model[0], Backbone)
