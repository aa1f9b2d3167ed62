"""Schedules computed by hand, weight averages compared with a slow loop, and the updates of every optimizer."""

import math
from copy import deepcopy
from itertools import pairwise
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fmcli.recipe.optimizer import AdamSpec, AdamWSpec, MuonSpec, OptimizerSpec, SgdSpec
from fmcli.recipe.schedule import (
    ConstantSchedule,
    CosineSchedule,
    CyclicSchedule,
    ExponentialSchedule,
    LinearSchedule,
    OneCycleSchedule,
    StepSchedule,
)
from fmcli.training.optim import (
    WeightAverage,
    build_optimizer,
    build_schedule,
    load_optimizer_state,
    optimizer_state,
    set_learning_rate,
)
from fmcli.training.optim.muon import orthogonalized


def small_network(seed=0, bias=True):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 3, 3, bias=bias), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2, bias=bias))


# --- schedules -------------------------------------------------------------------------------------------


def rates(spec, lr=2.0, epochs=2, steps_per_epoch=5):
    """Return the learning rate at each of ten steps, and after the last one."""
    schedule = build_schedule(spec, lr=lr, epochs=epochs, steps_per_epoch=steps_per_epoch)
    return [schedule(step) for step in range(epochs * steps_per_epoch + 1)]


def test_constant_schedule():
    assert rates(ConstantSchedule()) == [2.0] * 11


def test_exponential_schedule_falls_after_each_epoch():
    assert rates(ExponentialSchedule(gamma=0.5), epochs=3, steps_per_epoch=2) == [2, 2, 1, 1, 0.5, 0.5, 0.25]


def test_linear_schedule_by_hand():
    # Two steps of warm-up, then eight steps from 2 down to 0.5.
    expected = [2 / 3, 4 / 3, *(2 - 1.5 * done / 8 for done in range(9))]
    assert rates(LinearSchedule(warmup=0.2, final=0.25)) == pytest.approx(expected)


def test_cosine_schedule_by_hand():
    # The rate falls from step 2 to step 10: a quarter is done at step 4, half at step 6.
    by_hand = rates(CosineSchedule(warmup=0.2, final=0.25))
    assert by_hand[:3] == pytest.approx([2 / 3, 4 / 3, 2])
    assert by_hand[4] == pytest.approx(0.5 + 1.5 * (1 + math.sqrt(0.5)) / 2)
    assert by_hand[6] == pytest.approx(0.5 + 1.5 / 2)
    assert by_hand[8] == pytest.approx(0.5 + 1.5 * (1 - math.sqrt(0.5)) / 2)
    assert by_hand[10] == pytest.approx(0.5)


def test_cyclic_schedule_by_hand():
    # Two cycles of five steps. In the first, the rate rises for two steps and falls for three.
    by_hand = rates(CyclicSchedule(cycles=2, warmup=0.2, final=0.25))[:10]
    down = [0.25 + 0.75 * (1 + math.cos(math.pi * done / 3)) / 2 for done in range(3)]
    again = [0.25 + 0.75 * (1 + math.cos(math.pi * done / 5)) / 2 for done in range(5)]
    assert by_hand == pytest.approx([2 / 3, 4 / 3, *(2 * rate for rate in (*down, *again))])


def test_cyclic_schedule_equals_the_formula_of_snapshot_ensembles():
    """Compare with equation 2 of Huang et al. 2017, which counts steps from 1."""
    n_cycles, total, lr = 3, 12, 0.1
    schedule = build_schedule(CyclicSchedule(cycles=n_cycles), lr=lr, epochs=6, steps_per_epoch=2)
    for t in range(1, total + 1):
        length = math.ceil(total / n_cycles)
        assert schedule(t - 1) == pytest.approx(lr / 2 * (math.cos(math.pi * ((t - 1) % length) / length) + 1))


