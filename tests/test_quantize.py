"""Students of few bits: against the float network, and against fake quantisation by autograd."""

import copy

import pytest
import torch
from torch import nn

from rlmask.actor_mimic import ActorMimicNetwork
from rlmask.ops import fake_quant, grid_of
from rlmask.optim import FlatAdam
from rlmask.quantize import QuantizedNetwork, layers_of, quantized_weight, weight_steps
from rlmask.quantize import quantized as quantized_after
from rlmask.types import ActionSpec, ObsSpec

NUM_GAMES, ROWS, ACTIONS = 3, 12, 5
IMAGE = ObsSpec(kind="image", shape=(6, 5, 2), dtype="uint8")
VECTOR = ObsSpec(kind="vector", shape=(4,), dtype="float32")
DISCRETE = ObsSpec(kind="discrete", shape=(), dtype="int64", n=7)
SPECS = [IMAGE, VECTOR, DISCRETE]
IDS = ["image", "vector", "discrete"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(spec, rows=ROWS, seed=0):
    if spec.kind == "discrete":
        return torch.randint(spec.n, (rows,), generator=generator(seed))
    if spec.kind == "image":
        shape = (rows, *spec.shape)
        return torch.randint(256, shape, generator=generator(seed)).to(torch.uint8)
    return torch.randn(rows, *spec.shape, generator=generator(seed))


def make(spec=VECTOR, **changes):
    settings = {
        "hidden_sizes": (8, 6),
        "activation": "relu",
        "conv_filters": (4, 5) if spec.kind == "image" else (),
        "game_stems": False,
        "game_heads": False,
        "value_head": True,
        "normalize_obs": False,
        "generator": generator(),
    }
    network = ActorMimicNetwork(spec, ActionSpec(nvec=(ACTIONS,)), NUM_GAMES, **settings | changes)
    network.actor_head.weight.data.mul_(100)
    return network


def quantized(network, weight_bits=None, activation_bits=None):
    return QuantizedNetwork(copy.deepcopy(network), weight_bits, activation_bits)


def gradients(network, obs, seed=1):
    """Outputs of `vjp_features`, and the gradients that a random pullback writes."""
    FlatAdam(network)
    with torch.inference_mode():
        *outputs, pullback = network.vjp_features(obs)
        pullback(*(torch.randn(x.shape, generator=generator(seed)) for x in outputs))
    return outputs, {name: p.grad.clone() for name, p in network.named_parameters()}


@pytest.mark.parametrize("spec", SPECS, ids=IDS)
@pytest.mark.parametrize("parts", [False, True])
def test_until_it_is_time_it_is_the_float_network(spec, parts):
    network = make(spec, game_stems=parts, game_heads=parts)
    student, obs = quantized(network, 2, 2), draw(spec)
    for own, other in zip(student(obs), network(obs), strict=True):
        assert torch.equal(own, other)
    assert student.state_dict().keys() > network.state_dict().keys()
    (own, own_grad), (other, other_grad) = gradients(student, obs), gradients(network, obs)
    torch.testing.assert_close(own, other)
    torch.testing.assert_close(own_grad, other_grad)
    student.quantize(True)
    assert not torch.allclose(student(obs)[0], other[0], atol=1e-3)


def of_channels(layer, weight):
    """Weights as matrices whose columns are outputs."""
    if isinstance(layer, nn.Conv2d | nn.Linear):
        return [weight.flatten(1).T]
    return list(weight.reshape(-1, *weight.shape[-2:]))


@pytest.mark.parametrize("spec", SPECS, ids=IDS)
def test_weights_are_those_of_fake_quantisation_channel_by_channel(spec):
    for layer in layers_of(make(spec, game_stems=True, game_heads=True)):
        for bits in (2, 3, 4, 6, 8):
            weight = layer.weight.detach()
            found = quantized_weight(layer, bits).detach()
            for x, y in zip(of_channels(layer, weight), of_channels(layer, found), strict=True):
                high = x.abs().amax(0)
                expected = fake_quant(x, -high, high, bits, narrow_range=True)
                # the range's ends round apart by a bit in the last place
                torch.testing.assert_close(y, expected, atol=1e-6, rtol=1e-5)
            steps = weight_steps(layer, bits).detach()
            assert (steps == steps.round()).all() and steps.abs().max() == 2 ** (bits - 1) - 1


def test_the_forward_pass_by_hand():
    """Two layers and a head, weights and activations, written out."""
    network = make(VECTOR, value_head=False)
    student, obs = quantized(network, 4, 5), draw(VECTOR)
    gradients(student, obs)  # the ranges are those of this batch alone
    student.quantize(True)
    x, ends = obs, student.activation_ranges
    seen = obs
    for place, layer in enumerate([*network.torso.layers, network.actor_head]):
        assert ends[place].tolist() == [min(0, seen.min().item()), max(0, seen.max().item())]
        x = fake_quant(x, *ends[place], 5)
        weight = layer.weight.detach()
        weight = weight.T if isinstance(layer, nn.Linear) else weight.view(weight.shape[-2:])
        high = weight.abs().amax(0)
        y = x @ fake_quant(weight, -high, high, 4, narrow_range=True) + layer.bias.view(-1)
        seen = torch.relu(seen @ weight + layer.bias.view(-1))
        x = torch.relu(y)
    torch.testing.assert_close(student(obs)[0], y.detach(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("spec", SPECS, ids=IDS)
def test_the_gradient_goes_straight_through(spec):
    """By autograd through weights that are leaves: on the grid, the gradient is that there."""
    student, obs = quantized(make(spec), 3, None), draw(spec)
    student.quantize(True)
    _, found = gradients(student, obs)
    on_grid = make(spec)
    layers = [*layers_of(on_grid.torso), *layers_of(on_grid.actor_head)]
    for layer in layers:
        layer.weight.data = quantized_weight(layer, 3).detach()
    _, expected = gradients(on_grid, obs)
    torch.testing.assert_close(found, expected)


def clamped(x, low, high, bits):
    """A grid by autograd: a clamp, which blocks what is beyond, and steps that let all through."""
    grid = grid_of(low, high, bits)
    kept = x.clamp(grid.low, grid.high)
    steps = (kept / grid.scale + 0.5).floor() * grid.scale
    return kept + (steps - kept).detach()


def test_what_is_beyond_the_range_has_no_gradient():
    student, obs = quantized(make(VECTOR, value_head=False), None, 6), draw(VECTOR, rows=60)
    gradients(student, obs)
    student.quantize(True)
    student.activation_ranges.mul_(0.5)
    obs.requires_grad_()
    x, layers = obs, student.torso.layers
    for place, ends in enumerate(student.activation_ranges):
        assert 0.01 < ((x < ends[0]) | (x > ends[1])).float().mean() < 0.9
        x = clamped(x, *ends, 6)
        x = torch.relu(layers[place](x)) if place < len(layers) else student.actor_head(x[0])
    logits, _ = student(obs)
    torch.testing.assert_close(logits, x)
    of = [obs, *student.torso.parameters(), *student.actor_head.parameters()]
    along = torch.randn(x.shape, generator=generator(1))
    found, expected = (torch.autograd.grad(y, of, along) for y in (logits, x))
    torch.testing.assert_close(found, expected)


def test_ranges_are_moving_averages_that_acting_leaves_alone():
    student = quantized(make(VECTOR), 8, 8)
    batches = [draw(VECTOR, seed=seed) for seed in range(5)]
    for obs in batches:
        gradients(student, obs)
    mean = torch.stack([torch.stack([x.min(), x.max()]) for x in batches]).mean(0)
    torch.testing.assert_close(student.activation_ranges[0], mean)
    assert (student.activation_ranges[1:, 0] == 0).all()  # of ReLUs
    before = copy.deepcopy(student.state_dict())
    student.quantize(True)
    student(100 * batches[0])
    after = student.state_dict()
    assert all(torch.equal(after[k], before[k]) for k in before if k != "is_quantized")


def test_outputs_of_few_bits_are_few():
    student, obs = quantized(make(VECTOR, value_head=False), None, 2), draw(VECTOR, rows=60)
    gradients(student, obs)
    student.quantize(True)
    _, features = student.scores(obs, torch.ones(60, ACTIONS, dtype=torch.bool))
    assert 1 < len(features.unique()) <= 4


def test_before_anything_was_seen_activations_are_left_alone():
    network = make(VECTOR)
    student, obs = quantized(network, None, 4), draw(VECTOR)
    student.quantize(True)
    assert torch.equal(student(obs)[0], network(obs)[0])


@pytest.mark.parametrize("bits", [1, 0, -3, 17, 40])
@pytest.mark.parametrize("name", ["weight_bits", "activation_bits"])
def test_bits_that_no_number_has_are_an_error(name, bits):
    both = {"weight_bits": 8, "activation_bits": 8, name: bits}
    with pytest.raises(ValueError, match=f"{name} is {bits}: it must be 2 to 16"):
        QuantizedNetwork(make(), **both)
    with pytest.raises(ValueError, match=f"{name} is {bits}"):
        quantized_after(make(), **both, batches=[draw(VECTOR)])


def test_without_observations_there_are_no_ranges():
    with pytest.raises(ValueError, match="batches is empty"):
        quantized_after(make(), 8, 8, [])
    network = quantized_after(make(), 8, None, [])  # nothing to find
    assert not torch.equal(network(draw(VECTOR))[0], make()(draw(VECTOR))[0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_does_not_become_a_range(bad):
    student, obs = quantized(make(), 8, 8), draw(VECTOR)
    gradients(student, obs)
    before = student.activation_ranges.clone()
    obs[3, 1] = bad
    with pytest.raises(FloatingPointError, match="activation is not finite"):
        gradients(student, obs)
    assert torch.equal(student.activation_ranges, before)


def test_a_dead_unit_does_no_harm():
    network = make(VECTOR)
    for layer in layers_of(network):
        layer.weight.data.zero_()
    student = quantized(network, 4, 4)
    student.quantize(True)
    outputs, found = gradients(student, draw(VECTOR))
    assert all(x.isfinite().all() for x in (*outputs, *found.values()))


@pytest.mark.parametrize("spec", SPECS, ids=IDS)
def test_a_trained_network_is_put_on_grids_nearer_with_more_bits(spec):
    network, batches = make(spec), [draw(spec, rows=60, seed=seed) for seed in range(3)]
    before = copy.deepcopy(network.state_dict())
    obs, errors = draw(spec, rows=60, seed=9), []
    for bits in (2, 4, 8, 12):
        student = quantized_after(network, bits, bits, batches)
        errors.append((student(obs)[0] - network(obs)[0]).square().mean().item())
    assert errors == sorted(errors, reverse=True) and errors[3] < 1e-3 * errors[0]
    assert all(torch.equal(before[k], x) for k, x in network.state_dict().items())
