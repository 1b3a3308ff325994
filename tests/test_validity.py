"""The head: what it learns from, and what it eliminates."""

import numpy as np
import pytest
import torch

from rlmask.config import ConfigError, build
from rlmask.policies import narrowing
from rlmask.types import ActionSpec, ObsSpec
from rlmask.validity import ValidityConfig, ValidityHead, validity_gradient

DISCRETE = ObsSpec(kind="discrete", shape=(), dtype="int64", n=3)
ACTION = torch.tensor([0, 2, 1, 2])
VALID = torch.tensor([True, False, True, True])


def made(**changes):
    """Return a head over three states and four actions that eliminates by its biases alone."""
    config = ValidityConfig(hidden_sizes=(8,), **changes)
    head = ValidityHead(DISCRETE, ActionSpec(nvec=(4,)), config, torch.Generator().manual_seed(0))
    head.head.weight.data.zero_()
    return head.requires_grad_(False)


def says(head, *invalid):
    """Let a head that is on be sure of which actions are invalid."""
    head.is_on.fill_(True)
    head.head.bias.data[:] = 9.0
    head.head.bias.data[list(invalid)] = -9.0
    return head


def test_it_only_narrows_and_leaves_a_mask_that_would_be_empty():
    head = says(made(), 0, 1)
    mask = torch.tensor([[True, False, True, True], [True, True, False, False], [False] * 4])
    narrowed = head.narrow(torch.arange(3), mask)
    assert narrowed.tolist() == [
        [False, False, True, True],
        [True, True, False, False],
        [False] * 4,
    ]


def test_while_off_it_narrows_nothing():
    head = says(made(), 0, 1)
    head.is_on.fill_(False)
    mask = torch.ones(3, 4, dtype=torch.bool)
    assert head.narrow(torch.arange(3), mask).all()


def test_it_eliminates_above_the_threshold_only():
    head = made(threshold=0.75)
    # P(invalid) = σ(-z)
    head.head.bias.data[:] = -torch.logit(torch.tensor([0.74, 0.76, 0.1, 0.99]))
    assert head.eliminated(torch.arange(3)).tolist() == [[False, True, False, True]] * 3


def test_the_bound_keeps_what_was_never_tried():
    head = made(rule="bound", threshold=0.6, bound_width=1.0)
    features = head.features(torch.arange(3))
    assert (features[:, -1] == 1).all()
    head.inverse[:] = torch.eye(9)  # of no steps, with λ = 1
    head.theta[1] = torch.eye(9)[-1]  # says invalid, as little as it knows
    assert not head.eliminated(torch.arange(3)).any()
    head.inverse[1] *= 1e-6  # of many
    out = head.eliminated(torch.arange(3))
    assert out[:, 1].all()
    assert not out[:, [0, 2, 3]].any()


@pytest.mark.parametrize("loss", ["bce", "precision", "recall", "f_beta"])
@pytest.mark.parametrize("binary", [False, True])
def test_only_taken_actions_have_a_gradient(loss, binary):
    config = ValidityConfig(loss=loss, binary=binary)
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    grad = validity_gradient(logits, ACTION, VALID, config)
    taken = torch.zeros(4, 3, dtype=torch.bool).scatter_(1, ACTION.unsqueeze(1), True)
    assert (grad[~taken] == 0).all()
    # down the gradient logits of valid actions rise, those of invalid ones fall
    assert torch.equal(grad[taken] < 0, VALID)


def test_losses_are_mixed_by_their_weight():
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))

    def grad(**changes):
        return validity_gradient(logits, ACTION, VALID, ValidityConfig(**changes))

    bce, once, twice = grad(), grad(loss="f_beta"), grad(loss="f_beta", loss_coef=2.0)
    torch.testing.assert_close(twice - once, once - bce)
    assert not torch.allclose(once, bce)


def test_the_written_out_gradient_is_that_of_autograd():
    head = made()
    head.requires_grad_(True)
    torch.nn.init.normal_(head.head.weight, generator=torch.Generator().manual_seed(1))
    obs = torch.tensor([0, 1, 2, 1])
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
        head(obs).gather(1, ACTION.unsqueeze(1)).squeeze(1), VALID.float()
    )
    expected = torch.autograd.grad(loss, list(head.parameters()))
    for parameter in head.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with torch.no_grad():
        logits, pullback = head.vjp(obs)
        pullback(validity_gradient(logits, ACTION, VALID, head.config))
    for parameter, by_autograd in zip(head.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, by_autograd)


def test_a_narrowed_policy_takes_no_eliminated_action():
    def first_valid(obs, mask):
        return mask.float().argmax(-1)

    mask = torch.ones(3, 4, dtype=torch.bool)
    head = says(made(), 0, 1)
    assert first_valid(None, mask).tolist() == [0, 0, 0]
    assert narrowing(first_valid, None) is first_valid
    assert narrowing(first_valid, head)(torch.arange(3), mask).tolist() == [2, 2, 2]
    with pytest.raises(TypeError, match=r"observations are torch\.float32"):
        narrowing(first_valid, head)(torch.zeros(3), mask)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"explore": 1.5}, "explore is 1.5"),
        ({"capacity": 1}, "capacity is 1"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"loss_coef": -1.0}, "loss_coef is -1.0"),
        ({"hidden_sizes": []}, "hidden_sizes"),
        ({"rule": "guess"}, "choose one of threshold, bound"),
        ({"treshold": 0.5}, "did you mean `threshold`"),
    ],
)
def test_a_setting_that_does_not_hold_is_named(changes, said):
    with pytest.raises(ConfigError, match=said):
        build(ValidityConfig, changes, "here")


def test_weights_come_from_the_generator():
    def weights(seed):
        generator = torch.Generator().manual_seed(seed)
        return ValidityHead(DISCRETE, ActionSpec(nvec=(4,)), ValidityConfig(), generator)

    same = [w.numpy(force=True) for w in weights(1).parameters()]
    again = [w.numpy(force=True) for w in weights(1).parameters()]
    assert all(np.array_equal(a, b) for a, b in zip(same, again, strict=True))
    other = weights(2)
    assert not np.array_equal(same[0], next(other.parameters()).numpy(force=True))
