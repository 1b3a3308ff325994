import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlmask import ops

F64 = torch.float64

# The example with which the losses are explained: six union actions, three of them valid.
Q = torch.tensor([[1, 2, 9, 0.5, -3, 4]], dtype=F64)
VALID = [0, 1, 3]
MASK = torch.tensor([[True, True, False, True, False, False]])
Z = torch.tensor([[0.2, -0.1, 5, 0.7, 2, -4]], dtype=F64)

SOFTMAX_LOSSES = [
    ops.policy_regression_loss,
    ops.reverse_kl_loss,
    ops.expected_entropy_loss,
]


def softmax(x):
    e = np.exp(np.asarray(x) - np.max(x))
    return e / e.sum()


@pytest.mark.parametrize(
    ("temperature", "cross_entropy", "kl", "grad"),
    [
        (1.0, 1.33913139, 0.43317214, [0.06380143, -0.40997158, 0, 0.34617015, 0, 0]),
        (0.1, 1.52068020, 1.52017593, [0.29497993, -0.78139416, 0, 0.48641423, 0, 0]),
        (0.01, 1.52069407, 1.52069407, [0.29502533, -0.78143986, 0, 0.48641453, 0, 0]),
    ],
)
def test_policy_regression_of_a_worked_example(temperature, cross_entropy, kl, grad):
    teacher = softmax(Q[0, VALID].numpy() / temperature)
    student = softmax(Z[0, VALID].numpy())
    entropy = -sum(p * math.log(p) for p in teacher if p > 0)
    by_hand = -(teacher * np.log(student)).sum()
    assert by_hand == pytest.approx(cross_entropy, abs=1e-6)
    assert by_hand - entropy == pytest.approx(kl, abs=1e-6)

    terms = ops.policy_regression_loss(Z, Q, MASK, temperature)
    assert terms.loss.item() == pytest.approx(kl, abs=1e-6)
    np.testing.assert_allclose(terms.grad[0], grad, atol=1e-6, rtol=0)
    np.testing.assert_allclose(terms.grad[0, VALID], student - teacher, atol=1e-12, rtol=0)
    assert (terms.grad[~MASK] == 0).all()
    assert ops.masked_argmax(Q, MASK).item() == 1
    assert Q.argmax().item() == 2


def test_feature_regression_of_a_worked_example():
    h = torch.tensor([[1.0, 2]], dtype=F64, requires_grad=True)
    weight = torch.tensor([[1.0, 0], [0, 1], [1, 1]], dtype=F64, requires_grad=True)
    target = torch.tensor([[0.0, 1, 5]], dtype=F64)
    mapped = h @ weight.T
    loss, grad = ops.feature_regression_loss(mapped.detach(), target)
    assert loss.tolist() == [6]  # 1 + 1 + 4
    mapped.backward(grad)
    assert h.grad.tolist() == [[-2, -2]]
    assert weight.grad.tolist() == [[2, 4], [2, 4], [-4, -8]]


def test_the_losses_of_policy_distillation_of_a_worked_example():
    q = torch.tensor([[1, 1.05, 0.2]], dtype=F64)
    s = torch.tensor([[0.3, 0.1, -0.2]], dtype=F64)
    mask = torch.ones(1, 3, dtype=torch.bool)
    nll = ops.argmax_regression_loss(s, q, mask)
    assert nll.loss.item() == pytest.approx(1.08593932, abs=1e-6)
    squared = ops.q_regression_loss(s, q, mask)
    assert squared.loss.item() == pytest.approx(0.7**2 + 0.95**2 + 0.4**2, abs=1e-12)  # 1.5525
    published = {0.01: 1.04442114, 0.1: 0.34645228, 1.0: 0.02060394, 10.0: 0.01434562}
    for temperature, expected in published.items():
        kl = ops.policy_regression_loss(s, q, mask, temperature).loss.item()
        assert kl == pytest.approx(expected, abs=1e-6)
    cold = ops.boltzmann(q, mask, 0.01)[0]
    np.testing.assert_allclose(cold, [0.00669285, 0.99330715, 0], atol=1e-6, rtol=0)


