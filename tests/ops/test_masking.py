import math
import re
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from plain_modules import without_shape_checks
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from rlmask.ops import checks, join_parts, split_parts
from rlmask.ops import masking as ops
from rlmask.ops import rows as rows_module

HALF = [torch.float16, torch.bfloat16]
UPCAST = [torch.float32, torch.bfloat16, torch.float16]
LARGEST_UNIFORM = 1 - 2.0**-24  # the largest value torch.rand returns in float32

# One call signature for all ops, so that one test can be written for all of them.
# Arguments: the ops, logits and a second set of logits, mask, a valid action, a uniform draw.
DIFFERENTIABLE = {
    "log_softmax": lambda ops, z, y, m, a, u: ops.masked_log_softmax(z, m),
    "softmax": lambda ops, z, y, m, a, u: ops.masked_softmax(z, m),
    "max": lambda ops, z, y, m, a, u: ops.masked_max(z, m),
    "mean": lambda ops, z, y, m, a, u: ops.masked_mean(z, m),
    "entropy": lambda ops, z, y, m, a, u: ops.masked_entropy(ops.masked_log_softmax(z, m), m),
    "entropy_normalized": lambda ops, z, y, m, a, u: ops.masked_entropy(
        ops.masked_log_softmax(z, m), m, normalized=True
    ),
    "kl": lambda ops, z, y, m, a, u: ops.masked_kl(
        ops.masked_log_softmax(z, m), ops.masked_log_softmax(y, m), m
    ),
    "kl_reversed": lambda ops, z, y, m, a, u: ops.masked_kl(
        ops.masked_log_softmax(y, m), ops.masked_log_softmax(z, m), m
    ),
    "log_prob": lambda ops, z, y, m, a, u: ops.masked_log_prob_and_entropy(z, m, a)[0],
    "log_prob_and_entropy": lambda ops, z, y, m, a, u: torch.stack(
        ops.masked_log_prob_and_entropy(z, m, a)
    ),
}
DERIVED = ("kl_reversed", "log_prob")  # another argument or output of a call above
DETERMINISTIC = {
    **DIFFERENTIABLE,
    "inverse_cdf": lambda ops, z, y, m, a, u: ops.masked_inverse_cdf(z, m, u),
    "argmax": lambda ops, z, y, m, a, u: ops.masked_argmax(z, m),
}
RANDOM = {
    "sample": lambda ops, z, y, m, a, u: ops.masked_sample(z, m),
    "epsilon_greedy": lambda ops, z, y, m, a, u: ops.masked_epsilon_greedy(z, m, 0.5),
}
all_differentiable = pytest.mark.parametrize("name", DIFFERENTIABLE)
all_deterministic = pytest.mark.parametrize("name", DETERMINISTIC)


def random_mask(shape, density=0.5):
    """Each entry valid with probability `density`, and one entry of each row surely."""
    mask = torch.rand(shape) < density
    return mask.scatter(-1, torch.randint(shape[-1], (*shape[:-1], 1)), True)


def random_arguments(batch=(6,), actions=5, dtype=torch.float64):
    """Arguments (z, y, m, a, u) of the functions above."""
    mask = random_mask((*batch, actions))
    action = ops.masked_inverse_cdf(torch.zeros(mask.shape), mask, torch.rand(batch))[0]
    logits, other = torch.randn(2, *batch, actions, dtype=dtype)
    return logits, other, mask, action, torch.rand(batch)


def poisoned(scores, mask):
    """The scores with nan, inf, -inf and the largest number where invalid."""
    largest = torch.finfo(scores.dtype).max
    poison = torch.tensor([math.nan, math.inf, -math.inf, largest], dtype=scores.dtype)
    return torch.where(mask, scores, poison[torch.randint(len(poison), scores.shape)])


def valid_actions(mask, row):
    return [action for action in range(mask.shape[-1]) if mask[(*row, action)]]


def rows(mask):
    return np.ndindex(*mask.shape[:-1])


def expected_log_probs(logits, mask):
    """The log-softmax over the valid actions, row by row in float64; nan where invalid."""
    expected = torch.full(logits.shape, math.nan, dtype=torch.float64)
    for row in rows(mask):
        scores = {action: float(logits[(*row, action)]) for action in valid_actions(mask, row)}
        top = max(scores.values())
        log_total = math.log(sum(math.exp(score - top) for score in scores.values()))
        for action, score in scores.items():
            expected[(*row, action)] = score - top - log_total
    return expected


def per_row(mask, function):
    """A float64 tensor of `function(row, valid actions of the row)`, shaped as the batch."""
    values = [function(row, valid_actions(mask, row)) for row in rows(mask)]
    return torch.tensor(values, dtype=torch.float64).reshape(mask.shape[:-1])


def expected_entropy(logits, mask):
    log_probs = expected_log_probs(logits, mask)
    probs = log_probs.exp()
    return per_row(
        mask,
        lambda row, valid: -sum(float(probs[(*row, a)] * log_probs[(*row, a)]) for a in valid),
    )


def assert_log_probs_right(log_probs, logits, mask):
    exact = log_probs.dtype == torch.float64
    expected = expected_log_probs(logits, mask)
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if exact else {"rtol": 1e-5, "atol": 2e-5}
    assert_close(log_probs.double()[mask], expected[mask], **tolerance)
    assert (log_probs[~mask] == torch.finfo(log_probs.dtype).min).all()


@pytest.fixture
def debug():
    checks.set_debug(True)
    yield
    checks.set_debug(False)


@pytest.fixture(params=["small", "large"])
def size(request, monkeypatch):
    """Makes the ops treat a few entries as they treat thousands on the CPU: bitwise, in blocks."""
    if request.param == "large":
        monkeypatch.setattr(rows_module, "BITWISE_SIZE", 0)
        monkeypatch.setattr(ops, "_BLOCK_SIZE", 1)


BATCHES = [(), (1,), (3,), (2, 3)]


@st.composite
def problems(draw, dtypes=(torch.float16, torch.bfloat16, torch.float32, torch.float64)):
    """Logits and mask, of batch rank 0, 1 or 2 and one action or more, with at least one valid."""
    batch, actions = draw(st.sampled_from(BATCHES)), draw(st.integers(1, 6))
    shape = (*batch, actions)
    scale = draw(st.sampled_from([0.0, 1.0, 20.0, 6000.0]))
    logits = torch.from_numpy(draw(hnp.arrays(np.float64, shape, elements=st.integers(-20, 20))))
    mask = torch.from_numpy(draw(hnp.arrays(np.bool_, shape)))
    mask[..., draw(st.integers(0, actions - 1))] |= ~mask.any(-1)
    invalid = draw(st.sampled_from([0.0, 6e4, -6e4, math.nan, math.inf, -math.inf]))
    logits = (logits * scale / 10 + draw(st.floats(-0.5, 0.5))).masked_fill(~mask, invalid)
    return logits.to(draw(st.sampled_from(dtypes))), mask


