import importlib.util
import sys
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.testing import assert_close

from rlmask.ops import returns
from rlmask.ops.returns import (
    generalized_advantage_estimation,
    lambda_return,
    n_step_return,
)

GAMMA = 0.9
T = 12
BATCHES = [(), (8,), (2, 3)]


class Rollout:
    """A random rollout; `next_value[t]` is `value[t + 1]` unless step t ends an episode."""

    def __init__(self, shape, p_terminated=0.15, p_truncated=0.15, dtype=torch.float64):
        self.terminated = torch.rand(shape) < p_terminated
        self.truncated = torch.rand(shape) < p_truncated  # at times both
        self.ended = self.terminated | self.truncated
        self.reward, self.value, self.next_value = torch.randn(3, *shape, dtype=dtype)
        self.next_value[:-1] = torch.where(self.ended[:-1], self.next_value[:-1], self.value[1:])

    @property
    def discount(self):
        return GAMMA * (~self.terminated).to(self.reward.dtype)

    def gae(self, lambda_):
        return generalized_advantage_estimation(
            self.reward, self.value, self.next_value, self.discount, self.ended, lambda_
        )

    def lambda_return(self, lambda_):
        return lambda_return(self.reward, self.next_value, self.discount, self.ended, lambda_)

    def n_step_return(self, n):
        return n_step_return(self.reward, self.next_value, self.discount, self.ended, n)

    def td_error(self, step):
        """r + γ V(s') - V(s), without the V(s') of a terminal s'; a Python float."""
        following = 0.0 if self.terminated[step] else float(self.next_value[step])
        return float(self.reward[step]) + GAMMA * following - float(self.value[step])

    def return_after(self, t, env, n):
        """The discounted rewards of at most n steps from t, and the value of what follows them."""
        total, weight = 0.0, 1.0
        for k in range(t, min(t + n, len(self.reward))):
            total += weight * float(self.reward[(k, *env)])
            weight *= GAMMA
            if self.terminated[(k, *env)]:
                return total
            if self.truncated[(k, *env)]:
                break
        return total + weight * float(self.next_value[(k, *env)])

    def steps_left(self, t, env):
        """The number of steps from t to the end of the episode or of the rollout."""
        k = t
        while k < len(self.reward) - 1 and not self.ended[(k, *env)]:
            k += 1
        return k - t + 1


def brute_force(rollout, function):
    """A float64 tensor of `function(t, env)`, shaped as the rollout."""
    shape = rollout.reward.shape
    values = [function(t, env) for t, *env in np.ndindex(*shape)]
    return torch.tensor(values, dtype=torch.float64).reshape(shape)


def gae_double_sum(rollout, lambda_):
    """A_t = Σ_k (γλ)^k δ_{t+k}, up to the end of the episode."""

    def advantage(t, env):
        return sum(
            (GAMMA * lambda_) ** (k - t) * rollout.td_error((k, *env))
            for k in range(t, t + rollout.steps_left(t, env))
        )

    return brute_force(rollout, advantage)


def lambda_mixture(rollout, lambda_):
    """G_t = (1 - λ) Σ_{n < m} λ^(n-1) G_t^(n) + λ^(m-1) G_t^(m), m the steps that are left."""

    def mixture(t, env):
        left = rollout.steps_left(t, env)
        total = lambda_ ** (left - 1) * rollout.return_after(t, env, left)
        for n in range(1, left):
            total += (1 - lambda_) * lambda_ ** (n - 1) * rollout.return_after(t, env, n)
        return total

    return brute_force(rollout, mixture)


def n_step_loop(rollout, n):
    return brute_force(rollout, lambda t, env: rollout.return_after(t, env, n))


@st.composite
def rollouts(draw):
    """Short rollouts of batch rank 0, 1 or 2, with arbitrary episode ends."""
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=3, max_side=3))
    rollout = Rollout(shape)
    finite = st.floats(-10, 10)
    for name in ("reward", "value", "next_value"):
        setattr(
            rollout, name, torch.from_numpy(draw(hnp.arrays(np.float64, shape, elements=finite)))
        )
    for name in ("terminated", "truncated"):
        setattr(rollout, name, torch.from_numpy(draw(hnp.arrays(np.bool_, shape))))
    rollout.ended = rollout.terminated | rollout.truncated
    return rollout


def changed(rollout, name, index, by):
    """The difference that a change of one entry makes to the advantages, λ- and n-step returns."""
    before = rollout.gae(0.8), rollout.lambda_return(0.8), rollout.n_step_return(4)
    getattr(rollout, name)[index] += by
    after = rollout.gae(0.8), rollout.lambda_return(0.8), rollout.n_step_return(4)
    return [new - old for new, old in zip(after, before, strict=True)]