def random_case(seed, rows=64, actions=5, scale=3.0):
    """Scores of student and teacher, and masks, some of a single action."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, actions, generator=generator) < 0.6
    mask[torch.arange(rows), torch.randint(actions, (rows,), generator=generator)] = True
    mask[:4] = torch.eye(actions, dtype=torch.bool)[:4]
    draw = torch.randn(2, rows, actions, generator=generator, dtype=F64) * scale
    return draw[0], draw[1], mask


def by_autograd(name, logits, scores, mask, temperature):
    """The losses, from their definitions."""
    minus_inf = torch.tensor(-math.inf, dtype=F64)
    log_e = torch.log_softmax(torch.where(mask, scores / temperature, minus_inf), -1)
    log_e = torch.where(mask, log_e, 0.0)
    log_p = torch.where(mask, torch.log_softmax(torch.where(mask, logits, minus_inf), -1), 0.0)
    e, p = torch.where(mask, log_e.exp(), 0.0), torch.where(mask, log_p.exp(), 0.0)
    bounded = log_e.clamp(min=-30)
    everywhere = torch.log_softmax(logits, -1)
    best = torch.where(mask, scores, minus_inf).argmax(-1, keepdim=True)
    return {
        "policy": (e * (log_e - log_p)).sum(-1),
        "unmasked": (e * (log_e - everywhere)).sum(-1),
        "reverse": (p * (log_p - bounded)).sum(-1),
        "expected_entropy": -(p * bounded).sum(-1),
        "argmax": -log_p.gather(-1, best).squeeze(-1),
        "values": (torch.where(mask, logits - scores, 0.0) ** 2).sum(-1),
    }[name]


def written_out(name, logits, scores, mask, temperature):
    """The same, with gradient."""
    if name == "argmax":
        return ops.argmax_regression_loss(logits, scores, mask)
    if name == "values":
        return ops.q_regression_loss(logits, scores, mask)
    loss = {
        "policy": ops.policy_regression_loss,
        "unmasked": ops.unmasked_policy_regression_loss,
        "reverse": ops.reverse_kl_loss,
        "expected_entropy": ops.expected_entropy_loss,
    }[name]
    return loss(logits, scores, mask, temperature)


NAMES = ["policy", "unmasked", "reverse", "expected_entropy", "argmax", "values"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("temperature", [0.05, 1.0, 7.0])
def test_gradients_are_those_of_autograd(name, temperature):
    logits, scores, mask = random_case(0)
    variable = logits.clone().requires_grad_()
    loss = by_autograd(name, variable, scores, mask, temperature)
    loss.sum().backward()
    terms = written_out(name, logits, scores, mask, temperature)
    torch.testing.assert_close(terms.loss, loss.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(terms.grad, variable.grad, rtol=1e-9, atol=1e-12)
    if name != "unmasked":
        assert (terms.grad[~mask] == 0).all()
    else:  # this is what the mask is good for
        assert (terms.grad[~mask] > 0).all()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "unmasked"])
def test_nothing_depends_on_what_is_invalid(name):
    logits, scores, mask = random_case(1)
    expected = written_out(name, logits, scores, mask, 0.5)
    for junk in (1e30, -1e30, math.inf, -math.inf, math.nan):
        spoilt = [torch.where(mask, x, junk) for x in (logits, scores)]
        terms = written_out(name, *spoilt, mask, 0.5)
        assert (terms.loss == expected.loss).all()
        assert (terms.grad == expected.grad).all()


@pytest.mark.parametrize("loss", SOFTMAX_LOSSES)
def test_a_constant_on_the_valid_scores_changes_nothing(loss):
    logits, scores, mask = random_case(2)
    expected = loss(logits, scores, mask, 0.5)
    moved = loss(torch.where(mask, logits + 11, logits), scores - 7, mask, 0.5)
    torch.testing.assert_close(moved.loss, expected.loss, rtol=0, atol=1e-12)
    torch.testing.assert_close(moved.grad, expected.grad, rtol=0, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), temperature=st.floats(0.01, 100))
def test_divergences_are_not_negative_and_0_where_the_policies_are_equal(seed, temperature):
    logits, scores, mask = random_case(seed, rows=8)
    for loss in (ops.policy_regression_loss, ops.reverse_kl_loss):
        assert (loss(logits, scores, mask, temperature).loss > -1e-12).all()
        equal = loss(scores / temperature, scores, mask, temperature)
        # below e^-30 the reverse one takes the teacher for less unlikely than it is
        assert equal.loss.abs().max() < 1e-10
        assert equal.grad.abs().max() < 1e-10


@pytest.mark.parametrize("name", NAMES)
def test_extreme_scores_stay_finite(name):
    logits, scores, mask = random_case(3, scale=1e4)
    for dtype in (torch.float32, F64):
        terms = written_out(name, logits.to(dtype), scores.to(dtype), mask, 0.01)
        assert terms.loss.isfinite().all()
        assert terms.grad.isfinite().all()


def test_a_teacher_may_rule_an_action_out():
    scores = torch.tensor([[0.0, -math.inf, 1.0]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    logits = torch.zeros(1, 3)
    p = torch.tensor([[1.0, 0.0, math.e]]) / (1 + math.e)
    terms = ops.policy_regression_loss(logits, scores, mask, 1.0)
    torch.testing.assert_close(terms.grad, 1 / 3 - p)
    assert ops.expected_entropy_loss(logits, scores, mask, 1.0).loss.item() > 10  # 30 / 3 and more


@pytest.mark.parametrize("loss", SOFTMAX_LOSSES)
def test_each_row_may_have_its_own_temperature(loss):
    logits, scores, mask = random_case(4)
    temperature = torch.linspace(0.1, 4, len(logits), dtype=F64)
    terms = loss(logits, scores, mask, temperature)
    for row, own in enumerate(temperature.tolist()):
        one = loss(logits[row : row + 1], scores[row : row + 1], mask[row : row + 1], own)
        torch.testing.assert_close(terms.loss[row], one.loss[0], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(terms.grad[row], one.grad[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_a_temperature_is_a_positive_number(temperature):
    logits, scores, mask = random_case(5)
    for given_as in (temperature, torch.full((len(logits),), temperature)):
        with pytest.raises(ValueError, match="temperature"):
            ops.policy_regression_loss(logits, scores, mask, given_as)


def test_the_gap_is_between_the_best_two_valid_actions():
    scores = torch.tensor([[3.0, 9.0, 1.0], [2.0, 2.0, 0.0], [4.0, 5.0, 6.0]])
    mask = torch.tensor([[True, False, True], [True, True, True], [False, True, False]])
    assert ops.action_gap(scores, mask).tolist() == [2.0, 0.0, math.inf]
    assert ops.action_gap(scores[:, :1], mask[:, :1]).tolist() == [math.inf] * 3


def test_the_automatic_temperature_is_a_quarter_of_the_median_gap():
    gaps = torch.tensor([0.0, 0.4, math.inf, 0.8, 100.0])
    assert ops.auto_temperature(gaps) == pytest.approx(0.2)
    # then the best action is e^4 times as likely as the second
    probs = ops.boltzmann(torch.tensor([[0.8, 0.0]]), torch.ones(1, 2, dtype=torch.bool), 0.2)[0]
    assert (probs[0] / probs[1]).item() == pytest.approx(math.exp(4), rel=1e-5)
    with pytest.raises(ValueError, match="alike"):
        ops.auto_temperature(torch.tensor([0.0, math.inf]))


def test_the_invalid_mass_is_what_a_softmax_without_mask_gives_away():
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0]]).log()
    mask = torch.tensor([[True, False, False, True]])
    assert ops.invalid_mass(logits, mask).item() == pytest.approx(0.5)  # 2 and 3 of 10
    assert ops.invalid_mass(logits, torch.ones_like(mask)).item() == 0


def test_half_precision_is_computed_in_single():
    logits, scores, mask = random_case(6)
    expected = ops.policy_regression_loss(logits.bfloat16().float(), scores.float(), mask, 1.0)
    terms = ops.policy_regression_loss(logits.bfloat16(), scores.float(), mask, 1.0)
    assert terms.loss.dtype == torch.float32
    torch.testing.assert_close(terms.loss, expected.loss)
    assert terms.grad.dtype == torch.bfloat16
