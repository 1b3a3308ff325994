import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plain_modules import without_shape_checks
from torch.autograd import gradcheck
from torch.testing import assert_close

from rlmask.ops import EmptyMaskError, checks, losses, masking, rows, set_debug
from rlmask.ops.losses import (
    approximate_kl,
    clipped_surrogate_loss,
    huber_loss,
    masked_ppo_loss,
    value_loss,
)

CLIP_RANGE = 0.2
numbers = st.floats(-20, 20)
BATCHES = [(), (50,), (5, 4)]


def random_tensors(num, batch=(50,)):
    return torch.randn(num, *batch, dtype=torch.float64)


def scalar(value):
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


# --- clipped surrogate


@pytest.mark.parametrize("batch", BATCHES)
def test_surrogate_at_ratio_one_is_minus_the_advantage(batch):
    log_prob, advantage = random_tensors(2, batch)
    loss = clipped_surrogate_loss(log_prob, log_prob, advantage, CLIP_RANGE)
    assert torch.equal(loss, -advantage)


def test_surrogate_gradient_at_ratio_one_is_the_policy_gradient():
    # d/dz of -A log softmax(z)_a = A (p - 1_a)
    logits, (advantage,) = torch.randn(30, 4, dtype=torch.float64), random_tensors(1, (30,))
    action = torch.randint(4, (30,))
    logits.requires_grad_()
    log_prob = torch.log_softmax(logits, -1).gather(-1, action.unsqueeze(-1)).squeeze(-1)
    loss = clipped_surrogate_loss(log_prob, log_prob.detach(), advantage, CLIP_RANGE)
    (gradient,) = torch.autograd.grad(loss.mean(), logits)
    one_hot = torch.nn.functional.one_hot(action, 4)
    expected = advantage.unsqueeze(-1) * (logits.softmax(-1) - one_hot) / 30
    assert_close(gradient, expected.detach())


@pytest.mark.parametrize("ratio", [0.5, 0.79, 0.81, 1.0, 1.19, 1.21, 2.0])
@pytest.mark.parametrize("advantage", [-3.0, 0.0, 2.0])
def test_surrogate_is_flat_outside_the_clip_on_the_clipped_side_only(ratio, advantage):
    log_prob = scalar(math.log(ratio))
    loss = clipped_surrogate_loss(log_prob, scalar(0.0), scalar(advantage), CLIP_RANGE)
    (gradient,) = torch.autograd.grad(loss, log_prob)
    clipped = (advantage > 0 and ratio > 1 + CLIP_RANGE) or (
        advantage < 0 and ratio < 1 - CLIP_RANGE
    )
    if clipped:
        bound = 1 + CLIP_RANGE if ratio > 1 else 1 - CLIP_RANGE
        assert loss.item() == pytest.approx(-bound * advantage)
        assert gradient == 0
    else:
        assert loss.item() == pytest.approx(-ratio * advantage)
        assert gradient.item() == pytest.approx(-ratio * advantage)  # d ratio = ratio d log_prob


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("log_ratio", [50.0, 80.0, 100.0, 1e4])
def test_surrogate_stays_flat_where_the_ratio_overflows(dtype, log_ratio):
    log_prob = torch.tensor(0.0, dtype=dtype, requires_grad=True)
    old_log_prob, advantage = torch.tensor([-log_ratio, 1.0], dtype=dtype)
    loss = clipped_surrogate_loss(log_prob, old_log_prob, advantage, CLIP_RANGE)
    assert loss.item() == pytest.approx(-(1 + CLIP_RANGE))
    assert torch.autograd.grad(loss, log_prob)[0] == 0


@pytest.mark.parametrize("log_ratio", [50.0, 100.0])
def test_surrogate_still_pushes_a_bad_action_down_where_the_ratio_overflows(log_ratio):
    log_prob = torch.tensor(0.0, requires_grad=True)
    old_log_prob, advantage = torch.tensor([-log_ratio, -1.0])
    loss = clipped_surrogate_loss(log_prob, old_log_prob, advantage, CLIP_RANGE)
    (gradient,) = torch.autograd.grad(loss, log_prob)
    assert gradient > 0 and gradient.isfinite()


@given(numbers, st.floats(-3, 3), numbers, st.floats(0.01, 0.9))
def test_surrogate_is_the_formula_and_a_lower_bound(old_log_prob, change, advantage, clip_range):
    log_prob = old_log_prob + change
    ratio = math.exp(log_prob - old_log_prob)
    clipped = min(max(ratio, 1 - clip_range), 1 + clip_range)
    loss = clipped_surrogate_loss(
        scalar(log_prob), scalar(old_log_prob), scalar(advantage), clip_range
    )
    assert loss.item() == pytest.approx(-min(ratio * advantage, clipped * advantage), abs=1e-12)
    assert loss.item() >= -ratio * advantage - 1e-9  # pessimistic: never better than unclipped