# --- against brute force


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("lambda_", [0.0, 0.3, 0.95, 1.0])
def test_gae_is_the_double_sum(batch, lambda_):
    rollout = Rollout((T, *batch))
    assert_close(rollout.gae(lambda_), gae_double_sum(rollout, lambda_))


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("lambda_", [0.0, 0.3, 0.95, 1.0])
def test_lambda_return_is_the_mixture_of_n_step_returns(batch, lambda_):
    rollout = Rollout((T, *batch))
    assert_close(rollout.lambda_return(lambda_), lambda_mixture(rollout, lambda_))


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("n", [1, 2, 3, 5, T - 1, T, T + 1, 3 * T])
def test_n_step_return_is_the_loop(batch, n):
    rollout = Rollout((T, *batch))
    assert_close(rollout.n_step_return(n), n_step_loop(rollout, n))


@pytest.mark.parametrize("ends", [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.5, 0.5)])
def test_extreme_episode_lengths(ends):
    rollout = Rollout((T, 4), *ends)
    assert_close(rollout.gae(0.8), gae_double_sum(rollout, 0.8))
    assert_close(rollout.lambda_return(0.8), lambda_mixture(rollout, 0.8))
    assert_close(rollout.n_step_return(3), n_step_loop(rollout, 3))


@given(rollouts(), st.floats(0, 1), st.integers(1, 6))
def test_any_rollout(rollout, lambda_, n):
    # here next_value[t] and value[t + 1] differ: no return may confuse them
    tolerance = {"rtol": 1e-9, "atol": 1e-9}
    assert_close(rollout.gae(lambda_), gae_double_sum(rollout, lambda_), **tolerance)
    assert_close(rollout.lambda_return(lambda_), lambda_mixture(rollout, lambda_), **tolerance)
    assert_close(rollout.n_step_return(n), n_step_loop(rollout, n), **tolerance)


def test_float32():
    rollout = Rollout((T, 8), dtype=torch.float32)
    for result, expected in [
        (rollout.gae(0.95), gae_double_sum(rollout, 0.95)),
        (rollout.lambda_return(0.95), lambda_mixture(rollout, 0.95)),
        (rollout.n_step_return(3), n_step_loop(rollout, 3)),
    ]:
        assert result.dtype == torch.float32
        assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)


# --- analytic cases


def test_gae_lambda_zero_is_the_td_error():
    rollout = Rollout((T, 8))
    expected = brute_force(rollout, lambda t, env: rollout.td_error((t, *env)))
    assert_close(rollout.gae(0.0), expected)


def test_gae_lambda_one_is_the_monte_carlo_return_minus_the_value():
    rollout = Rollout((T, 8))
    monte_carlo = n_step_loop(rollout, T)
    assert_close(rollout.gae(1.0), monte_carlo - rollout.value)


@pytest.mark.parametrize("lambda_", [0.0, 0.5, 1.0])
def test_constant_reward_and_value_give_a_geometric_series(lambda_):
    reward, value = 2.0, 3.0
    rollout = Rollout((T,), 0.0, 0.0)
    rollout.reward.fill_(reward)
    rollout.value.fill_(value)
    rollout.next_value.fill_(value)
    left = T - torch.arange(T, dtype=torch.float64)  # steps to the end of the rollout
    delta, decay = reward + GAMMA * value - value, GAMMA * lambda_
    assert_close(rollout.gae(lambda_), delta * (1 - decay**left) / (1 - decay))
    discounted = GAMMA**left
    assert_close(
        rollout.lambda_return(1.0), reward * (1 - discounted) / (1 - GAMMA) + discounted * value
    )


@pytest.mark.parametrize("lambda_", [0.0, 0.5, 1.0])
def test_the_true_value_has_no_advantage_and_is_every_return(lambda_):
    # V = r / (1 - γ) is the value of a constant reward
    reward = 2.0
    value = reward / (1 - GAMMA)
    rollout = Rollout((T, 5), p_terminated=0.0, p_truncated=0.3)
    rollout.reward.fill_(reward)
    rollout.value.fill_(value)
    rollout.next_value.fill_(value)
    everywhere = torch.full((T, 5), value, dtype=torch.float64)
    assert_close(rollout.gae(lambda_), torch.zeros_like(everywhere), rtol=0, atol=1e-12)
    assert_close(rollout.lambda_return(lambda_), everywhere)
    assert_close(rollout.n_step_return(3), everywhere)


# --- the ends of episodes


END, BY = 6, 10.0


def one_ending(terminated, truncated):
    rollout = Rollout((T,), 0.0, 0.0)
    rollout.terminated[END] = terminated
    rollout.truncated[END] = truncated
    rollout.ended[END] = terminated or truncated
    return rollout


@pytest.mark.parametrize("truncated", [False, True])
def test_termination_does_not_bootstrap(truncated):
    for difference in changed(one_ending(True, truncated), "next_value", END, BY):
        assert (difference == 0).all()


def test_truncation_bootstraps():
    in_gae, in_lambda_return, in_n_step = changed(one_ending(False, True), "next_value", END, BY)
    before_end = END - torch.arange(T, dtype=torch.float64)  # steps from t to the end
    reached = (before_end >= 0).double()
    expected = reached * GAMMA * (0.8 * GAMMA) ** before_end * BY
    assert_close(in_gae, expected)
    # the λ-return of step t takes r_END with weight (λγ)^k like GAE, the value a step later
    assert_close(in_lambda_return, expected)
    within_four = reached * (before_end < 4)
    assert_close(in_n_step, within_four * GAMMA ** (before_end + 1) * BY)


