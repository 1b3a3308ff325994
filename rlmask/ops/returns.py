"""Advantages and returns over a rollout.

Two flags end a step. *Terminated*: the episode is over, nothing follows, the return ends.
*Truncated*:
the episode was cut (time limit), the return goes on, so it bootstraps from the value of the true
final observation. `discount = gamma * ~terminated` carries the first, `ended = terminated |
truncated` stops every sum at the boundary of an episode. `next_value[t]` is the value of the true
successor of step t, also where the vector env has already reset.

Dimension key: `T` steps, `*batch` envs.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def generalized_advantage_estimation(
    reward: Float[Tensor, " T *batch"],
    value: Float[Tensor, " T *batch"],
    next_value: Float[Tensor, " T *batch"],
    discount: Float[Tensor, " T *batch"],
    ended: Bool[Tensor, " T *batch"],
    gae_lambda: float,
) -> Float[Tensor, " T *batch"]:
    """Return GAE(γ, λ) advantages.

    δ_t = r_t + d_t V(s'_t) - V(s_t),   A_t = δ_t + d_t λ (1 - ended_t) A_{t+1}.

    Reference: Schulman et al. 2016, arXiv:1506.02438, eq. 16.
    """
    delta = reward + discount * next_value - value
    decay = gae_lambda * discount * ~ended
    advantage = [delta[-1]]
    for t in reversed(range(delta.shape[0] - 1)):
        advantage.append(torch.addcmul(delta[t], decay[t], advantage[-1]))
    return torch.stack(advantage[::-1])


def lambda_return(
    reward: Float[Tensor, " T *batch"],
    next_value: Float[Tensor, " T *batch"],
    discount: Float[Tensor, " T *batch"],
    ended: Bool[Tensor, " T *batch"],
    lambda_: float,
) -> Float[Tensor, " T *batch"]:
    """Return λ-returns, bootstrapped at the end of the rollout and at every truncation.

    G_t = r_t + d_t [(1 - λ_t) V(s'_t) + λ_t G_{t+1}], λ_t = 0 at the last step of an episode and of
    the rollout, else λ.

    Reference: Sutton & Barto 2018, eq. 12.20.
    """
    lambdas = lambda_ * (~ended).to(reward.dtype)
    returns = [reward[-1] + discount[-1] * next_value[-1]]
    for t in reversed(range(reward.shape[0] - 1)):
        mixed = next_value[t] + lambdas[t] * (returns[-1] - next_value[t])
        returns.append(reward[t] + discount[t] * mixed)
    return torch.stack(returns[::-1])


def n_step_return(
    reward: Float[Tensor, " T *batch"],
    next_value: Float[Tensor, " T *batch"],
    discount: Float[Tensor, " T *batch"],
    ended: Bool[Tensor, " T *batch"],
    n: int,
) -> Float[Tensor, " T *batch"]:
    """Return n-step returns, shorter where the episode or the rollout ends sooner.

    G_t = r_t + d_t r_{t+1} + ... + (d_t ... d_{t+m-1}) V(s'_{t+m-1}), m <= n the number of steps
    until the episode, the rollout or the window ends.

    Reference: Sutton & Barto 2018, eq. 7.1.

    Raises:
        ValueError: if n < 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    returns = reward + discount * next_value
    for _ in range(n - 1):
        # one step longer: the (m-1)-step return of the next step, unless this one was the last
        longer = reward[:-1] + discount[:-1] * returns[1:]
        returns = torch.cat([torch.where(ended[:-1], returns[:-1], longer), returns[-1:]])
    return returns
