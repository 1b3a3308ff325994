"""Pure tensor functions: masked distributions, returns, losses, schedules."""

from rlmask.ops.losses import approximate_kl, clipped_surrogate_loss, huber_loss, value_loss
from rlmask.ops.masking import (
    EmptyMaskError,
    InvalidActionError,
    check_mask,
    masked_argmax,
    masked_entropy,
    masked_epsilon_greedy,
    masked_inverse_cdf,
    masked_kl,
    masked_log_prob_and_entropy,
    masked_log_softmax,
    masked_max,
    masked_mean,
    masked_sample,
    masked_softmax,
    normalize_entropy,
    set_debug,
)
from rlmask.ops.returns import generalized_advantage_estimation, lambda_return, n_step_return
from rlmask.ops.schedules import linear_schedule

__all__ = [
    "EmptyMaskError",
    "InvalidActionError",
    "approximate_kl",
    "check_mask",
    "clipped_surrogate_loss",
    "generalized_advantage_estimation",
    "huber_loss",
    "lambda_return",
    "linear_schedule",
    "masked_argmax",
    "masked_entropy",
    "masked_epsilon_greedy",
    "masked_inverse_cdf",
    "masked_kl",
    "masked_log_prob_and_entropy",
    "masked_log_softmax",
    "masked_max",
    "masked_mean",
    "masked_sample",
    "masked_softmax",
    "n_step_return",
    "normalize_entropy",
    "set_debug",
    "value_loss",
]