# --- log-softmax and softmax


@pytest.mark.parametrize("batch", [(), (7,), (2, 3)])
@pytest.mark.parametrize("actions", [1, 5, 15, 16, 40])
def test_all_true_mask_is_the_plain_softmax(batch, actions):
    logits = torch.randn(*batch, actions, dtype=torch.float64)
    mask = torch.ones(logits.shape, dtype=torch.bool)
    # to the rounding: short rows are summed in another order
    close = {"rtol": 1e-14, "atol": 1e-15}
    assert_close(ops.masked_log_softmax(logits, mask), torch.log_softmax(logits, -1), **close)
    assert_close(ops.masked_softmax(logits, mask), torch.softmax(logits, -1), **close)


@pytest.mark.parametrize("batch", [(), (7,), (2, 3)])
def test_all_true_mask_is_a_categorical(batch):
    logits = torch.randn(*batch, 5, dtype=torch.float64)
    mask = torch.ones(logits.shape, dtype=torch.bool)
    action = torch.randint(5, batch)
    categorical = torch.distributions.Categorical(logits=logits)
    log_prob, entropy = ops.masked_log_prob_and_entropy(logits, mask, action)
    assert_close(log_prob, categorical.log_prob(action))
    assert_close(entropy, categorical.entropy())
    assert_close(
        ops.masked_entropy(ops.masked_log_softmax(logits, mask), mask), categorical.entropy()
    )


@given(problems())
def test_log_softmax_is_the_loop_over_valid_actions(problem):
    logits, mask = problem
    log_probs = ops.masked_log_softmax(logits, mask)
    assert log_probs.dtype == (torch.float64 if logits.dtype == torch.float64 else torch.float32)
    assert_log_probs_right(log_probs, logits, mask)