@given(
    cycles=st.integers(1, 5),
    epochs_per_cycle=st.integers(1, 3),
    steps_per_epoch=st.integers(1, 7),
    final=st.floats(0, 1),
    warmup=st.floats(0, 0.99),
)
def test_every_cycle_starts_at_the_peak_and_falls(cycles, epochs_per_cycle, steps_per_epoch, final, warmup):
    lr, length = 0.1, epochs_per_cycle * steps_per_epoch
    spec = CyclicSchedule(cycles=cycles, final=final, warmup=warmup / cycles)
    by_step = rates(spec, lr, cycles * epochs_per_cycle, steps_per_epoch)
    for cycle in range(cycles):
        within = by_step[cycle * length : (cycle + 1) * length]
        if cycle > 0 or warmup == 0:
            assert within[0] == pytest.approx(lr)
            assert within == pytest.approx(
                rates(CosineSchedule(final=final), lr, epochs_per_cycle, steps_per_epoch)[:-1]
            )
        assert all(after <= before for before, after in pairwise(within[math.ceil(warmup * length) :]))
        assert all(0 <= rate <= lr + 1e-12 for rate in within)


def test_one_cycle_of_a_cyclic_schedule_is_a_cosine():
    assert (
        rates(CyclicSchedule(cycles=1, warmup=0.3, final=0.1))[:10] == rates(CosineSchedule(warmup=0.3, final=0.1))[:10]
    )


@pytest.mark.parametrize("kind", [LinearSchedule, CosineSchedule])
def test_without_warmup_the_first_step_has_the_peak_rate(kind):
    assert rates(kind())[0] == 2
    assert rates(kind())[-1] == pytest.approx(0, abs=1e-12)


@given(
    kind=st.sampled_from([LinearSchedule, CosineSchedule]),
    warmup=st.floats(0, 0.9),
    final=st.floats(0, 1),
    epochs=st.integers(1, 6),
    steps_per_epoch=st.integers(1, 7),
)
def test_rate_rises_during_warmup_then_falls_to_its_final_value(kind, warmup, final, epochs, steps_per_epoch):
    lr = 0.1
    by_step = rates(kind(warmup=warmup, final=final), lr, epochs, steps_per_epoch)
    total = epochs * steps_per_epoch
    top = math.ceil(warmup * total)  # the first step after the warm-up
    slack = 1e-12
    assert all(0 < rate <= lr + slack for rate in by_step[:top])
    assert all(after > before for before, after in pairwise(by_step[:top]))
    assert all(after <= before + slack for before, after in pairwise(by_step[top:]))
    assert all(final * lr - slack <= rate <= lr + slack for rate in by_step[top:])
    if total * (1 - warmup) >= 1:
        assert by_step[total] == pytest.approx(final * lr, abs=slack)


def test_step_schedule_falls_every_n_epochs():
    by_step = rates(StepSchedule(every=2, gamma=0.5), lr=2.0, epochs=5, steps_per_epoch=1)
    assert by_step[:5] == [2, 2, 1, 1, 0.5]


def test_one_cycle_by_hand():
    by_step = rates(OneCycleSchedule(warmup=0.4, start=0.5, final=0.25), lr=2.0, epochs=1, steps_per_epoch=10)
    assert by_step[0] == pytest.approx(1.0)
    assert by_step[2] == pytest.approx(1.5)
    assert by_step[4] == pytest.approx(2.0)
    assert by_step[7] == pytest.approx(0.5 + 1.5 / 2)
    assert by_step[10] == pytest.approx(0.5)


def test_other_schedules_can_warm_up():
    for kind in (
        ConstantSchedule(warmup=0.5),
        ExponentialSchedule(gamma=1, warmup=0.5),
        StepSchedule(every=9, warmup=0.5),
    ):
        assert rates(kind, lr=3.0, epochs=2, steps_per_epoch=2)[:4] == [1.0, 2.0, 3.0, 3.0]


# --- weight averages ----------------------------------------------------------------------------------


def train_a_little(model, generator):
    """Change weights and batch norm statistics, as training does."""
    model.train()(torch.rand(4, 1, 4, 4, generator=generator)).sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


def floats_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if tensor.is_floating_point()}