# --- value loss


@given(numbers, numbers, numbers, st.one_of(st.none(), st.floats(0.01, 10)))
def test_value_loss_is_the_formula(value, old_value, target, clip_range):
    expected = 0.5 * (value - target) ** 2
    if clip_range is not None:
        clipped = min(max(value, old_value - clip_range), old_value + clip_range)
        expected = max(expected, 0.5 * (clipped - target) ** 2)
    loss = value_loss(scalar(value), scalar(old_value), scalar(target), clip_range)
    assert loss.item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("batch", BATCHES)
def test_value_loss_gradient_is_the_error(batch):
    value, old_value, target = random_tensors(3, batch)
    value.requires_grad_()
    loss = value_loss(value, old_value, target, None)
    (gradient,) = torch.autograd.grad(loss.sum(), value)
    assert_close(gradient, (value - target).detach())


@pytest.mark.parametrize(
    ("value", "target", "flat"),
    [(0.1, 2.0, False), (1.0, 2.0, True), (1.0, -2.0, False), (-1.0, -2.0, True)],
)
def test_value_loss_is_flat_once_the_clip_range_towards_the_target_is_used_up(value, target, flat):
    old_value, clip_range = 0.0, 0.5
    value = scalar(value)
    loss = value_loss(value, scalar(old_value), scalar(target), clip_range)
    (gradient,) = torch.autograd.grad(loss, value)
    assert gradient == (0 if flat else value - target)


# --- Huber loss


@given(st.floats(-50, 50), st.floats(0.1, 10))
def test_huber_loss_is_the_piecewise_formula(error, delta):
    inside = abs(error) <= delta
    expected = 0.5 * error**2 if inside else delta * (abs(error) - 0.5 * delta)
    x = scalar(error)
    loss = huber_loss(x, delta)
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    (gradient,) = torch.autograd.grad(loss, x)
    assert gradient.item() == pytest.approx(min(max(error, -delta), delta), abs=1e-12)


@pytest.mark.parametrize("delta", [0.5, 1.0, 3.0])
def test_huber_loss_is_that_of_torch(delta):
    (error,) = 3 * random_tensors(1)
    expected = torch.nn.functional.huber_loss(
        error, torch.zeros_like(error), reduction="none", delta=delta
    )
    assert_close(huber_loss(error, delta), expected)