@given(problems())
def test_softmax_sums_to_one_over_valid_and_is_zero_elsewhere(problem):
    logits, mask = problem
    probs = ops.masked_softmax(logits, mask)
    assert (probs[~mask] == 0).all()
    assert (ops.masked_log_softmax(logits, mask).exp()[~mask] == 0).all()
    assert_close(probs.sum(-1), torch.ones(mask.shape[:-1], dtype=probs.dtype))
    expected = expected_log_probs(logits, mask).exp()
    assert_close(probs.double()[mask], expected[mask], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("shift", [-1e4, -1.0, 0.1, 300.0])
def test_softmax_ignores_a_shift(shift):
    logits, _, mask, _, _ = random_arguments((50,))
    for op in (ops.masked_log_softmax, ops.masked_softmax):
        assert_close(op(logits + shift, mask), op(logits, mask), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("magnitude", [200.0, 1e4, 1e30, 1.5e38])
def test_log_softmax_of_hard_logits(magnitude):
    logits = magnitude * torch.tensor([[1, -1, 1, 0], [-1, 1, -1, 1], [0, 1, -1, -1]]).float()
    mask = torch.tensor([[1, 1, 0, 1], [1, 0, 1, 0], [1, 0, 1, 1]]).bool()
    log_probs = ops.masked_log_softmax(logits, mask)
    assert_log_probs_right(log_probs, logits, mask)
    assert log_probs.isfinite().all()
    assert_close(
        ops.masked_entropy(log_probs, mask).double(),
        expected_entropy(logits, mask),
        atol=1e-6,
        rtol=0,
    )


def test_no_finite_valid_logit_loses_against_an_invalid_one():
    lowest = torch.finfo(torch.float32).min
    logits = torch.tensor([lowest, 0.0, lowest, math.inf])
    mask = torch.tensor([True, False, True, False])
    assert torch.equal(ops.masked_softmax(logits, mask), torch.tensor([0.5, 0.0, 0.5, 0.0]))
    assert_close(ops.masked_log_softmax(logits, mask)[mask], -torch.tensor([2.0, 2.0]).log())
    for uniform in torch.tensor([0.0, 0.4, 0.6, LARGEST_UNIFORM]):
        assert mask[ops.masked_inverse_cdf(logits, mask, uniform)[0]]


@pytest.mark.parametrize("dtype", UPCAST)
@pytest.mark.parametrize("logit", [-1e30, -6e4, -1.0, 0.0, 1.0, 6e4, 1e30])
@pytest.mark.parametrize("poison", [False, True])
def test_one_valid_action_is_exact(dtype, logit, poison):
    largest = torch.finfo(dtype).max
    logits = torch.full((4, 4), logit).clamp(-largest, largest).to(dtype)
    mask = torch.eye(4, dtype=torch.bool)
    action = torch.arange(4)
    if poison:
        logits = poisoned(logits, mask)
    logits.requires_grad_()

    log_probs = ops.masked_log_softmax(logits, mask)
    assert (log_probs[mask] == 0).all()
    assert (ops.masked_softmax(logits, mask) == mask.float()).all()
    for normalized in (False, True):
        assert (ops.masked_entropy(log_probs, mask, normalized=normalized) == 0).all()
    log_prob, entropy = ops.masked_log_prob_and_entropy(logits, mask, action)
    assert (log_prob == 0).all() and (entropy == 0).all()
    for uniform in (0.0, LARGEST_UNIFORM):
        drawn, drawn_log_prob = ops.masked_inverse_cdf(logits, mask, torch.full((4,), uniform))
        assert torch.equal(drawn, action) and (drawn_log_prob == 0).all()

    for output in (log_probs[mask], ops.masked_entropy(log_probs, mask), log_prob, entropy):
        (gradient,) = torch.autograd.grad(output.sum(), logits, retain_graph=True)
        assert (gradient == 0).all()


@pytest.mark.parametrize("dtype", HALF)
@all_deterministic
def test_half_inputs_are_computed_in_float32(name, dtype):
    logits, other, mask, action, uniform = random_arguments(dtype=dtype)
    op = partial(DETERMINISTIC[name], ops)
    outputs = op(logits, other, mask, action, uniform)
    upcast = op(logits.float(), other.float(), mask, action, uniform)
    assert_close(outputs, upcast, rtol=0, atol=0)  # checks the dtype too


# --- what an invalid score may do: nothing


@pytest.mark.usefixtures("size")
@all_deterministic
@pytest.mark.parametrize("dtype", [torch.float64, *UPCAST])
def test_invalid_scores_change_nothing(name, dtype):
    logits, other, mask, action, uniform = random_arguments((50,), dtype=dtype)
    op = partial(DETERMINISTIC[name], ops)
    plain = op(logits, other, mask, action, uniform)
    assert_close(
        op(poisoned(logits, mask), poisoned(other, mask), mask, action, uniform),
        plain,
        rtol=0,
        atol=0,
    )


@pytest.mark.usefixtures("size")
@pytest.mark.parametrize("name", RANDOM)
def test_invalid_scores_do_not_change_the_draw(name):
    arguments = random_arguments((50,))
    changed = (poisoned(arguments[0], arguments[2]), *arguments[1:])
    torch.manual_seed(1)
    plain = RANDOM[name](ops, *arguments)
    torch.manual_seed(1)
    assert_close(RANDOM[name](ops, *changed), plain, rtol=0, atol=0)


@given(problems())
def test_kl_of_equal_distributions_is_zero_and_invalid_log_probs_are_ignored(problem):
    logits, mask = problem
    log_probs = ops.masked_log_softmax(logits, mask)
    broken = log_probs.masked_fill(~mask, math.nan)
    assert torch.equal(ops.masked_entropy(broken, mask), ops.masked_entropy(log_probs, mask))
    for pair in [(log_probs, log_probs), (broken, broken), (broken, log_probs)]:
        assert (ops.masked_kl(*pair, mask) == 0).all()


@pytest.mark.usefixtures("size")
@all_differentiable
@pytest.mark.parametrize("poison", [False, True])
def test_first_and_second_gradient_of_invalid_scores_is_zero(name, poison):
    logits, other, mask, action, uniform = random_arguments((20,))
    if poison:
        logits = poisoned(logits, mask)
    logits.requires_grad_()
    output = DIFFERENTIABLE[name](ops, logits, other, mask, action, uniform)
    loss = (output * torch.randn_like(output)).sum()  # also weighs the invalid entries
    (first,) = torch.autograd.grad(loss, logits, create_graph=True)
    assert (first[~mask] == 0).all() and first.isfinite().all()
    assert (first[mask] != 0).any()
    if name in ("max", "mean"):
        return  # piecewise linear
    (second,) = torch.autograd.grad((first * torch.randn_like(first)).sum(), logits)
    assert (second[~mask] == 0).all() and second.isfinite().all()
    assert (second[mask] != 0).any()


@pytest.mark.usefixtures("size")
@all_differentiable
def test_gradient_is_that_of_the_valid_scores_alone(name):
    # the same op on the valid scores only, nothing masked
    logits, other, mask, action, uniform = random_arguments((20,))
    logits = poisoned(logits, mask).requires_grad_()
    output = DIFFERENTIABLE[name](ops, logits, other, mask, action, uniform)
    per_action = name in ("log_softmax", "softmax")
    weight = torch.randn(mask.shape, dtype=torch.float64)
    loss = (output * weight)[mask].sum() if per_action else output.sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    for row, valid in enumerate(mask):
        chosen = int(valid[: action[row]].sum())  # its rank among the valid actions
        dense = logits[row, valid].detach().requires_grad_()
        output = DIFFERENTIABLE[name](
            ops, dense, other[row, valid], torch.ones_like(dense).bool(), torch.tensor(chosen), None
        )
        loss = (output * weight[row, valid]).sum() if per_action else output.sum()
        assert_close(gradient[row, valid], torch.autograd.grad(loss, dense)[0])


@pytest.mark.usefixtures("size")
@all_differentiable
@pytest.mark.parametrize("batch", [(), (3,)])
def test_gradcheck(name, batch):
    logits, *others = random_arguments(batch, actions=4)
    logits.requires_grad_()
    op = partial(DIFFERENTIABLE[name], ops)
    assert gradcheck(lambda z: op(z, *others), logits, check_batched_grad=True)
    if name not in ("max", "mean"):
        assert gradgradcheck(lambda z: op(z, *others), logits, check_batched_grad=True)


@pytest.mark.usefixtures("size")
@pytest.mark.parametrize("dtype", HALF)
@all_differentiable
def test_half_scores_get_half_gradients(name, dtype):
    logits, other, mask, action, uniform = random_arguments(dtype=dtype)
    gradients = []
    for scores in (logits.requires_grad_(), logits.detach().float().requires_grad_()):
        output = DIFFERENTIABLE[name](ops, scores, other.to(scores.dtype), mask, action, uniform)
        (gradient,) = torch.autograd.grad(output.sigmoid().sum(), scores)
        assert gradient.dtype == scores.dtype
        gradients.append(gradient)
    half, single = gradients
    assert_close(half, single.to(dtype), atol=1e-3, rtol=torch.finfo(dtype).eps)


# --- log-probability and entropy in one


def composition(logits, mask, action):
    log_probs = ops.masked_log_softmax(logits, mask)
    log_prob = log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1)
    return log_prob, ops.masked_entropy(log_probs, mask)


@given(problems())
def test_log_prob_and_entropy_is_the_composition(problem):
    logits, mask = problem
    for action in (mask.int().argmax(-1), mask.flip(-1).int().argmin(-1)):  # a valid one, and any
        log_prob, entropy = ops.masked_log_prob_and_entropy(logits, mask, action)
        expected_log_prob, entropy_composed = composition(logits, mask, action)
        assert torch.equal(log_prob, expected_log_prob)
        assert_close(entropy, entropy_composed, rtol=1e-5, atol=1e-6)
    assert_close(entropy.double(), expected_entropy(logits, mask), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (0.7, -0.3)])