@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_moving_average_equals_a_slow_loop(decay):
    model, generator = small_network(), torch.Generator().manual_seed(0)
    average = WeightAverage(model, decay)
    expected = {name: tensor.double() for name, tensor in floats_of(model).items()}
    for update in range(1, 21):
        train_a_little(model, generator)
        average.update()
        keep = min(decay, update / (update + 9))  # 0.1, 0.18, … as in TensorFlow: (1 + n) / (10 + n), n from 0
        current = floats_of(model)
        expected = {name: keep * old + (1 - keep) * current[name].double() for name, old in expected.items()}
    trained = floats_of(model)
    average.swap()
    for name, tensor in floats_of(model).items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6)
        assert not torch.equal(tensor, trained[name])
    assert {"1.running_mean", "1.running_var"} <= expected.keys()
    average.swap()
    for name, tensor in floats_of(model).items():
        assert torch.equal(tensor, trained[name])


def test_plain_mean_equals_a_slow_loop():
    model, generator = small_network(), torch.Generator().manual_seed(0)
    average, seen = WeightAverage(model, None), []
    for _ in range(7):
        train_a_little(model, generator)
        average.update()
        seen.append({name: tensor.double() for name, tensor in floats_of(model).items()})
    trained = floats_of(model)
    average.swap()
    for name, tensor in floats_of(model).items():
        mean = torch.stack([weights[name] for weights in seen]).mean(dim=0)
        torch.testing.assert_close(tensor.double(), mean, rtol=1e-5, atol=1e-6)
        assert not torch.equal(tensor, trained[name])


def test_plain_mean_of_one_update_equals_the_weights():
    model, generator = small_network(), torch.Generator().manual_seed(0)
    average = WeightAverage(model, None)
    train_a_little(model, generator)
    average.update()
    trained = floats_of(model)
    average.swap()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in floats_of(model).items())


def test_plain_mean_equals_torchs_averaged_model():
    model, generator = small_network(), torch.Generator().manual_seed(0)
    ours, theirs = WeightAverage(model, None), torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    for _ in range(4):
        train_a_little(model, generator)
        ours.update()
        theirs.update_parameters(model)
    ours.swap()
    expected = floats_of(theirs.module)
    for name, tensor in floats_of(model).items():
        torch.testing.assert_close(tensor, expected[name])


def test_two_swaps_leave_the_average_unchanged():
    model, twin = small_network(), small_network()
    averages = [WeightAverage(network, 0.9) for network in (model, twin)]
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    for _ in range(5):
        for network, average, generator in zip((model, twin), averages, generators, strict=True):
            train_a_little(network, generator)
            average.update()
        averages[0].swap()  # as validation does
        averages[0].swap()
    for ours, theirs in zip(averages[0].state_dict().values(), averages[1].state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_average_of_constant_weights_equals_the_weights():
    model = small_network()
    before = floats_of(model)
    average = WeightAverage(model, 0.9)
    for _ in range(3):
        average.update()
    average.swap()
    for name, tensor in floats_of(model).items():
        torch.testing.assert_close(tensor, before[name])


@pytest.mark.parametrize("decay", [0.9, None])
def test_average_continues_from_its_saved_state(decay):
    model, generator = small_network(), torch.Generator().manual_seed(0)
    whole = WeightAverage(model, decay)
    for _ in range(3):
        train_a_little(model, generator)
        whole.update()
    resumed = WeightAverage(model, decay)
    resumed.load_state_dict({name: tensor.clone() for name, tensor in whole.state_dict().items()})
    for _ in range(3):
        train_a_little(model, generator)
        whole.update()
        resumed.update()
    for ours, theirs in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


# --- optimizers ------------------------------------------------------------------------------------------

OPTIMIZERS = {
    "adam": AdamSpec(),
    "adamw": AdamWSpec(lr=0.1, weight_decay=0.5),
    "muon": MuonSpec(lr=0.1, weight_decay=0.5),
    "sgd": SgdSpec(weight_decay=0.5),
}


def test_every_optimizer_is_tested():
    assert {type(spec) for spec in OPTIMIZERS.values()} == set(get_args(get_args(OptimizerSpec)[0]))


def step_with(optimizer, model, gradient):
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, gradient)
    optimizer.step()


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_optimizers_without_torchs_decorators_compute_the_same(name, monkeypatch):
    models, generator = (small_network(), small_network()), torch.Generator().manual_seed(0)
    optimizers = [build_optimizer(OPTIMIZERS[name], models[0])]
    monkeypatch.setattr("fmcli.training.optim.optimizers._lean", lambda kind: kind)
    optimizers.append(build_optimizer(OPTIMIZERS[name], models[1]))
    assert type(optimizers[0]) is not type(optimizers[1])
    for _ in range(3):
        for ours, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
            ours.grad = torch.randn(ours.shape, generator=generator)
            theirs.grad = ours.grad.clone()
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.step()
            optimizer.load_state_dict(deepcopy(optimizer.state_dict()))
            optimizer.zero_grad()
            assert all(parameter.grad is None for parameter in model.parameters())
    torch.testing.assert_close(*(optimizer.state_dict() for optimizer in optimizers), rtol=0, atol=0)
    torch.testing.assert_close(*(floats_of(model) for model in models), rtol=0, atol=0)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
