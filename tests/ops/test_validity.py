"""Numbers: reference/distillation.md, section 6, T6."""

import numpy as np
import pytest
import torch

from rlmask import ops

F64 = torch.float64
VALID = torch.tensor([[True, False, True, False]])
PROB = torch.tensor([[0.8, 0.3, 0.4, 0.7]], dtype=F64)
ALL = torch.ones_like(VALID)
LOSSES = {"precision": ops.precision_loss, "recall": ops.recall_loss, "f_beta": ops.f_beta_loss}


def loss_and_grad(name, prob, valid=VALID, labelled=None, *, hard=False, slope=None, **kwargs):
    """Return ratio (1 - loss) and its gradient by the probabilities."""
    count = {k: kwargs.pop(k) for k in ("weight", "per_action") if k in kwargs}
    prob = prob.clone().requires_grad_()
    shown = ops.rounded(prob, slope=slope) if hard else prob
    labelled = torch.ones_like(valid) if labelled is None else labelled
    ratio = 1 - LOSSES[name](ops.soft_counts(shown, valid, labelled, **count), **kwargs)
    (grad,) = torch.autograd.grad(ratio, prob)
    return ratio.item(), grad


def test_soft_counts_of_a_worked_example():
    counts = ops.soft_counts(PROB, VALID, ALL)
    np.testing.assert_allclose([c.item() for c in counts], [1.2, 1.0, 0.8, 2, 2], atol=1e-12)


@pytest.mark.parametrize(
    ("name", "value", "grad"),
    [
        ("precision", 0.54545455, [0.20661157, -0.24793388, 0.20661157, -0.24793388]),
        ("recall", 0.6, [0.5, 0, 0.5, 0]),
        ("f_beta", 0.57142857, [0.34013605, -0.13605442, 0.34013605, -0.13605442]),
    ],
)
def test_soft_ratios_of_a_worked_example(name, value, grad):
    ratio, got = loss_and_grad(name, PROB, smoothing=0.0)
    assert ratio == pytest.approx(value, abs=1e-6)
    np.testing.assert_allclose(got[0], grad, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("name", "slope", "grad"),
    [
        ("precision", None, [0.25, -0.25, 0.25, -0.25]),
        ("recall", None, [0.5, 0, 0.5, 0]),
        ("f_beta", None, [0.375, -0.125, 0.375, -0.125]),
        ("f_beta", 10.0, [0.16941247, -0.13124198, 0.73729475, -0.13124198]),
    ],
)
def test_rounded_ratios_of_a_worked_example(name, slope, grad):
    ratio, got = loss_and_grad(name, PROB, hard=True, slope=slope, smoothing=0.0)
    assert ratio == pytest.approx(0.5, abs=1e-12)
    np.testing.assert_allclose(got[0], grad, atol=1e-6, rtol=0)


def test_rounding_itself_has_no_gradient_and_ours_has():
    prob = PROB.clone().requires_grad_()
    counts = ops.soft_counts(prob.round(), VALID, ALL)
    (grad,) = torch.autograd.grad(ops.f_beta_loss(counts), prob)
    assert (grad == 0).all()
    for slope in (None, 10.0):
        _, grad = loss_and_grad("f_beta", PROB, hard=True, slope=slope)
        assert (grad != 0).all()


def test_rounding_is_exactly_0_or_1():
    prob = torch.tensor([[0.1, 0.5, 0.50001, 1 / 3]])
    assert ops.rounded(prob).tolist() == [[0.0, 0.0, 1.0, 0.0]]
    assert ops.rounded(prob, threshold=0.2, slope=7.0).tolist() == [[0.0, 1.0, 1.0, 1.0]]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("smoothing", [0.0, 1.0])
