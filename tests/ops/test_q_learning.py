import math

import pytest
import torch

from rlmask import ops

DTYPES = (torch.float32, torch.float64)


def rows(batch=6, actions=5, dtype=torch.float64):
    mask = torch.rand(batch, actions) < 0.5
    mask[:, 2] = True
    mask[0] = torch.arange(actions) == 2  # a single valid action
    mask[1] = True
    return torch.randn(batch, actions, dtype=dtype), mask


def autograd(loss, x):
    return torch.autograd.grad(loss.sum(), x)[0]


@pytest.mark.parametrize("z", [1, 4])
def test_the_dueling_mean_runs_over_the_valid_actions(z):
    _, mask = rows()
    value, advantage = torch.randn(6, z), torch.randn(6, 5, z)
    q = ops.dueling_values(value, advantage, mask)
    for b in range(6):
        valid = [advantage[b, a] for a in range(5) if mask[b, a]]
        mean = sum(valid) / len(valid)
        for a in range(5):
            torch.testing.assert_close(q[b, a], value[b] + advantage[b, a] - mean)
    # so the valid values have the mean V, and a single valid action has exactly V
    torch.testing.assert_close(ops.masked_mean(q[..., 0], mask), value[:, 0])
    torch.testing.assert_close(q[0, 2], value[0])


def test_what_is_said_of_invalid_actions_moves_no_valid_value():
    _, mask = rows()
    value, advantage = torch.randn(6, 1), torch.randn(6, 5, 1)
    wild = torch.where(mask.unsqueeze(-1), advantage, torch.tensor(1e30))
    q, wild_q = (ops.dueling_values(value, a, mask)[..., 0] for a in (advantage, wild))
    assert torch.equal(q[mask], wild_q[mask])