@pytest.mark.parametrize("bias", [True, False])
def test_weight_decay_applies_only_to_kernels(name, bias):
    model = small_network(bias=bias)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(2.0)
    spec = OPTIMIZERS[name]
    step_with(build_optimizer(spec, model), model, gradient=0.0)
    decayed = 2.0 * (1 - spec.lr * getattr(spec, "weight_decay", 0.0))
    for parameter in model.parameters():
        expected = decayed if parameter.ndim > 1 else 2.0
        torch.testing.assert_close(parameter.detach(), torch.full_like(parameter, expected))
    assert name == "adam" or decayed < 1.95


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_parameter_is_trained(name):
    model = small_network()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    step_with(build_optimizer(OPTIMIZERS[name], model), model, gradient=1.0)
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert (parameter != old).all()


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_network_without_biases_is_trained(name):
    model = nn.Linear(3, 2, bias=False)
    before = model.weight.detach().clone()
    step_with(build_optimizer(OPTIMIZERS[name], model), model, gradient=1.0)
    assert (model.weight != before).all()


@pytest.mark.parametrize("kind", [AdamSpec, AdamWSpec])
def test_adam_by_hand(kind):
    arguments = {"weight_decay": 0.0} if kind is AdamWSpec else {}
    spec = kind(lr=0.1, betas=(0.8, 0.6), eps=0.5, **arguments)
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    optimizer = build_optimizer(spec, model)
    weight, mean, square = 1.0, 0.0, 0.0
    for step, gradient in enumerate([1.0, -3.0, 0.5], start=1):
        step_with(optimizer, model, gradient)
        mean, square = 0.8 * mean + 0.2 * gradient, 0.6 * square + 0.4 * gradient**2
        weight -= 0.1 * (mean / (1 - 0.8**step)) / (math.sqrt(square / (1 - 0.6**step)) + 0.5)
        assert model.weight.detach().item() == pytest.approx(weight, rel=1e-5)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_by_hand(nesterov):
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    optimizer = build_optimizer(SgdSpec(lr=0.1, momentum=0.9, nesterov=nesterov), model)
    weight, velocity = 1.0, 0.0
    for gradient in [1.0, -3.0, 0.5]:
        step_with(optimizer, model, gradient)
        velocity = 0.9 * velocity + gradient
        weight -= 0.1 * (gradient + 0.9 * velocity if nesterov else velocity)
        assert model.weight.detach().item() == pytest.approx(weight, rel=1e-5)


def test_learning_rate_is_set_for_every_group():
    model = small_network()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    optimizer = build_optimizer(SgdSpec(weight_decay=0.5), model)
    set_learning_rate(optimizer, 0.25)
    step_with(optimizer, model, gradient=1.0)
    assert all((parameter == -0.25).all() for parameter in model.parameters())


# --- Muon ------------------------------------------------------------------------------------------------


