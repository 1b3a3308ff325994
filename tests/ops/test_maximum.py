"""Maximum, log-sum-exp and confidence bonus; T7 of the notes, and autograd as the reference."""

import math

import pytest
import torch

from rlmask.ops import (
    confidence_bonus,
    confident_cross_entropy,
    masked_logsumexp,
    masked_max,
    soft_cross_entropy,
)

Z = torch.tensor([0.2, 1.0, 1.0, -0.5], dtype=torch.float64)
P = torch.tensor([0.1, 0.6, 0.2, 0.1], dtype=torch.float64)
ALL = torch.ones(4, dtype=torch.bool)
ALPHA = 0.3
EXACT = {"atol": 1e-7, "rtol": 0.0}  # eight digits are given


def value_and_gradient(function, z=Z):
    z = z.clone().requires_grad_()
    loss = function(z)
    (grad,) = torch.autograd.grad(loss.sum(), z)
    return loss.detach(), grad


def near(found, expected):
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), **EXACT)


@pytest.mark.parametrize(
    "ties, gradient",
    [
        ("split", [0.06813315, -0.37581280, 0.02418720, -0.01650755]),
        ("first", [0.06813315, -0.52581280, 0.17418720, -0.01650755]),
    ],
)
def test_less_the_highest_logit_there_is_no_least_value(ties, gradient):
    def loss(z):
        return soft_cross_entropy(z, P, ALL) - ALPHA * masked_max(z, ALL, ties)

    value, grad = value_and_gradient(loss)
    near(value, 0.91299907)
    near(grad, gradient)
    near(grad.sum(), -ALPHA)
    near(loss(Z + 10), -2.08700093)
    near(loss(Z + 100), -29.08700093)


@pytest.mark.parametrize(
    "of, expected, gradient",
    [
        ("probs", 1.10074291, [0.08700713, -0.23993606, 0.16006394, -0.00713501]),
        ("log_probs", 1.50789879, [0.11857309, -0.26355665, 0.13644336, 0.00854019]),
    ],
)
def test_less_the_highest_probability_there_is(of, expected, gradient):
    value, grad = value_and_gradient(lambda z: confident_cross_entropy(z, P, ALL, ALPHA, of))
    near(value, expected)
    near(grad, gradient)
    near(grad.sum(), 0.0)
    shifted = confident_cross_entropy(Z + 100, P, ALL, ALPHA, of)
    torch.testing.assert_close(shifted, value)
    terms = confidence_bonus(Z[None], ALL[None], ALPHA, of)
    cross_entropy, its_grad = value_and_gradient(lambda z: soft_cross_entropy(z, P, ALL))
    torch.testing.assert_close(terms.loss[0] + cross_entropy, value)
    torch.testing.assert_close(terms.grad[0] + its_grad, grad)


def rows(seed=0, shape=(50, 7)):
    generator = torch.Generator().manual_seed(seed)
    z = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    mask = torch.rand(shape, generator=generator) < 0.5
    mask[:, 2] = True
    target = torch.rand(shape, generator=generator, dtype=torch.float64) * mask
    return z, target / target.sum(-1, keepdim=True), mask


FUNCTIONS = {
    "max": lambda z, p, mask: masked_max(z, mask),
    "first max": lambda z, p, mask: masked_max(z, mask, "first"),
    "logsumexp": lambda z, p, mask: masked_logsumexp(z, mask),
    "cross entropy": soft_cross_entropy,
    "probs": lambda z, p, mask: confident_cross_entropy(z, p, mask, 0.7, "probs"),
    "log probs": lambda z, p, mask: confident_cross_entropy(z, p, mask, 0.7),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_are_those_of_finite_differences(name):
    z, p, mask = rows(shape=(5, 7))
    assert torch.autograd.gradcheck(lambda z: FUNCTIONS[name](z, p, mask), z.requires_grad_())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_invalid_has_no_say_whatever_it_is(name):
    z, p, mask = rows()
    value, grad = value_and_gradient(lambda z: FUNCTIONS[name](z, p, mask), z)
    assert (grad[~mask] == 0).all() and value.isfinite().all()
    for anything in (torch.nan, torch.inf, 1e30):
        other = torch.where(mask, z, anything)
        again = value_and_gradient(
            lambda z, x=anything: FUNCTIONS[name](z, torch.where(mask, p, x), mask), other
        )
        assert torch.equal(again[0], value) and torch.equal(again[1], grad)


def test_log_sum_exp_is_just_above_the_maximum():
    z, _, mask = rows()
    above = masked_logsumexp(z, mask) - masked_max(z, mask)
    assert (above >= 0).all() and (above <= mask.sum(-1).double().log() + 1e-12).all()
    near(masked_logsumexp(torch.zeros_like(Z), ALL), math.log(4))


def test_a_target_without_doubt_has_no_nan():
    z = torch.tensor([[0.0, 800.0, -800.0]], requires_grad=True)
    target = torch.tensor([[0.0, 1.0, 0.0]])
    loss = soft_cross_entropy(z, target, torch.tensor([[True, True, False]]))
    loss.sum().backward()
    assert loss.item() == 0 and z.grad.tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("of", ["log_probs", "probs"])
def test_the_bonus_in_closed_form_is_that_of_autograd(of):
    z, p, mask = rows()
    z[0, :3], mask[0, :3] = 5.0, True  # equals share

    def bonus(z):
        return confident_cross_entropy(z, p, mask, 0.4, of) - soft_cross_entropy(z, p, mask)

    value, grad = value_and_gradient(bonus, z)
    terms = confidence_bonus(z, mask, 0.4, of)
    torch.testing.assert_close(terms.loss, value)
    torch.testing.assert_close(terms.grad, grad)
    assert (terms.grad[~mask] == 0).all()


def test_the_confidence_of_logits_is_refused():
    for function in (
        lambda: confident_cross_entropy(Z, P, ALL, 0.1, "logits"),
        lambda: confidence_bonus(Z[None], ALL[None], 0.1, "logits"),
    ):
        with pytest.raises(ValueError, match="unbounded"):
            function()
    for alpha in (-0.1, torch.inf, torch.nan):
        with pytest.raises(ValueError, match="finite"):
            confident_cross_entropy(Z, P, ALL, alpha)


@pytest.mark.usefixtures("types_are_not_checked")
def test_the_confidence_of_what_there_is_not():
    with pytest.raises(ValueError, match="of is 'prob'; choose one of log_probs, probs, logits"):
        confidence_bonus(Z[None], ALL[None], 0.1, "prob")
