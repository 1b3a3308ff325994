"""The cells against PyTorch's own."""

import pytest
import torch
from torch import nn

from rlmask.recurrent import RecurrentCell


def cells(kind):
    ours = RecurrentCell(kind, 5, 4, torch.Generator().manual_seed(0))
    theirs = {"gru": nn.GRUCell, "lstm": nn.LSTMCell}[kind](5, 4)
    for own, other in zip(
        [ours.weight_input, ours.weight_state, ours.bias_input, ours.bias_state],
        theirs.parameters(),
        strict=True,
    ):
        other.data = own.data + 0.1 * torch.randn(own.shape)
        own.data = other.data.clone()
    return ours, theirs


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_a_step_and_its_gradient_are_those_of_torch(kind):
    ours, theirs = cells(kind)
    x, state = torch.randn(3, 5), torch.randn(3, ours.state_size)
    after = ours(ours.project(x), state)
    expected = theirs(x, state if kind == "gru" else state.chunk(2, -1))
    expected = expected if kind == "gru" else torch.cat(expected, -1)
    torch.testing.assert_close(after, expected)
    weight = torch.randn(after.shape)
    own = torch.autograd.grad((after * weight).sum(), [ours.weight_input, ours.weight_state])
    other = torch.autograd.grad((expected * weight).sum(), [theirs.weight_ih, theirs.weight_hh])
    torch.testing.assert_close(own, other)


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_the_input_can_come_in_two_parts(kind):
    ours, _ = cells(kind)
    x = torch.randn(7, 3, 5)
    parts = ours.project(x[..., :3]) + ours.project_rest(x[..., 3:])
    torch.testing.assert_close(parts, ours.project(x))


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_a_new_cell_remembers(kind):
    """Its gate of memory is open at 1 / (1 + exp(-1)) and no input drives it."""
    ours = RecurrentCell(kind, 5, 4, torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours.weight_input.zero_()
        ours.weight_state.zero_()
    state = ours(ours.project(torch.zeros(1, 5)), torch.ones(1, ours.state_size))
    torch.testing.assert_close(state[:, -4:], torch.full((1, 4), 0.7310586))


def test_initial_weights_come_from_the_generator_alone():
    before = torch.get_rng_state()
    one, other = (RecurrentCell("gru", 5, 4, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one.weight_state, other.weight_state)
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(one.weight_state[:4] @ one.weight_state[:4].T, torch.eye(4))


@pytest.mark.usefixtures("types_are_not_checked")
def test_a_kind_that_there_is_not():
    with pytest.raises(ValueError, match="kind is 'GRU'; choose one of gru, lstm"):
        RecurrentCell("GRU", 5, 4, torch.Generator())