@pytest.mark.parametrize("delta", [0.5, 1.0])
def test_huber_loss_at_zero_and_at_the_joint(delta):
    error = torch.tensor([-delta, 0.0, delta], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(huber_loss(error, delta).sum(), error)
    assert torch.equal(gradient, error.detach())


def test_huber_loss_default_delta_is_one():
    (error,) = 3 * random_tensors(1)
    assert torch.equal(huber_loss(error), huber_loss(error, 1.0))
    assert not torch.equal(huber_loss(error), huber_loss(error, 2.0))


# --- approximate KL


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_approximate_kl_is_never_negative(dtype):
    scale = 10 ** torch.empty(200_000).uniform_(-18, 1.5)
    log_ratio = (torch.randn(200_000) * scale).to(dtype)
    estimate = approximate_kl(log_ratio)
    assert (estimate >= 0).all()


def test_approximate_kl_of_equal_policies_is_zero():
    (log_prob,) = random_tensors(1)
    assert (approximate_kl(log_prob - log_prob) == 0).all()


@pytest.mark.parametrize("num_actions", [2, 5, 20])
def test_approximate_kl_averages_to_the_exact_kl(num_actions):
    log_p, log_p_old = torch.log_softmax(random_tensors(2, (30, num_actions)), -1)
    average = (log_p_old.exp() * approximate_kl(log_p - log_p_old)).sum(-1)
    for row in range(30):
        pairs = zip(log_p[row].tolist(), log_p_old[row].tolist(), strict=True)
        exact = sum(math.exp(old) * (old - new) for new, old in pairs)
        assert float(average[row]) == pytest.approx(exact, abs=1e-12)


@given(st.floats(-5, 5), st.floats(-5, 5))
def test_approximate_kl_is_the_formula(log_prob, old_log_prob):
    log_ratio = log_prob - old_log_prob
    estimate = approximate_kl(scalar(log_prob) - scalar(old_log_prob))
    assert estimate.item() == pytest.approx(math.exp(log_ratio) - 1 - log_ratio, abs=1e-12)


# --- the loss of PPO in closed form; test_ppo_loss.py compares it with autograd

PPO = {
    "clip_range": CLIP_RANGE,
    "value_clip_range": 0.3,
    "value_coef": 0.7,
    "entropy_coef": 0.05,
    "normalize_entropy": False,
}


def ppo_minibatch(size=40, parts=(), actions=5, dtype=torch.float64):
    """Positional arguments of `masked_ppo_loss`, near the policy that drew the actions."""
    logits, change = torch.randn(2, size, *parts, actions, dtype=dtype)
    mask = torch.rand(logits.shape) < 0.6
    mask = mask.scatter(-1, torch.randint(actions, (size, *parts, 1)), True)
    action, old_log_prob = masking.masked_sample(logits + 0.3 * change, mask)
    old_log_prob = old_log_prob.sum(-1) if parts else old_log_prob
    value, old_value, advantage, value_target = torch.randn(4, size, dtype=old_log_prob.dtype)
    old_value = value + 0.5 * old_value
    return [logits, value, mask, action, old_log_prob, old_value, advantage, value_target]


def test_ppo_value_gradient_within_the_clip_range_is_the_error():
    # in float32 old + (new - old) is not quite new: a rounding that must not look like clipping
    minibatch = ppo_minibatch(2000, dtype=torch.float32)
    value, old_value, value_target = minibatch[1], minibatch[5], minibatch[7]
    minibatch[5] = old_value = value + 0.29 * old_value.tanh()
    assert (old_value + (value - old_value) != value).any()
    _, _, grad_value = masked_ppo_loss(*minibatch, **PPO)
    assert_close(grad_value, PPO["value_coef"] * (value - value_target) / 2000)


@pytest.mark.parametrize("parts", [(), (3,)])
def test_ppo_loss_leaves_its_inputs_alone(parts):
    minibatch = ppo_minibatch(parts=parts)
    before = [x.clone() for x in minibatch]
    masked_ppo_loss(*minibatch, **PPO)
    assert_close(minibatch, before, rtol=0, atol=0)


@pytest.mark.parametrize("old_log_prob", [-1.0, torch.finfo(torch.float64).min])
def test_ppo_gradient_of_an_invalid_logit_is_zero_for_an_invalid_action_too(old_log_prob):
    minibatch = ppo_minibatch()
    minibatch[3] = minibatch[2].int().argmin(-1)  # the first invalid action, if there is one
    minibatch[4] = torch.full((40,), old_log_prob, dtype=torch.float64)
    _, grad_logits, _ = masked_ppo_loss(*minibatch, **PPO)
    assert (grad_logits[~minibatch[2]] == 0).all()


@pytest.fixture
def debug():
    set_debug(True)
    yield
    set_debug(False)


@pytest.mark.parametrize("parts", [(), (3,)])
def test_ppo_loss_under_debug_refuses_an_empty_row(debug, parts):
    minibatch = ppo_minibatch(parts=parts)
    minibatch[2][(7, *(1 for _ in parts))] = False
    with pytest.raises(EmptyMaskError):
        masked_ppo_loss(*minibatch, **PPO)


# --- all losses, as functions of three batches


CALLS = {
    "clipped_surrogate": lambda losses, x, y, z: losses.clipped_surrogate_loss(x, y, z, 0.2),
    "value": lambda losses, x, y, z: losses.value_loss(x, y, z, None),
    "value_clipped": lambda losses, x, y, z: losses.value_loss(x, y, z, 0.2),
    "huber": lambda losses, x, y, z: losses.huber_loss(x - y),
    "approximate_kl": lambda losses, x, y, z: losses.approximate_kl(x - y),
}
all_losses = pytest.mark.parametrize("name", CALLS)


@all_losses
def test_gradcheck(name):
    x, y, z = random_tensors(3, (10,))
    assert gradcheck(lambda x: CALLS[name](losses, x, y, z), x.requires_grad_())


@all_losses
def test_vmap_agrees(name):
    x, y, z = random_tensors(3, (4, 6))
    call = partial(CALLS[name], losses)
    assert_close(torch.func.vmap(call)(x, y, z), call(x, y, z))


@pytest.fixture
def plain_losses():
    with without_shape_checks(rows, checks, masking, losses) as (*_, module):
        yield module


def test_compiled_ppo_loss_agrees(plain_losses):
    minibatch = ppo_minibatch()
    compiled = torch.compile(
        lambda *x: plain_losses.masked_ppo_loss(*x, **PPO), fullgraph=True, backend="aot_eager"
    )
    assert_close(compiled(*minibatch), plain_losses.masked_ppo_loss(*minibatch, **PPO))


@all_losses
def test_compiled_agrees(plain_losses, name):
    x, y, z = random_tensors(3, (20,))
    call = partial(CALLS[name], plain_losses)
    compiled = torch.compile(lambda *x: call(*x), fullgraph=True, backend="aot_eager")
    results = []
    for function in (call, compiled):
        x = x.detach().requires_grad_()
        loss = function(x, y, z)
        results.append((loss, torch.autograd.grad(loss.sum(), x)[0]))
    assert_close(*results)