@pytest.mark.parametrize("ending", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("name", ["reward", "value", "next_value"])
def test_nothing_crosses_the_end_of_an_episode(ending, name):
    for difference in changed(one_ending(*ending), name, END + 1, BY):
        assert (difference[: END + 1] == 0).all()


def test_rewards_after_a_step_count_until_the_end():
    in_gae, in_lambda_return, in_n_step = changed(one_ending(True, False), "reward", END, BY)
    for t in range(END + 1):
        expected = (0.8 * GAMMA) ** (END - t) * BY
        assert float(in_gae[t]) == pytest.approx(expected)
        assert float(in_lambda_return[t]) == pytest.approx(expected)
        expected = GAMMA ** (END - t) * BY if END - t < 4 else 0.0
        assert float(in_n_step[t]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("length", [1, 2])
def test_the_end_of_the_rollout_bootstraps(length):
    rollout = Rollout((length, 3), 0.0, 0.0)
    last = rollout.reward[-1] + GAMMA * rollout.next_value[-1]
    assert_close(rollout.lambda_return(0.8)[-1], last)
    assert_close(rollout.n_step_return(5)[-1], last)
    assert_close(rollout.gae(0.8)[-1], last - rollout.value[-1])


# --- identities between the three


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("n", [T, T + 5])
def test_a_long_n_step_return_is_the_lambda_return_at_one(batch, n):
    rollout = Rollout((T, *batch))
    assert_close(rollout.n_step_return(n), rollout.lambda_return(1.0))


@pytest.mark.parametrize("batch", BATCHES)
def test_the_one_step_return_is_the_lambda_return_at_zero(batch):
    rollout = Rollout((T, *batch))
    assert_close(rollout.n_step_return(1), rollout.lambda_return(0.0))


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("lambda_", [0.0, 0.5, 0.95, 1.0])
def test_gae_plus_value_is_the_lambda_return(batch, lambda_):
    rollout = Rollout((T, *batch))
    assert_close(rollout.gae(lambda_) + rollout.value, rollout.lambda_return(lambda_))


@pytest.mark.parametrize("n", [0, -1])
def test_n_below_one_is_refused(n):
    with pytest.raises(ValueError, match=f"not {n}"):
        Rollout((T, 2)).n_step_return(n)


def test_inputs_are_left_alone():
    rollout = Rollout((T, 4))
    names = ("reward", "value", "next_value", "terminated", "truncated", "ended")
    before = {name: getattr(rollout, name).clone() for name in names}
    rollout.gae(0.95), rollout.lambda_return(0.95), rollout.n_step_return(3)
    for name in names:
        assert torch.equal(getattr(rollout, name), before[name])


# --- transforms; arguments: the functions, reward, value, next_value, discount, ended


CALLS = {
    "gae": lambda returns, r, v, w, d, e: returns.generalized_advantage_estimation(
        r, v, w, d, e, 0.95
    ),
    "lambda_return": lambda returns, r, v, w, d, e: returns.lambda_return(r, w, d, e, 0.95),
    "n_step_return": lambda returns, r, v, w, d, e: returns.n_step_return(r, w, d, e, 3),
}
all_returns = pytest.mark.parametrize("name", CALLS)


def random_arguments(shape=(T, 5)):
    rollout = Rollout(shape)
    return rollout.reward, rollout.value, rollout.next_value, rollout.discount, rollout.ended


@all_returns
def test_vmap_agrees(name):
    call = partial(CALLS[name], returns)
    arguments = random_arguments()
    mapped = torch.func.vmap(call, in_dims=1, out_dims=1)(*arguments)
    assert_close(mapped, call(*arguments))


@pytest.mark.parametrize("name", ["lambda_return", "n_step_return"])
def test_the_value_of_the_successor_can_be_differentiated(name):
    reward, value, next_value, discount, ended = random_arguments((4, 2))
    assert torch.autograd.gradcheck(
        lambda w: CALLS[name](returns, reward, value, w, discount, ended),
        next_value.requires_grad_(),
    )


@pytest.fixture
def plain_returns():
    """The functions as users run them: the tests' shape checks cannot be traced by a compiler."""
    spec = importlib.util.spec_from_file_location("returns_without_shape_checks", returns.__file__)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where the compiler looks for globals
    spec.loader.exec_module(module)
    yield module
    torch._dynamo.reset()
    del sys.modules[spec.name]


@all_returns
def test_compiled_agrees(plain_returns, name):
    call = partial(CALLS[name], plain_returns)
    arguments = random_arguments((4, 6))  # short: the compiler unrolls the loop
    compiled = torch.compile(lambda *x: call(*x), fullgraph=True, backend="aot_eager")
    assert_close(compiled(*arguments), call(*arguments))
