"""Running moments of observations, rewards and values, frozen while a rollout is in use.

Observations are scaled by what was seen before the rollout (nothing, in the first), so that within
an update every network sees the same scaling, and the first probability ratio of PPO is 1.
Rewards are scaled by what was seen up to the end of the rollout.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rlmask.types import ObsSpec


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


class ObsScaler(nn.Module):
    """Subtracts the running mean of vector observations, divides by the running deviation.

    What comes out is clipped to ±10. The statistics are part of the weights.
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, obs: ObsSpec) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(obs.shape, dtype=torch.float64))
        self.register_buffer("var", torch.ones(obs.shape, dtype=torch.float64))
        self.register_buffer("count", torch.full((), 1e-4, dtype=torch.float64))

    def forward(self, obs: Float[Tensor, " B *obs"]) -> Float[Tensor, " B *obs"]:
        """Return the observations in units of the deviation."""
        return ((obs - self.mean) / (self.var + 1e-8).sqrt()).clamp(-10, 10).float()

    @torch.no_grad()
    def observe(self, obs: Float[Tensor, " B *obs"]) -> None:
        """Add observations to the statistics."""
        moments = update_moments(self.mean, self.var, self.count, obs)
        for buffer, new in zip((self.mean, self.var, self.count), moments, strict=True):
            buffer.copy_(new)


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


class PopArt:
    """Value targets on one scale for all games, without a jump of what the network says.

    μ and σ of each game follow its value targets; the network predicts (target - μ) / σ. Whenever
    they change, its last layer is rescaled so that σ · output + μ stays what it was.

    Reference: van Hasselt et al. 2016, arXiv:1602.07714, eq. 2-3 and 7; Hessel et al. 2018,
    arXiv:1809.04474 (a layer for each task).

    Args:
        num_games: G; row or env i is of game i modulo G.
        rate: of the moving averages, per rollout; the first ones count as in a plain mean.
    """

    def __init__(self, num_games: int, rate: float = 0.02) -> None:
        self._rate, self._updates = rate, 0
        self._mean = torch.zeros(num_games, dtype=torch.float64)
        self._second = torch.ones(num_games, dtype=torch.float64)  # moment about 0

    @property
    def deviation(self) -> Float[Tensor, " G"]:
        """σ of each game, in units of (raw) return."""
        return (self._second - self._mean.square()).clamp(min=1e-8, max=1e12).sqrt()

    @property
    def mean(self) -> Float[Tensor, " G"]:
        """μ of each game."""
        return self._mean

    def raw(self, value: Float[Tensor, " T N"]) -> Float[Tensor, " T N"]:
        """Return what the network's outputs stand for, σ · value + μ."""
        return value * self._of_envs(self.deviation, value) + self._of_envs(self._mean, value)

    def scaled(self, value: Float[Tensor, " T N"]) -> Float[Tensor, " T N"]:
        """Return what the network has to say for raw values; undoes `raw`."""
        return (value - self._of_envs(self._mean, value)) / self._of_envs(self.deviation, value)

    def divided(self, advantage: Float[Tensor, " T N"]) -> Float[Tensor, " T N"]:
        """Return advantages in units of their game's σ."""
        return advantage / self._of_envs(self.deviation, advantage)

    @torch.no_grad()
    def observe(
        self, target: Float[Tensor, " T N"], weight: Float[Tensor, " G *shape"], bias: Tensor
    ) -> None:
        """Add a rollout's raw value targets to the statistics, and rescale the last layer.

        Args:
            weight: of the value's layer, a row a game; changed in place.
            bias: of the same, a number a game; changed in place.
        """
        mean, deviation = self._mean, self.deviation
        of_game = target.double().cpu().view(-1, len(mean))  # [T, N] -> [T*N/G, G]
        self._updates += 1
        rate = max(self._rate, 1 / self._updates)
        self._mean = torch.lerp(mean, of_game.mean(0), rate)
        self._second = torch.lerp(self._second, of_game.square().mean(0), rate)
        ratio = (deviation / self.deviation).to(weight)
        shift = ((mean - self._mean) / self.deviation).to(bias)
        weight.mul_(ratio.view(-1, *[1] * (weight.ndim - 1)))
        bias.mul_(ratio.view(-1, *[1] * (bias.ndim - 1)))
        bias.add_(shift.view(-1, *[1] * (bias.ndim - 1)))

    def capture(self) -> dict[str, Any]:
        """Return the state."""
        return {"updates": self._updates, "mean": self._mean, "second_moment": self._second}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a captured state."""
        self._updates = state["updates"]
        self._mean, self._second = state["mean"].clone(), state["second_moment"].clone()

    def _of_envs(self, of_game: Tensor, like: Tensor) -> Tensor:
        return of_game.to(like).repeat(like.shape[-1] // len(of_game))
