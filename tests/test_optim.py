import pytest
import torch
from torch import nn

from rlmask.optim import FlatAdam


def small_network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def gradients(network, x):
    return torch.autograd.grad(network(x).square().sum(), list(network.parameters()))


def write_gradients(network, x):
    """Where a pullback would write them."""
    for parameter, gradient in zip(network.parameters(), gradients(network, x), strict=True):
        parameter.grad.copy_(gradient)


def test_the_parameters_are_views_of_one_vector():
    network = small_network()
    x = torch.randn(5, 3)
    before = network(x)
    optimizer = FlatAdam(network)
    assert optimizer.weights.numel() == sum(p.numel() for p in network.parameters())
    torch.testing.assert_close(network(x), before, rtol=0, atol=0)
    optimizer.weights.zero_()
    assert all(p.eq(0).all() for p in network.parameters())


def test_steps_are_those_of_torch():
    ours, theirs = small_network(), small_network()
    optimizer = FlatAdam(ours, beta1=0.8, beta2=0.95, epsilon=1e-3)
    reference = torch.optim.Adam(theirs.parameters(), betas=(0.8, 0.95), eps=1e-3)
    for step in range(5):
        x = torch.randn(6, 3)
        reference.param_groups[0]["lr"] = 0.1 / (step + 1)
        write_gradients(ours, x)
        expected = gradients(theirs, x)
        total = float(sum(gradient.square().sum() for gradient in expected) ** 0.5)
        limit = total * (1.1 if step == 0 else 0.5 / step)  # the first is below, and stays
        for parameter, gradient in zip(theirs.parameters(), expected, strict=True):
            parameter.grad = gradient * min(1.0, limit / total)
        norm = optimizer.step(0.1 / (step + 1), limit)
        assert norm == pytest.approx(total, rel=1e-5), "before clipping"
        reference.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_capture_and_restore_go_on_bit_for_bit():
    x = torch.randn(4, 6, 3)

    def train(network, optimizer, batches):
        for batch in batches:
            write_gradients(network, batch)
            optimizer.step(0.01)

    whole = small_network()
    train(whole, FlatAdam(whole), x)
    first = small_network()
    optimizer = FlatAdam(first)
    train(first, optimizer, x[:2])
    second = small_network(seed=1)
    second.load_state_dict(first.state_dict())
    resumed = FlatAdam(second)
    captured = optimizer.capture()
    resumed.restore(captured)
    train(second, resumed, x[2:])
    assert all(map(torch.equal, whole.parameters(), second.parameters()))
    assert captured["step"] == 2, "what was captured is not shared"


def test_what_is_not_finite_is_an_error():
    network = small_network()
    optimizer = FlatAdam(network)
    before = optimizer.weights.clone()
    optimizer.gradient[5] = float("nan")
    with pytest.raises(FloatingPointError, match="the gradient is not finite"):
        optimizer.step(0.1)
    assert torch.equal(optimizer.weights, before)
    optimizer.check_weights()
    optimizer.weights[3] = float("inf")
    with pytest.raises(FloatingPointError, match="the weights are not finite"):
        optimizer.check_weights()