def orthogonalized_slowly(matrix):
    """Apply the iteration to each singular value: a slow reference implementation."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    values = values / matrix.norm()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return left @ torch.diag(values) @ right


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), seed=st.integers(0, 99))
def test_orthogonalized_applies_the_iteration_to_singular_values(rows, columns, seed):
    matrix = torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(orthogonalized(matrix), orthogonalized_slowly(matrix), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(16, 144), (144, 16), (30, 30), (1, 9)])
def test_orthogonalized_has_singular_values_near_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalized(matrix))
    assert values.min() > 0.5
    assert values.max() < 1.3
    torch.testing.assert_close(orthogonalized(1e6 * matrix), orthogonalized(matrix), rtol=1e-3, atol=1e-3)


def test_orthogonalized_zeros_are_zeros():
    assert (orthogonalized(torch.zeros(3, 5)) == 0).all()


@pytest.mark.parametrize("filters", [4, 64])  # a wide and a tall matrix
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_by_hand(filters, layout):
    """Three updates of a convolution: orthogonalized Nesterov momentum, scaled to the size of AdamW's updates."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, filters, 3, bias=False), nn.Flatten(), nn.Linear(filters, 2, bias=False))
    model = model.to(memory_format=layout)
    optimizer = build_optimizer(MuonSpec(lr=0.1, momentum=0.9, weight_decay=0.5), model)
    weight, momentum = model[0].weight.detach().clone(), torch.zeros(filters, 2, 3, 3)
    for _ in range(3):
        gradient = torch.randn(filters, 2, 3, 3, generator=generator)
        model[0].weight.grad, model[2].weight.grad = gradient.to(memory_format=layout), torch.zeros(2, filters)
        optimizer.step()
        momentum = 0.9 * momentum + 0.1 * gradient
        ahead = 0.9 * momentum + 0.1 * gradient
        update = orthogonalized_slowly(ahead.reshape(filters, 18)).reshape(filters, 2, 3, 3)
        weight = weight * (1 - 0.1 * 0.5) - 0.1 * 0.2 * math.sqrt(max(filters, 18)) * update
        torch.testing.assert_close(model[0].weight.detach(), weight.contiguous(), rtol=1e-4, atol=1e-4)


def test_muon_updates_the_last_layer_and_biases_like_adamw():
    models = [small_network(), small_network()]
    specs = MuonSpec(lr=0.1, weight_decay=0.5), AdamWSpec(lr=0.1, weight_decay=0.5)
    optimizers = [build_optimizer(spec, model) for spec, model in zip(specs, models, strict=True)]
    for step in range(3):
        for optimizer, model in zip(optimizers, models, strict=True):
            step_with(optimizer, model, gradient=1.0 - step)
    for name, parameter in models[0].named_parameters():
        same = torch.equal(parameter, models[1].get_parameter(name))
        assert same == (name != "0.weight")


def test_muon_does_not_change_parameters_without_gradient():
    model = small_network()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(MuonSpec(), model)
    model[3].bias.grad = torch.ones(2)
    optimizer.step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {"3.bias"}


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_optimizer_continues_from_its_saved_state(name):
    generator = torch.Generator().manual_seed(0)
    gradients = [
        {key: torch.randn(value.shape, generator=generator) for key, value in small_network().named_parameters()}
        for _ in range(4)
    ]
    spec = OPTIMIZERS[name]

    def train(model, optimizer, steps):
        for step in steps:
            for key, parameter in model.named_parameters():
                parameter.grad = gradients[step][key].clone()
            optimizer.step()

    whole = small_network()
    train(whole, build_optimizer(spec, whole), range(4))
    first = small_network()
    stopped = build_optimizer(spec, first)
    train(first, stopped, range(2))
    second = small_network(seed=1)
    second.load_state_dict(first.state_dict())
    resumed = build_optimizer(spec, second)
    tensors = optimizer_state(stopped)
    assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())
    load_optimizer_state(resumed, tensors)
    train(second, resumed, range(2, 4))
    for ours, theirs in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_loaded_state_is_on_the_device_of_the_weights(name):
    """Fused optimizers need the whole state on the GPU, including the step counts."""
    model = small_network()
    saved = build_optimizer(OPTIMIZERS[name], model)
    step_with(saved, model, gradient=1.0)
    elsewhere = small_network().to("meta")
    optimizer = build_optimizer(OPTIMIZERS[name], elsewhere)
    load_optimizer_state(optimizer, optimizer_state(saved))
    tensors = [
        value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)
    ]
    assert {tensor.device.type for tensor in tensors} <= {"meta"}
