"""Running moments of observations and rewards, frozen while a rollout is in use.

Observations are scaled by what was seen before the rollout (nothing, in the first), so that within
an update every network sees the same scaling, and the first probability ratio of PPO is 1.
Rewards are scaled by what was seen up to the end of the rollout.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def update_moments(
    mean: Tensor, var: Tensor, count: Tensor, batch: Float[Tensor, " B *shape"]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, variance and count of all that was seen, with a batch added.

    Reference: Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for computing
    sample variances", eq. 2.1.
    """
    batch = batch.to(mean.dtype)
    n = batch.shape[0]
    delta = batch.mean(dim=0) - mean
    total = count + n
    moment = var * count + batch.var(dim=0, correction=0) * n + delta.square() * (count * n / total)
    return mean + delta * (n / total), moment / total, total


class RewardScaler:
    """Divides rewards by the standard deviation of the discounted return, each game by its own.

    Reference: Engstrom et al. 2020, arXiv:2005.12729, section 3.1 ("reward scaling").

    Args:
        num_envs: N.
        gamma: discount of the return, per step.
        num_games: G; env i plays game i modulo G.
    """

    def __init__(self, num_envs: int, gamma: float, num_games: int = 1) -> None:
        self._gamma, self._games = gamma, num_games
        self._discounted = torch.zeros(num_envs, dtype=torch.float64)
        self._mean = torch.zeros(num_games, dtype=torch.float64)
        self._var = torch.ones(num_games, dtype=torch.float64)
        self._count = torch.full((), 1e-4, dtype=torch.float64)

    def scale(self, reward: Float[Tensor, " T N"]) -> Float[Tensor, " T N"]:
        """Return the rewards in units of the standard deviation seen so far."""
        deviation = (self._var + 1e-8).sqrt().repeat(reward.shape[1] // self._games)
        return (reward / deviation.to(reward.device)).to(reward.dtype)

    def observe(self, reward: Float[Tensor, " T N"], ended: Bool[Tensor, " T N"]) -> None:
        """Add the rewards of a rollout to the statistics."""
        reward, ended = reward.double().cpu(), ended.cpu()
        returns = torch.empty_like(reward)
        for t in range(reward.shape[0]):
            self._discounted = self._discounted * self._gamma + reward[t]
            returns[t] = self._discounted
            self._discounted = self._discounted * ~ended[t]
        of_game = returns.view(-1, self._games)  # [T, N] -> [T*N/G, G]
        moments = update_moments(self._mean, self._var, self._count, of_game)
        self._mean, self._var, self._count = moments

    def capture(self) -> dict[str, Tensor]:
        """Return the state."""
        return {
            "discounted": self._discounted,
            "mean": self._mean,
            "var": self._var,
            "count": self._count,
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from a captured state."""
        self._discounted, self._mean = state["discounted"].clone(), state["mean"].clone()
        self._var, self._count = state["var"].clone(), state["count"].clone()