@pytest.mark.parametrize("per_action", [False, True])
def test_gradients_are_those_of_finite_differences(name, smoothing, per_action):
    draws = torch.Generator().manual_seed(1)
    prob = torch.rand(6, 3, generator=draws, dtype=F64)
    valid = torch.rand(6, 3, generator=draws) < 0.5
    labelled = torch.rand(6, 3, generator=draws) < 0.7
    weight = torch.rand(6, 3, generator=draws, dtype=F64)

    def loss(p):
        counts = ops.soft_counts(p, valid, labelled, weight=weight, per_action=per_action)
        return LOSSES[name](counts, smoothing=smoothing)

    assert torch.autograd.gradcheck(loss, prob.requires_grad_(), eps=1e-6, atol=1e-7)


def test_f_beta_is_between_precision_and_recall():
    precision, _ = loss_and_grad("precision", PROB, smoothing=0.0)
    recall, _ = loss_and_grad("recall", PROB, smoothing=0.0)
    for beta in (0.5, 1.0, 2.0):
        value, _ = loss_and_grad("f_beta", PROB, beta=beta, smoothing=0.0)
        by_hand = (1 + beta**2) * precision * recall / (beta**2 * precision + recall)
        assert value == pytest.approx(by_hand, abs=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 1.0])
def test_nothing_predicted_is_precise_and_the_gradient_is_bounded(smoothing):
    value, grad = loss_and_grad("precision", PROB * 0.1, hard=True, smoothing=smoothing)
    assert value == 1
    # s = 1: (y (TP + FP + 1) - (TP + 1)) / (TP + FP + 1)² = y - 1
    expected = [0.0, -1.0, 0.0, -1.0] if smoothing else [0.0] * 4
    assert grad[0].tolist() == expected


@pytest.mark.parametrize("name", LOSSES)
def test_smoothed_gradients_are_at_most_two_however_little_is_predicted(name):
    _, grad = loss_and_grad(name, PROB * 1e-30)
    assert grad.abs().max() <= 2
    assert grad.isfinite().all()


@pytest.mark.parametrize("smoothing", [0.0, 1.0])
def test_without_positives_recall_says_nothing(smoothing):
    none = torch.zeros_like(VALID)
    assert loss_and_grad("recall", PROB, none, smoothing=smoothing)[0] == 1
    value, grad = loss_and_grad("f_beta", PROB * 0, none, smoothing=smoothing)
    assert value == 1
    assert grad.isfinite().all()


@pytest.mark.parametrize("per_action", [False, True])
def test_where_all_is_valid_precision_says_nothing(per_action):
    value, grad = loss_and_grad("precision", PROB, ALL, smoothing=0.0, per_action=per_action)
    assert value == 1
    assert (grad == 0).all()


def test_unlabelled_entries_play_no_part_not_even_nan():
    prob = torch.cat([PROB, torch.full((1, 4), torch.nan, dtype=F64)])
    valid = torch.cat([VALID, ALL])
    labelled = torch.cat([ALL, ~ALL])
    for name in LOSSES:
        value, grad = loss_and_grad(name, prob, valid, labelled)
        alone, alone_grad = loss_and_grad(name, PROB)
        assert value == alone
        assert torch.equal(grad[:1], alone_grad)
        assert (grad[1] == 0).all()
    logits = prob.clone().requires_grad_()
    loss = ops.validity_bce(logits, valid, labelled)
    (grad,) = torch.autograd.grad(loss, logits)
    assert loss.item() == ops.validity_bce(PROB, VALID, ALL).item()
    assert (grad[1] == 0).all()


def test_the_mean_over_actions_leaves_out_those_without_a_say():
    # action 0: one valid at 0.8, one invalid at 0.6; action 1 has no valid label; 2 no label
    prob = torch.tensor([[0.8, 0.9, 0.5], [0.6, 0.3, 0.5]], dtype=F64)
    valid = torch.tensor([[True, False, True], [False, False, True]])
    labelled = torch.tensor([[True, True, False], [True, True, False]])
    both = {"per_action": True, "smoothing": 0.0}
    precision, _ = loss_and_grad("precision", prob, valid, labelled, **both)
    recall, grad = loss_and_grad("recall", prob, valid, labelled, **both)
    assert precision == pytest.approx((0.8 / 1.4 + 0) / 2)
    assert recall == pytest.approx(0.8)
    assert (grad[:, 1:] == 0).all()