def test_the_dueling_gradient_is_that_of_autograd():
    _, mask = rows()
    value = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    advantage = torch.randn(6, 5, 3, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(6, 5, 3, dtype=torch.float64)
    expected = torch.autograd.grad(
        ops.dueling_values(value, advantage, mask), (value, advantage), grad
    )
    torch.testing.assert_close(ops.dueling_gradient(grad, mask), expected)
    # an invalid advantage moves only its own (raw) entry
    at_valid = torch.where(mask.unsqueeze(-1), grad, torch.tensor(0.0))
    assert (ops.dueling_gradient(at_valid, mask)[1][~mask] == 0).all()


def test_the_next_action_is_the_best_valid_one():
    q = torch.tensor([[1.0, 5.0, 100.0], [-3.0, -2.0, 0.0]])
    mask = torch.tensor([[True, True, False], [True, True, False]])
    other = torch.tensor([[10.0, 20.0, 1e9], [30.0, 40.0, 1e9]]).unsqueeze(-1)
    assert ops.choose_values(q, mask, q.unsqueeze(-1)).flatten().tolist() == [5.0, -2.0]
    assert ops.choose_values(q, mask, other).flatten().tolist() == [20.0, 40.0]  # double


def test_a_terminal_state_gives_exactly_the_reward():
    """Its mask may be empty, and what the network says of it anything."""
    mask = torch.tensor([[False, False], [False, True]])
    discount, reward = torch.tensor([0.0, 0.5]), torch.tensor([0.1, 0.25])
    assert ops.bootstrap_mask(mask, discount).tolist() == [[True, True], [False, True]]
    for wild in (1e30, -1e30, torch.finfo(torch.float32).max):
        q = torch.tensor([[wild, wild], [wild, 3.0]])
        best = ops.choose_values(q, ops.bootstrap_mask(mask, discount), q.unsqueeze(-1))
        target = ops.discounted(reward, discount, best)
        assert target.flatten().tolist() == [reward[0].item(), 0.25 + 0.5 * 3]


def test_values_of_picks_the_row_of_the_action():
    predictions = torch.arange(24).view(2, 3, 4).float()
    picked = ops.values_of(predictions, torch.tensor([2, 0]))
    assert torch.equal(picked, torch.stack([predictions[0, 2], predictions[1, 0]]))


def test_the_gradient_of_values_of_is_that_of_autograd():
    predictions, grad = torch.randn(2, 3, 4, requires_grad=True), torch.randn(2, 4)
    action = torch.tensor([2, 0])
    expected = torch.autograd.grad(ops.values_of(predictions, action), predictions, grad)[0]
    assert torch.equal(ops.values_of_gradient(grad, action, predictions.detach()), expected)


@pytest.mark.parametrize("delta", [None, 0.5, 2.0])
def test_the_td_loss_and_its_gradient(delta):
    prediction = torch.linspace(-3, 3, 13, dtype=torch.float64).unsqueeze(-1).requires_grad_()
    target = torch.full((13, 1), 0.25, dtype=torch.float64)
    terms = ops.td_loss(prediction, target, delta)
    error = (prediction - target).squeeze(-1).detach()
    expected = ops.huber_loss(error, delta) if delta else 0.5 * error**2
    torch.testing.assert_close(terms.loss, expected)
    torch.testing.assert_close(terms.error, error.abs())
    torch.testing.assert_close(terms.grad, autograd(terms.loss, prediction))


def projected(probs, reward, discount, support):
    """Bellemare et al. 2017, algorithm 1, entry by entry."""
    low, high, num = support[0], support[-1], len(support)
    width = (high - low) / (num - 1)
    result = [0.0] * num
    for p, z in zip(probs, support, strict=True):
        place = (min(max(reward + discount * z, low), high) - low) / width
        below, above = math.floor(place), math.ceil(place)
        if below == above:
            result[below] += p
        else:
            result[below] += p * (above - place)
            result[above] += p * (place - below)
    return result


@pytest.mark.parametrize(("low", "high", "num"), [(-10.0, 10.0, 51), (0.0, 1.0, 2), (-3.0, 7.0, 6)])
def test_the_projection_is_that_of_the_double_loop(low, high, num):
    support = torch.linspace(low, high, num, dtype=torch.float64)
    probs = torch.softmax(3 * torch.randn(40, num, dtype=torch.float64), -1)
    reward = (low + high) / 2 + (high - low) * torch.randn(40, dtype=torch.float64)
    discount = torch.rand(40, dtype=torch.float64)
    reward[0], discount[0] = 0.0, 1.0  # nothing moves
    discount[1] = 0.0
    reward[2], reward[3] = high + 1e6, low - 1e6  # beyond the ends
    discount[4], reward[4] = 0.0, float(support[-1])  # exactly at an atom
    got = ops.project_categorical(probs, reward, discount, support)
    numbers = support.tolist()
    for b in range(40):
        expected = projected(probs[b].tolist(), reward[b].item(), discount[b].item(), numbers)
        torch.testing.assert_close(got[b], torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(got.sum(-1), torch.ones(40, dtype=torch.float64))
    torch.testing.assert_close(got[0], probs[0])


@pytest.mark.parametrize(
    ("low", "high", "num"),
    [(-10, 20, 51), (-100, 20, 51), (-200, 10, 51), (-10, 5, 51), (-3, 7, 8)],
)
def test_no_rounding_makes_a_probability_negative(low, high, num):
    """(high - low) (num - 1) / (high - low) is above num - 1 in float32 for some of these."""
    support = torch.linspace(low, high, num)
    probs = torch.softmax(torch.randn(100, num), -1)
    reward = torch.linspace(low, 2 * high, 100)
    target = ops.project_categorical(probs, reward, torch.ones(100), support)
    assert (target >= 0).all()
    torch.testing.assert_close(target.sum(-1), torch.ones(100))
    terms = ops.categorical_loss(torch.randn(100, num), target)
    assert terms.error.isfinite().all()


def test_the_projection_keeps_the_mean_within_the_support():
    support = torch.linspace(-10, 10, 21, dtype=torch.float64)
    probs = torch.softmax(torch.randn(30, 21, dtype=torch.float64), -1)
    reward, discount = torch.rand(30, dtype=torch.float64), torch.full((30,), 0.9).double()
    got = ops.project_categorical(probs, reward, discount, support)
    torch.testing.assert_close(got @ support, reward + 0.9 * (probs @ support))


def test_the_categorical_loss_and_its_gradient():
    logits = torch.randn(7, 9, dtype=torch.float64, requires_grad=True)
    target = torch.softmax(torch.randn(7, 9, dtype=torch.float64), -1)
    target[0] = torch.eye(9)[3].double()  # all mass on one atom: 0 log 0
    terms = ops.categorical_loss(logits, target)
    for b in range(7):
        log_z = math.log(sum(math.exp(x) for x in logits[b].tolist()))
        pairs = list(zip(target[b].tolist(), logits[b].tolist(), strict=True))
        cross = -sum(p * (x - log_z) for p, x in pairs)
        entropy = -sum(p * math.log(p) for p, _ in pairs if p)
        assert terms.loss[b].item() == pytest.approx(cross)
        assert terms.error[b].item() == pytest.approx(cross - entropy)
    torch.testing.assert_close(terms.grad, autograd(terms.loss, logits))
    same = ops.categorical_loss(target[1:].log(), target[1:])
    torch.testing.assert_close(same.error, torch.zeros(6, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("kappa", [0.3, 1.0])
def test_the_quantile_loss_is_that_of_the_double_loop(kappa):
    quantiles = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    targets = torch.randn(5, 3, dtype=torch.float64)
    terms = ops.quantile_huber_loss(quantiles, targets, kappa)
    for b in range(5):
        loss = error = 0.0
        for i, theta in enumerate(quantiles[b].tolist()):
            tau = (i + 0.5) / 4
            for y in targets[b].tolist():
                u = y - theta
                huber = 0.5 * u * u if abs(u) <= kappa else kappa * (abs(u) - 0.5 * kappa)
                loss += abs(tau - (u < 0)) * huber / kappa / 3
                error += abs(u) / 12
        assert terms.loss[b].item() == pytest.approx(loss)
        assert terms.error[b].item() == pytest.approx(error)
    torch.testing.assert_close(terms.grad, autograd(terms.loss, quantiles))


def test_quantile_regression_finds_the_quantiles():
    """The minimum over many samples is at their quantiles (for a narrow Huber zone)."""
    samples = torch.arange(101).double().view(1, -1) / 100
    quantiles = torch.zeros(1, 4, dtype=torch.float64)
    for _ in range(4000):
        quantiles -= 1e-3 * ops.quantile_huber_loss(quantiles, samples, 1e-3).grad
    expected = torch.tensor([[0.125, 0.375, 0.625, 0.875]], dtype=torch.float64)
    torch.testing.assert_close(quantiles, expected, atol=0.02, rtol=0)  # two samples apart


def test_boltzmann_is_the_softmax_over_the_valid_actions():
    q, mask = rows()
    for temperature in (0.01, 0.5, 1.0, 30.0):
        probs = ops.boltzmann(q, mask, temperature)
        for b in range(len(q)):
            best = max(q[b, a].item() for a in range(5) if mask[b, a])
            weights = [math.exp((x - best) / temperature) for x in q[b].tolist()]
            total = sum(w for w, valid in zip(weights, mask[b], strict=True) if valid)
            for a in range(5):
                expected = weights[a] / total if mask[b, a] else 0.0
                assert probs[b, a].item() == pytest.approx(expected, rel=1e-9, abs=1e-300)
        assert (probs[~mask] == 0).all()


def test_boltzmann_is_greedy_when_cold_and_uniform_when_hot():
    q = torch.tensor([[1.0, 3.0, 3.0, 9.0]])
    mask = torch.tensor([[True, True, True, False]])
    assert ops.boltzmann(q, mask, 1e-30).tolist() == [[0.0, 0.5, 0.5, 0.0]]
    hot = ops.boltzmann(q, mask, 1e30)
    torch.testing.assert_close(hot, torch.tensor([[1 / 3, 1 / 3, 1 / 3, 0.0]]))
    extreme = torch.tensor([[-3e38, 3e38, 0.0, 3e38]])
    assert ops.boltzmann(extreme, mask, 0.01).tolist() == [[0.0, 1.0, 0.0, 0.0]]


def test_boltzmann_agrees_with_the_published_example():
    """The softened teacher of Rusu et al. 2016 at τ = 0.01: q = (1, 1.05, 0.2)."""
    q = torch.tensor([[1.0, 1.05, 0.2]], dtype=torch.float64)
    probs = ops.boltzmann(q, torch.ones(1, 3, dtype=torch.bool), 0.01)
    # 1 / (1 + e^5), the third is e^-85 of the second
    expected = 1 / (1 + math.exp(5))
    assert probs[0, 0].item() == pytest.approx(expected)
    assert expected == pytest.approx(0.00669285, abs=1e-8)
    assert probs[0, 2].item() < 1e-30


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature"):
        ops.boltzmann(torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool), temperature)


def test_the_gradient_of_boltzmann_is_zero_where_invalid():
    q, mask = rows()
    q.requires_grad_()
    grad = autograd(ops.boltzmann(q, mask, 0.5) * torch.randn(6, 5), q)
    assert (grad[~mask] == 0).all() and grad.isfinite().all() and (grad != 0).any()


def test_half_precision_is_upcast():
    q, mask = rows(dtype=torch.float32)
    assert ops.boltzmann(q.half(), mask, 0.5).dtype == torch.float32
