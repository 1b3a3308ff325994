"""`masked_ppo_loss` writes its gradient out; autograd of the plain composition is the judge."""

import math

import pytest
import torch

from rlmask import ops

SETTINGS = {
    "clip_range": 0.2,
    "value_clip_range": None,
    "value_coef": 0.5,
    "entropy_coef": 0.01,
    "normalize_entropy": False,
}


def sample(parts=(), actions=5, rows=64, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, *parts, actions)
    logits = torch.randn(shape, generator=generator, dtype=dtype)
    mask = torch.rand(shape, generator=generator) < 0.5
    mask[..., 0] |= ~mask.any(-1)
    action, log_prob = ops.masked_sample(logits, mask, generator)
    old_log_prob = log_prob.sum(-1) if parts else log_prob
    # far enough from the old policy that every branch of the clipping is taken
    old_log_prob = old_log_prob + 0.4 * torch.randn(rows, generator=generator, dtype=dtype)
    value, old_value, advantage, target = torch.randn((4, rows), generator=generator, dtype=dtype)
    return logits, value, mask, action, old_log_prob, old_value, advantage, target


def composition(logits, value, mask, action, old_log_prob, old_value, advantage, target, settings):
    log_probs = ops.masked_log_softmax(logits, mask)
    log_prob = log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1)
    entropy = ops.masked_entropy(log_probs, mask, normalized=settings["normalize_entropy"])
    if action.ndim > 1:
        log_prob, entropy = log_prob.sum(-1), entropy.sum(-1)
    policy = ops.clipped_surrogate_loss(
        log_prob, old_log_prob, advantage, settings["clip_range"]
    ).mean()
    value_loss = ops.value_loss(value, old_value, target, settings["value_clip_range"]).mean()
    loss = policy + settings["value_coef"] * value_loss - settings["entropy_coef"] * entropy.mean()
    return loss, (policy, value_loss, entropy.mean(), log_prob)


@pytest.mark.parametrize("parts", [(), (3,)])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"value_clip_range": 0.3},
        {"normalize_entropy": True},
        {"entropy_coef": 0.0},
        {"entropy_coef": 2.0, "value_coef": 3.0, "clip_range": 0.05},
    ],
)
def test_losses_and_gradient_are_those_of_the_composition(parts, changes):
    settings = {**SETTINGS, **changes}
    arguments = sample(parts)
    logits, value = arguments[0].requires_grad_(), arguments[1].requires_grad_()
    loss, (policy, value_loss, entropy, log_prob) = composition(*arguments, settings)
    expected = torch.autograd.grad(loss, (logits, value))

    terms, *gradient = ops.masked_ppo_loss(*arguments, **settings)

    torch.testing.assert_close(tuple(gradient), expected, rtol=1e-10, atol=1e-14)
    metrics = ops.ppo_metrics([terms], settings["clip_range"])
    log_ratio = log_prob.detach() - arguments[4]
    ratio = log_ratio.exp()
    torch.testing.assert_close(terms.log_ratio, log_ratio)
    assert metrics["loss/policy"] == pytest.approx(policy.item())
    assert metrics["loss/value"] == pytest.approx(value_loss.item())
    assert metrics["loss/entropy"] == pytest.approx(entropy.item())
    assert metrics["loss/approx_kl"] == pytest.approx((ratio - 1 - log_ratio).mean().item())
    clipped = ((ratio - 1).abs() > settings["clip_range"]).double().mean().item()
    assert metrics["loss/clip_fraction"] == pytest.approx(clipped)
    assert 0 < clipped < 1