@pytest.mark.parametrize("batch", [(), (9,), (2, 3)])
def test_log_prob_and_entropy_has_the_derivatives_of_the_composition(weights, batch):
    logits, _, mask, action, _ = random_arguments(batch)
    if batch:
        action = torch.randint(5, batch)  # invalid ones too: their gradient is 0
    directions = torch.randn(2, *logits.shape, dtype=torch.float64)
    derivatives = []
    for op in (ops.masked_log_prob_and_entropy, composition):
        scores = logits.clone().requires_grad_()
        # leaves an unweighted output out of the graph, so that its gradient arrives as None
        used = zip(weights, op(scores, mask, action), strict=True)
        total = sum((weight * output.sigmoid()).sum() for weight, output in used if weight)
        (first,) = torch.autograd.grad(total, scores, create_graph=True)
        (second,) = torch.autograd.grad((first * directions[0]).sum(), scores, create_graph=True)
        (third,) = torch.autograd.grad((second * directions[1]).sum(), scores)
        derivatives.append((first, second, third))
    for custom, composed in zip(*derivatives, strict=True):
        assert_close(custom, composed, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("output", [0, 1])
@pytest.mark.parametrize("poison", [False, True])
def test_log_prob_and_entropy_gradgradcheck_of_each_output(output, poison):
    logits, _, mask, action, _ = random_arguments((3,), actions=4)
    valid_logits = logits[mask].requires_grad_()
    invalid = poisoned(logits, mask) if poison else logits

    def op(values):
        scores = invalid.masked_scatter(mask, values)
        return ops.masked_log_prob_and_entropy(scores, mask, action)[output]

    assert gradcheck(op, valid_logits)
    assert gradgradcheck(op, valid_logits)


def test_log_prob_and_entropy_third_derivative_by_differences():
    logits, _, mask, action, _ = random_arguments((2,), actions=3)

    def gradient(scores):
        outputs = ops.masked_log_prob_and_entropy(scores, mask, action)
        return torch.autograd.grad(sum(x.sum() for x in outputs), scores, create_graph=True)[0]

    assert gradgradcheck(gradient, logits.requires_grad_())


def test_log_prob_and_entropy_gradient_formula():
    # d log p_a / dz = 1_a - p,  d H / dz_i = -p_i (log p_i + H)
    logits, _, mask, action, _ = random_arguments((8,))
    logits.requires_grad_()
    log_prob, entropy = ops.masked_log_prob_and_entropy(logits, mask, action)
    (of_log_prob,) = torch.autograd.grad(log_prob.sum(), logits, retain_graph=True)
    (of_entropy,) = torch.autograd.grad(entropy.sum(), logits)
    log_probs = expected_log_probs(logits.detach(), mask)
    total = expected_entropy(logits.detach(), mask)
    for row in rows(mask):
        for a in valid_actions(mask, row):
            p = math.exp(log_probs[(*row, a)])
            expected = float(a == action[row]) - p
            assert float(of_log_prob[(*row, a)]) == pytest.approx(expected, abs=1e-12)
            expected = -p * float(log_probs[(*row, a)] + total[row])
            assert float(of_entropy[(*row, a)]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("dtype", UPCAST)
def test_log_prob_of_an_invalid_action_is_the_minimum_and_has_no_gradient(dtype):
    logits = torch.tensor([1.0, 2.0, 3.0], dtype=dtype, requires_grad=True)
    mask = torch.tensor([True, False, True])
    log_prob, _ = ops.masked_log_prob_and_entropy(logits, mask, torch.tensor(1))
    assert log_prob == torch.finfo(torch.float32).min
    assert (torch.autograd.grad(log_prob, logits)[0] == 0).all()


@pytest.mark.usefixtures("size")
@pytest.mark.parametrize("in_dims", [(0, 0, 0), (None, 0, 0), (0, None, 0), (None, None, 0)])
def test_log_prob_and_entropy_under_partial_vmap(in_dims):
    logits, _, mask, action, _ = random_arguments((6,))
    if in_dims[1] is None:
        mask = torch.ones_like(mask)
    pairs = list(zip((logits, mask, action), in_dims, strict=True))
    arguments = [x if dim == 0 else x[0] for x, dim in pairs]
    expanded = [x if dim == 0 else x[:1].expand_as(x) for x, dim in pairs]

    def gradient(op, logits, mask, action):
        return torch.func.grad(lambda z: sum(x.square().sum() for x in op(z, mask, action)))(logits)

    op = ops.masked_log_prob_and_entropy
    assert_close(torch.func.vmap(op, in_dims)(*arguments), composition(*expanded))
    mapped = torch.func.vmap(partial(gradient, op), in_dims)(*arguments)
    looped = [gradient(composition, *row) for row in zip(*expanded, strict=True)]
    assert_close(mapped, torch.stack(looped))


def test_log_prob_and_entropy_hessian_by_func():
    logits, _, mask, action, _ = random_arguments((), actions=4)
    jacrev = torch.func.jacrev

    def hessian(op):
        return jacrev(jacrev(lambda z: torch.stack(op(z, mask, action))))(logits)

    assert hessian(composition).abs().max() > 0
    assert_close(hessian(ops.masked_log_prob_and_entropy), hessian(composition))


# --- debug


EMPTY_MASK_CALLS = {
    "check_mask": lambda z, m: checks.check_mask(m),
    "log_softmax": ops.masked_log_softmax,
    "softmax": ops.masked_softmax,
    "sample": ops.masked_sample,
    "inverse_cdf": lambda z, m: ops.masked_inverse_cdf(z, m, torch.zeros(m.shape[:-1])),
    "argmax": ops.masked_argmax,
    "max": ops.masked_max,
    "mean": ops.masked_mean,
    "entropy": ops.masked_entropy,
    "entropy_scale": lambda z, m: ops.entropy_scale(m),
    "kl": lambda z, m: ops.masked_kl(z, z, m),
    "epsilon_greedy": lambda z, m: ops.masked_epsilon_greedy(z, m, 0.5),
    "log_prob_and_entropy": lambda z, m: ops.masked_log_prob_and_entropy(
        z, m, torch.zeros(m.shape[:-1], dtype=torch.long)
    ),
}


@pytest.mark.parametrize("name", EMPTY_MASK_CALLS)
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_debug_refuses_an_empty_row(debug, name, batch):
    mask = torch.ones(*batch, 4, dtype=torch.bool)
    EMPTY_MASK_CALLS[name](torch.zeros(mask.shape), mask)  # a full mask passes
    mask[(*(size - 1 for size in batch),)] = False  # the last row
    with pytest.raises(checks.EmptyMaskError):
        EMPTY_MASK_CALLS[name](torch.zeros(mask.shape), mask)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_debug_refuses_an_invalid_action(debug, batch):
    mask = torch.ones(*batch, 4, dtype=torch.bool)
    last = (*(size - 1 for size in batch),)
    mask[(*last, 2)] = False
    action = torch.zeros(batch, dtype=torch.long)
    ops.masked_log_prob_and_entropy(torch.zeros(mask.shape), mask, action)
    action[last] = 2
    with pytest.raises(
        checks.InvalidActionError, match=re.escape(f"action 2 in row {list(last)} ")
    ):
        ops.masked_log_prob_and_entropy(torch.zeros(mask.shape), mask, action)


def test_the_empty_row_is_named():
    mask = torch.ones(2, 3, 4, dtype=torch.bool)
    mask[1, 2] = False
    with pytest.raises(checks.EmptyMaskError, match=r"row \[1, 2\]"):
        checks.check_mask(mask)


@all_deterministic
def test_debug_changes_no_result(name, request):
    arguments = random_arguments((20,))
    plain = DETERMINISTIC[name](ops, *arguments)
    request.getfixturevalue("debug")
    assert_close(DETERMINISTIC[name](ops, *arguments), plain, rtol=0, atol=0)


def test_errors_are_value_errors():
    assert issubclass(checks.EmptyMaskError, ValueError)
    assert issubclass(checks.InvalidActionError, ValueError)


# --- sampling


def hard_logits(rows, actions, dtype):
    """Rows of every scale the dtype has, half of them of a few repeated values."""
    exponent = min(30.0, math.log10(torch.finfo(dtype).max) - 0.7)
    scale = 10 ** torch.empty(rows, 1).uniform_(-2, exponent)
    logits = torch.randn(rows, actions)
    logits[::2] = logits[::2].sign()
    return (scale * logits).to(dtype)


@pytest.mark.parametrize("dtype", UPCAST)
def test_a_draw_is_never_invalid(dtype):
    mask = random_mask((70_000, 8), density=torch.rand(70_000, 1))
    logits = poisoned(hard_logits(70_000, 8, dtype), mask)
    assert logits[mask].isfinite().all()
    action, log_prob = ops.masked_sample(logits, mask)
    assert mask.gather(-1, action.unsqueeze(-1)).all()
    assert log_prob.isfinite().all() and (log_prob <= 0).all()


@pytest.mark.usefixtures("size")
@pytest.mark.parametrize("dtype", [*UPCAST, torch.float64])
@pytest.mark.parametrize("uniform", [0.0, LARGEST_UNIFORM])
def test_the_extreme_draws_are_never_invalid(dtype, uniform):
    mask = random_mask((4_000, 8), density=torch.rand(4_000, 1))
    logits = poisoned(hard_logits(4_000, 8, dtype), mask)
    action, log_prob = ops.masked_inverse_cdf(logits, mask, torch.full((4_000,), uniform))
    assert mask.gather(-1, action.unsqueeze(-1)).all()
    assert log_prob.isfinite().all()


@pytest.mark.parametrize("leading", [0, 1, 3])
@pytest.mark.parametrize("trailing", [0, 1, 3])
@pytest.mark.parametrize("num_valid", [1, 2, 7])
def test_the_extreme_draws_of_equal_logits_are_the_first_and_last_valid(
    leading, trailing, num_valid
):
    mask = torch.tensor([False] * leading + [True] * num_valid + [False] * trailing)
    logits = torch.zeros(mask.shape)
    first, _ = ops.masked_inverse_cdf(logits, mask, torch.tensor(0.0))
    last, _ = ops.masked_inverse_cdf(logits, mask, torch.tensor(LARGEST_UNIFORM))
    assert first == leading
    assert last == leading + num_valid - 1


@pytest.mark.usefixtures("size")
def test_inverse_cdf_is_the_loop_over_valid_actions():
    logits, _, mask, _, _ = random_arguments((300,), actions=7)
    uniform = torch.rand(300, dtype=torch.float64)
    action, log_prob = ops.masked_inverse_cdf(logits, mask, uniform)
    log_probs = expected_log_probs(logits, mask)
    for row in range(300):
        cumulated = 0.0
        for expected in valid_actions(mask, (row,)):
            cumulated += math.exp(log_probs[row, expected])
            if cumulated > uniform[row]:
                break
        assert action[row] == expected
        assert float(log_prob[row]) == pytest.approx(float(log_probs[row, expected]), abs=1e-12)


def assert_frequencies(action, probs, mask):
    """Each count within 5 standard deviations of its binomial distribution."""
    num_draws = len(action)
    counts = torch.bincount(action, minlength=len(mask))
    assert (counts[~mask] == 0).all()
    for a in valid_actions(mask, ()):
        p = float(probs[a])
        deviation = math.sqrt(num_draws * p * (1 - p))
        assert abs(int(counts[a]) - num_draws * p) <= 5 * deviation


@pytest.mark.parametrize("dtype", [*UPCAST, torch.float64])
def test_sample_frequencies(dtype):
    logits = torch.tensor([9.0, 1.0, -2.0, 50.0, 0.5, 1.5]).to(dtype)
    mask = torch.tensor([False, True, True, False, True, True])
    num_draws = 50_000
    action, _ = ops.masked_sample(
        logits.expand(num_draws, -1), mask.expand(num_draws, -1), torch.Generator().manual_seed(3)
    )
    assert_frequencies(action, expected_log_probs(logits, mask).exp(), mask)


@given(problems(), st.integers(0, 2**32))
def test_sample_is_valid_and_returns_its_log_prob(problem, seed):
    logits, mask = problem
    action, log_prob = ops.masked_sample(logits, mask, torch.Generator().manual_seed(seed))
    index = action.unsqueeze(-1)
    assert mask.gather(-1, index).all()
    expected = ops.masked_log_softmax(logits, mask).gather(-1, index).squeeze(-1)
    assert_close(log_prob, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("logit", [-1.0, -20.0, -60.0, -85.0])
def test_the_log_prob_of_a_rare_draw(logit):
    logits, mask = torch.tensor([logit, 0.0]), torch.tensor([True, True])
    action, log_prob = ops.masked_inverse_cdf(logits, mask, torch.tensor(0.0))
    assert_close(log_prob, ops.masked_log_softmax(logits, mask)[action], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 1.0])
def test_same_generator_same_draws_and_no_global_state(epsilon):
    logits, _, mask, _, _ = random_arguments((200,))

    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        action, log_prob = ops.masked_sample(logits, mask, generator)
        return action, log_prob, ops.masked_epsilon_greedy(logits, mask, epsilon, generator)

    before = torch.get_rng_state()
    first = draw(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert_close(draw(1), first, rtol=0, atol=0)
    assert not torch.equal(draw(2)[0], first[0])


def test_successive_draws_differ():
    logits, mask = torch.zeros(100, 10), torch.ones(100, 10, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    first, _ = ops.masked_sample(logits, mask, generator)
    second, _ = ops.masked_sample(logits, mask, generator)
    assert not torch.equal(first, second)


# --- argmax, max, mean


@given(problems())
def test_argmax_and_max_are_the_loop_over_valid_actions(problem):
    values, mask = problem
    action, highest = ops.masked_argmax(values, mask), ops.masked_max(values, mask)
    for row in rows(mask):
        # max returns the first of equals, here the lowest index
        best = max(valid_actions(mask, row), key=lambda a, row=row: float(values[(*row, a)]))
        assert action[row] == best
        assert highest[row] == values[(*row, best)]


@given(problems())
def test_mean_is_the_loop_over_valid_actions(problem):
    values, mask = problem
    expected = per_row(
        mask, lambda row, valid: sum(float(values[(*row, a)]) for a in valid) / len(valid)
    )
    mean = ops.masked_mean(values, mask)
    assert_close(mean.double(), expected, rtol=1e-5, atol=1e-6 * 6e4)  # sums may cancel


def test_argmax_takes_the_lowest_index_among_ties():
    values = torch.tensor([5.0, 2.0, 7.0, 2.0, 7.0, 7.0])
    everything = torch.ones(6, dtype=torch.bool)
    assert ops.masked_argmax(values, everything) == 2
    assert ops.masked_argmax(values, everything & (torch.arange(6) > 2)) == 4
    assert ops.masked_argmax(values, values == 2.0) == 1
    wide = torch.zeros(1000)
    assert ops.masked_argmax(wide, torch.arange(1000) >= 123) == 123


def test_argmax_and_max_ignore_an_invalid_global_maximum():
    values = torch.tensor([[-3.0, 9.0, -2.0], [math.inf, -5.0, -6.0], [-1e38, -1e38, 0.0]])
    mask = torch.tensor([[True, False, True], [False, True, True], [False, True, False]])
    assert ops.masked_argmax(values, mask).tolist() == [2, 1, 1]
    assert torch.equal(ops.masked_max(values, mask), torch.tensor([-2.0, -5.0, -1e38]))


@pytest.mark.parametrize("dtype", UPCAST)
def test_argmax_is_valid_when_every_valid_value_is_minus_infinity(dtype):
    values = torch.tensor([0.0, -math.inf, -math.inf, 1.0], dtype=dtype)
    mask = torch.tensor([False, True, True, False])
    assert ops.masked_argmax(values, mask) == 1


def test_argmax_is_valid_when_a_valid_value_is_nan():
    values = torch.tensor([0.0, math.nan, 1.0])
    mask = torch.tensor([False, True, True])
    assert mask[ops.masked_argmax(values, mask)]


def test_max_gives_its_gradient_to_the_valid_ties_in_equal_shares():
    values = torch.tensor([[4.0, 4.0, 1.0, 4.0], [3.0, 0.0, 2.0, 1.0]], requires_grad=True)
    mask = torch.tensor([[True, False, True, True], [False, True, True, True]])
    (gradient,) = torch.autograd.grad(ops.masked_max(values, mask).sum(), values)
    assert torch.equal(gradient, torch.tensor([[0.5, 0.0, 0.0, 0.5], [0.0, 0.0, 1.0, 0.0]]))


def test_mean_gives_its_gradient_to_the_valid_in_equal_shares():
    logits, _, mask, _, _ = random_arguments((20,))
    values = poisoned(logits, mask).requires_grad_()
    (gradient,) = torch.autograd.grad(ops.masked_mean(values, mask).sum(), values)
    assert_close(gradient, mask.double() / mask.sum(-1, keepdim=True))


def test_dueling_advantages_stay_small():
    # averaging over filled-in invalid entries gives 1e38 (reference/masking.md, section 1e)
    advantage, mask = torch.tensor([1.0, -4.0, 2.0]), torch.tensor([True, False, True])
    centred = advantage - ops.masked_mean(advantage, mask)
    assert ops.masked_mean(centred, mask) == 0


# --- epsilon-greedy


@pytest.mark.parametrize("dtype", UPCAST)
@pytest.mark.parametrize("batch", [(), (500,), (2, 3)])
def test_epsilon_zero_is_the_argmax(batch, dtype):
    logits, _, mask, _, _ = random_arguments(batch, dtype=dtype)
    values = poisoned(logits, mask)
    assert torch.equal(
        ops.masked_epsilon_greedy(values, mask, 0.0), ops.masked_argmax(values, mask)
    )


def test_epsilon_zero_when_the_global_maximum_is_invalid():
    values = torch.tensor([9.0, -1.0, -2.0]).expand(1000, -1)
    mask = torch.tensor([False, True, True]).expand(1000, -1)
    assert (ops.masked_epsilon_greedy(values, mask, 0.0) == 1).all()


@pytest.mark.parametrize("draw", [0.0, LARGEST_UNIFORM])
def test_epsilon_is_exact_at_the_extreme_draws(monkeypatch, draw):
    monkeypatch.setattr(torch, "rand", lambda shape, **options: torch.full(shape, draw))
    values, mask = torch.tensor([3.0, 1.0, 2.0, 0.0]), torch.tensor([False, True, True, True])
    assert ops.masked_epsilon_greedy(values, mask, 0.0) == 2
    assert ops.masked_epsilon_greedy(values, mask, 1.0) == 1  # equal scores: the first valid one


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_epsilon_greedy_frequencies(epsilon):
    num_draws, values = 50_000, torch.tensor([9.0, 1.0, -math.inf, 3.0, 2.0, math.nan])
    mask = torch.tensor([False, True, True, True, True, False])
    best, num_valid = 3, 4
    probs = torch.full((6,), epsilon / num_valid)
    probs[best] += 1 - epsilon
    action = ops.masked_epsilon_greedy(
        values.expand(num_draws, -1), mask.expand(num_draws, -1), epsilon
    )
    assert_frequencies(action, probs, mask)


# --- entropy and KL


@pytest.mark.parametrize("num_valid", [1, 2, 5, 300])
@pytest.mark.parametrize("dtype", UPCAST)
def test_entropy_of_equal_logits_is_log_k(num_valid, dtype):
    mask = torch.arange(300) < num_valid
    logits = torch.full((300,), 3.0, dtype=dtype)
    log_probs = ops.masked_log_softmax(logits, mask)
    assert float(ops.masked_entropy(log_probs, mask)) == pytest.approx(math.log(num_valid))
    normalized = ops.masked_entropy(log_probs, mask, normalized=True)
    assert float(normalized) == pytest.approx(0.0 if num_valid == 1 else 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_entropy_scale_is_one_over_log_k(dtype):
    mask = torch.arange(6) < torch.arange(1, 7).unsqueeze(-1)  # row k - 1 has k valid
    scale = ops.entropy_scale(mask, dtype)
    assert scale.isfinite().all()
    for k in range(2, 7):
        assert_close(scale[k - 1], torch.tensor(1 / math.log(k), dtype=dtype))


@given(problems())
def test_entropy_is_the_loop_over_valid_actions(problem):
    logits, mask = problem
    log_probs = ops.masked_log_softmax(logits, mask)
    entropy = ops.masked_entropy(log_probs, mask).double()
    expected = expected_entropy(logits, mask)
    assert_close(entropy, expected, rtol=1e-5, atol=1e-5)
    num_valid = per_row(mask, lambda row, valid: len(valid))
    assert (entropy <= num_valid.log() + 1e-5).all() and (entropy >= 0).all()
    normalized = ops.masked_entropy(log_probs, mask, normalized=True).double()
    one = num_valid == 1
    assert (normalized[one] == 0).all()
    assert_close(normalized[~one], expected[~one] / num_valid[~one].log(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("magnitude", [0.0, 200.0, 1e30])
def test_entropy_has_a_finite_gradient(normalized, magnitude):
    logits = magnitude * torch.tensor([[1.0, -1, 0, 1], [1.0, 1, 1, 1], [-1.0, 1, 1, 1]])
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 0, 0], [1, 0, 1, 1]]).bool()
    logits.requires_grad_()
    log_probs = ops.masked_log_softmax(logits, mask)
    entropy = ops.masked_entropy(log_probs, mask, normalized=normalized)
    for source in (logits, log_probs):
        (gradient,) = torch.autograd.grad(entropy.sum(), source, retain_graph=True)
        assert gradient.isfinite().all() and (gradient[~mask] == 0).all()


@pytest.mark.parametrize("batch", [(), (20,), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float64, *UPCAST])
def test_kl_is_the_loop_over_valid_actions(batch, dtype):
    logits, other, mask, _, _ = random_arguments(batch, dtype=dtype)
    log_p, log_q = expected_log_probs(logits, mask), expected_log_probs(other, mask)

    def divergence(row, valid):
        terms = ((float(log_p[(*row, a)]), float(log_q[(*row, a)])) for a in valid)
        return sum(math.exp(p) * (p - q) for p, q in terms)

    kl = ops.masked_kl(
        ops.masked_log_softmax(logits, mask), ops.masked_log_softmax(other, mask), mask
    )
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert_close(kl.double(), per_row(mask, divergence), rtol=tolerance, atol=tolerance)


@given(problems(), st.integers(0, 2**32))
def test_kl_is_not_negative_and_its_gradient_is_finite(problem, seed):
    logits, mask = problem
    logits = logits.clone().requires_grad_()
    other = torch.randn(mask.shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    kl = ops.masked_kl(
        ops.masked_log_softmax(logits, mask), ops.masked_log_softmax(other, mask), mask
    )
    assert (kl >= -1e-6).all() and kl.isfinite().all()
    for gradient in torch.autograd.grad(kl.sum(), (logits, other)):
        assert gradient.isfinite().all() and (gradient[~mask] == 0).all()


def test_invalid_log_probs_get_no_gradient():
    logits, other, mask, _, _ = random_arguments((50,))
    log_p, log_q = ops.masked_log_softmax(logits, mask), ops.masked_log_softmax(other, mask)
    log_p, log_q = (poisoned(x, mask).requires_grad_() for x in (log_p, log_q))
    entropy = ops.masked_entropy(log_p, mask) + ops.masked_entropy(log_p, mask, normalized=True)
    kl = ops.masked_kl(log_p, log_q, mask)
    for output, source in [(entropy, log_p), (kl, log_p), (kl, log_q)]:
        (gradient,) = torch.autograd.grad(output.sum(), source, retain_graph=True)
        assert gradient.isfinite().all() and (gradient[~mask] == 0).all()
        assert (gradient[mask] != 0).any()


def test_kl_gradient_in_the_second_argument():
    # d KL(p || q) / d logits of q = q - p, on the valid actions
    logits, other, mask, _, _ = random_arguments((20,))
    other.requires_grad_()
    log_p, log_q = ops.masked_log_softmax(logits, mask), ops.masked_log_softmax(other, mask)
    (gradient,) = torch.autograd.grad(ops.masked_kl(log_p, log_q, mask).sum(), other)
    expected = ops.masked_softmax(other, mask) - ops.masked_softmax(logits, mask)
    assert_close(gradient, expected.detach())


# --- parts of a MultiDiscrete action


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
@pytest.mark.parametrize("nvec", [(2, 3), (4, 1, 2), (3, 3)])
def test_split_parts_cuts_the_row_and_pads_with_invalid(batch, nvec):
    logits = torch.randn(*batch, sum(nvec))
    mask = torch.ones(logits.shape, dtype=torch.bool)
    split_logits, split_mask = split_parts(logits, nvec), split_parts(mask, nvec)
    assert split_logits.shape == split_mask.shape == (*batch, len(nvec), max(nvec))
    assert split_mask.dtype == torch.bool
    for part, n in enumerate(nvec):
        start = sum(nvec[:part])
        assert torch.equal(split_logits[..., part, :n], logits[..., start : start + n])
        assert_close(
            ops.masked_log_softmax(split_logits, split_mask)[..., part, :n],
            torch.log_softmax(logits[..., start : start + n], -1),
        )
        assert not split_mask[..., part, n:].any()
    assert torch.equal(join_parts(split_logits, nvec), logits)


# --- layouts and transforms


@pytest.mark.usefixtures("size")
@all_deterministic
def test_leading_axes_do_not_matter(name):
    arguments = random_arguments((2, 3))
    outputs = DETERMINISTIC[name](ops, *arguments)
    axis = 1 if name == "log_prob_and_entropy" else 0  # it stacks its outputs in front
    for i in range(2):
        for j in range(3):
            row = DETERMINISTIC[name](ops, *(x[i, j] for x in arguments))
            for whole, part in zip(as_tuple(outputs), as_tuple(row), strict=True):
                index = (slice(None),) * axis + (i, j)
                assert_close(whole[index], part, rtol=1e-12, atol=1e-12)


def as_tuple(outputs):
    return outputs if isinstance(outputs, tuple) else (outputs,)


@pytest.mark.usefixtures("size")
@pytest.mark.parametrize("name", [*DETERMINISTIC, *RANDOM])
def test_an_empty_batch_is_fine(name):
    arguments = random_arguments((0,))
    for output in as_tuple({**DETERMINISTIC, **RANDOM}[name](ops, *arguments)):
        assert output.numel() == 0


@pytest.mark.usefixtures("size")
@pytest.mark.parametrize("name", [*DETERMINISTIC, *RANDOM])
def test_memory_layout_does_not_matter(name):
    call = {**DETERMINISTIC, **RANDOM}[name]
    arguments = random_arguments((4, 3))
    transposed = [x.transpose(0, -1).contiguous().transpose(0, -1) for x in arguments]
    torch.manual_seed(1)
    plain = call(ops, *arguments)
    torch.manual_seed(1)
    assert_close(call(ops, *transposed), plain, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # PyTorch's own
@pytest.mark.usefixtures("size")
@pytest.mark.parametrize("name", [name for name in DIFFERENTIABLE if "log_prob" not in name])
def test_forward_mode_agrees(name):
    logits, *others = random_arguments((7,))
    logits = poisoned(logits, others[1])
    op = partial(DIFFERENTIABLE[name], ops)
    direction = torch.randn_like(logits)
    _, tangent = torch.func.jvp(lambda z: op(z, *others), (logits,), (direction,))
    logits.requires_grad_()
    weight = torch.randn_like(tangent)
    (gradient,) = torch.autograd.grad((op(logits, *others) * weight).sum(), logits)
    assert_close((tangent * weight).sum(), (gradient * direction).sum())


@pytest.mark.parametrize("actions", [5, 40])
def test_probabilities_are_contiguous(actions):
    logits, mask = torch.randn(6, actions), random_mask((6, actions))
    assert ops.masked_log_softmax(logits, mask).is_contiguous()
    assert ops.masked_softmax(logits, mask).is_contiguous()


def test_the_sums_of_a_parallel_scan_are_mended():
    # entries of probability 0 must add exactly 0, although the scan has rounded them up or down
    probs = torch.tensor([[0.0, 0.5, 0.0, 0.25, 0.0, 0.25]])
    scanned = torch.tensor([[1e-8, 0.5, 0.5 + 1e-7, 0.75, 0.75 - 1e-7, 1.0]])
    assert ops.monotone(scanned, probs).tolist() == [[0.0, 0.5, 0.5, 0.75, 0.75, 1.0]]


@pytest.mark.usefixtures("size")
@all_deterministic
def test_vmap_agrees(name):
    arguments = random_arguments((7,))
    out_dims = 1 if name == "log_prob_and_entropy" else 0  # it stacks its outputs in front
    mapped = torch.func.vmap(partial(DETERMINISTIC[name], ops), out_dims=out_dims)(*arguments)
    assert_close(mapped, DETERMINISTIC[name](ops, *arguments))


@pytest.mark.usefixtures("size")
@pytest.mark.parametrize("name", RANDOM)
def test_vmap_draws_valid_actions(name):
    arguments = random_arguments((500,))
    op = torch.func.vmap(partial(RANDOM[name], ops), randomness="different")
    action = as_tuple(op(*arguments))[0]
    assert arguments[2].gather(-1, action.unsqueeze(-1)).all()
    assert len(set(action.tolist())) > 1


@pytest.mark.usefixtures("size")
@all_differentiable
def test_vmapped_gradient_agrees(name):
    arguments = random_arguments((7,))

    def gradient(*row):
        op = partial(DIFFERENTIABLE[name], ops)
        return torch.func.grad(lambda z: op(z, *row[1:]).sigmoid().sum())(row[0])

    expected = torch.stack([gradient(*row) for row in zip(*arguments, strict=True)])
    assert_close(torch.func.vmap(gradient)(*arguments), expected)


@pytest.fixture
def plain_ops():
    with without_shape_checks(rows_module, checks, ops) as (*_, module):
        yield module


# PyTorch's own, when it traces an autograd.Function and when it loads inductor
compiler_warns = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@compiler_warns
@pytest.mark.parametrize("name", [name for name in DIFFERENTIABLE if name not in DERIVED])
def test_compiled_value_and_gradient_agree(plain_ops, name):
    logits, *others = random_arguments((7,))
    op = partial(DIFFERENTIABLE[name], plain_ops)
    compiled = torch.compile(lambda z: op(z, *others), fullgraph=True, backend="aot_eager")
    results = []
    for function in (compiled, lambda z: op(z, *others)):
        scores = logits.clone().requires_grad_()
        output = function(scores)
        results.append((output, torch.autograd.grad(output.sum(), scores)[0]))
    assert_close(*results)


@compiler_warns
@pytest.mark.parametrize("name", ["log_prob_and_entropy", "inverse_cdf", "argmax", *RANDOM])
def test_compiled_agrees_without_gradient(plain_ops, name):
    op = partial({**DETERMINISTIC, **RANDOM}[name], plain_ops)
    arguments = random_arguments((7,))
    compiled = torch.compile(lambda *x: op(*x), fullgraph=True, backend="aot_eager")
    torch.manual_seed(1)
    expected = op(*arguments)
    torch.manual_seed(1)
    assert_close(compiled(*arguments), expected)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@compiler_warns
def test_inductor_agrees(plain_ops):
    def everything(*arguments):
        return {name: call(plain_ops, *arguments) for name, call in DETERMINISTIC.items()}

    logits, *others = random_arguments((9,), dtype=torch.float32)
    results = []
    with torch._inductor.config.patch(compile_threads=1):  # no worker processes
        for function in (torch.compile(everything, fullgraph=True), everything):
            scores = logits.clone().requires_grad_()
            outputs = function(scores, *others)
            loss = sum(outputs[name].sum() for name in DIFFERENTIABLE if name != "log_softmax")
            results.append((outputs, torch.autograd.grad(loss, scores)[0]))
    assert_close(*results)


@pytest.mark.usefixtures("types_are_not_checked")
def test_what_ties_may_be():
    with pytest.raises(ValueError, match="ties is 'frist'; choose one of split, first"):
        ops.masked_max(torch.zeros(2, 2), torch.ones(2, 2, dtype=torch.bool), "frist")