def test_weights_are_counts():
    twice = torch.tensor([[2.0, 1.0, 1.0, 1.0]], dtype=F64)
    prob, valid = PROB[:, [0, 0, 1, 2, 3]], VALID[:, [0, 0, 1, 2, 3]]
    for name in LOSSES:
        repeated, _ = loss_and_grad(name, prob, valid)
        weighted, _ = loss_and_grad(name, PROB, weight=twice)
        assert weighted == pytest.approx(repeated, abs=1e-12)
    repeated = ops.validity_bce(prob, valid, torch.ones_like(valid))
    weighted = ops.validity_bce(PROB, VALID, ALL, weight=twice)
    assert weighted.item() == pytest.approx(repeated.item(), abs=1e-12)


def test_bce_by_hand_and_at_the_ends():
    z = torch.tensor([[1.5, -0.5]], dtype=F64)
    valid = torch.tensor([[True, False]])
    p = 1 / (1 + np.exp(-z.numpy()[0]))
    expected = -(np.log(p[0]) + np.log(1 - p[1])) / 2
    every = torch.ones_like(valid)
    assert ops.validity_bce(z, valid, every).item() == pytest.approx(expected, abs=1e-12)
    assert ops.validity_bce(z * 1e4, valid, every).item() == 0
    assert ops.validity_bce(z, valid, ~every).item() == 0


def test_ridge_is_that_of_the_normal_equations_and_elimination_its_lower_bound():
    draws = np.random.default_rng(0)
    features, action = draws.normal(size=(40, 3)), draws.integers(0, 4, 40)
    features[:, 2] = 1
    invalid = draws.random(40) < 0.8
    action[action == 3] = 0  # never tried
    ridge = ops.fit_ridge(
        torch.tensor(features), torch.tensor(action), torch.tensor(invalid), 4, strength=0.1
    )
    seen = draws.normal(size=(5, 3)) * [0.3, 0.3, 0] + [0, 0, 1]
    out = ops.eliminated(torch.tensor(seen), ridge, beta=0.5, threshold=0.2)
    for a in range(4):
        own = features[action == a]
        v = 0.1 * np.eye(3) + own.T @ own
        theta = np.linalg.solve(v, own.T @ invalid[action == a].astype(float))
        np.testing.assert_allclose(ridge.theta[a], theta, atol=1e-10)
        spread = np.einsum("bf,fg,bg->b", seen, np.linalg.inv(v), seen)
        lower = seen @ theta - np.sqrt(0.5 * spread)
        assert out[:, a].tolist() == (lower > 0.2).tolist()
    assert out.any()
    assert not out[:, 3].any()
    wide = ops.eliminated(torch.tensor(seen), ridge, beta=1e6, threshold=0.2)
    assert not wide.any()


TWO = torch.tensor([[1.0, 2.0], [0.5, -1.0]], dtype=F64)
LABELS = torch.tensor([0, 1]), torch.tensor([True, False])


def test_ridge_is_where_the_features_are():
    """Not on the default device, which here is one without numbers."""
    expected = ops.fit_ridge(TWO, *LABELS, 2, strength=0.5)
    with torch.device("meta"):
        found = ops.fit_ridge(TWO, *LABELS, 2, strength=0.5)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize("strength", [0.0, -1.0, float("inf"), float("nan")])
def test_a_ridge_without_an_inverse_is_an_error(strength):
    with pytest.raises(ValueError, match=r"strength is .* positive"):
        ops.fit_ridge(TWO, *LABELS, 2, strength=strength)


@pytest.mark.parametrize("beta", [-0.1, float("nan")])
def test_a_bound_without_a_width_is_an_error(beta):
    ridge = ops.fit_ridge(TWO, *LABELS, 2, strength=0.5)
    with pytest.raises(ValueError, match=r"beta is .* negative"):
        ops.eliminated(TWO, ridge, beta=beta, threshold=0.2)