def test_metrics_are_the_means_over_all_minibatches():
    first, second = (ops.masked_ppo_loss(*sample(seed=i), **SETTINGS)[0] for i in range(2))
    whole = ops.ppo_metrics([first, second], 0.2)
    halves = [ops.ppo_metrics([terms], 0.2) for terms in (first, second)]
    assert whole == pytest.approx({k: (halves[0][k] + halves[1][k]) / 2 for k in whole})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_invalid_logits_have_no_gradient_and_no_say(dtype):
    logits, *rest = sample(dtype=torch.float32)
    mask = rest[1]
    hard = torch.where(mask, logits, torch.tensor([1e4, -1e4, math.inf, math.nan, 3.0])).to(dtype)
    easy = torch.where(mask, logits, 0.0).to(dtype)
    terms, gradient, _ = ops.masked_ppo_loss(hard, *rest, **SETTINGS)
    same_terms, same_gradient, _ = ops.masked_ppo_loss(easy, *rest, **SETTINGS)
    assert gradient.dtype == dtype
    assert gradient[~mask].eq(0).all() and gradient.isfinite().all()
    assert torch.equal(gradient, same_gradient)
    assert all(map(torch.equal, terms, same_terms))


def test_a_row_with_one_valid_action_has_no_policy_gradient():
    logits, *rest = sample(rows=4, dtype=torch.float32)
    rest[1][:] = torch.tensor([False, False, True, False, False])
    rest[2][:], rest[3][:] = 2, 0.0
    terms, gradient, _ = ops.masked_ppo_loss(logits * 1e30, *rest, **SETTINGS)
    assert gradient.eq(0).all()
    assert terms.entropy.eq(0).all() and terms.log_ratio.eq(0).all()


def test_a_ratio_that_overflows_stays_finite():
    logits, value, mask, action, old, *rest = sample(dtype=torch.float32)
    for advantage in (-1.0, 0.0, 1.0):
        rest[1][:] = advantage
        terms, gradient, _ = ops.masked_ppo_loss(
            logits, value, mask, action, old - 200, *rest, **SETTINGS
        )
        assert gradient.isfinite().all() and terms.surrogate.isfinite().all()
        assert math.isfinite(ops.ppo_metrics([terms], 0.2)["loss/approx_kl"])


def test_an_empty_batch_has_no_gradient():
    terms, grad_logits, grad_value = ops.masked_ppo_loss(
        *(x[:0] for x in sample(dtype=torch.float32)), **SETTINGS
    )
    assert grad_logits.shape == (0, 5) and grad_value.shape == (0,)
    assert all(len(term) == 0 for term in terms)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gradients_have_the_dtype_of_what_they_are_gradients_of(dtype):
    arguments = list(sample(dtype=torch.float32))
    arguments[0], arguments[1] = arguments[0].to(dtype), arguments[1].to(dtype)
    _, grad_logits, grad_value = ops.masked_ppo_loss(*arguments, **SETTINGS)
    assert grad_logits.dtype == grad_value.dtype == dtype


def test_debug_refuses_an_invalid_action():
    arguments = list(sample())
    arguments[2] = arguments[2].clone()
    arguments[2][7, arguments[3][7]] = False
    arguments[2][7, (arguments[3][7] + 1) % 5] = True
    ops.set_debug(True)
    try:
        with pytest.raises(ops.InvalidActionError, match=r"row \[7\]"):
            ops.masked_ppo_loss(*arguments, **SETTINGS)
    finally:
        ops.set_debug(False)


def test_parts_are_padded_with_invalid_entries():
    mask = torch.tensor([[True, False, True, True, True, False]])
    scores = torch.arange(6.0)[None]
    assert ops.split_parts(scores, (6,)) is scores
    expected = torch.tensor([[[0.0, 1, 0], [2, 3, 4], [5, 0, 0]]])
    assert torch.equal(ops.split_parts(scores, (2, 3, 1)), expected)
    expected_mask = [[[True, False, False], [True, True, True], [False, False, False]]]
    assert ops.split_parts(mask, (2, 3, 1)).tolist() == expected_mask
    with pytest.raises(ValueError, match="does not split"):
        ops.split_parts(scores, (2, 3))
