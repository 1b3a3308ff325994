"""Rollouts of any policy in any env, with the masks that the env gives."""

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from rlmask.types import Episode, Policy, forget
from rlmask.vector import EnvError, VectorEnv


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Figures of a number of episodes.

    Attributes:
        mean_return: undiscounted, in the env's own reward.
        standard_error: of the mean return; NaN for a single episode.
        episodes: how many.
        mean_length: steps.
        invalid_actions: share of the steps whose action the mask ruled out, or the env called
            invalid.
    """

    mean_return: float
    standard_error: float
    episodes: int
    mean_length: float
    invalid_actions: float

    def as_json(self) -> dict[str, float | None]:
        """Return the figures by name; None where one is not defined, since JSON has no NaN."""
        return {k: v if math.isfinite(v) else None for k, v in asdict(self).items()}


def evaluate(
    policy: Policy,
    envs: VectorEnv,
    num_episodes: int,
    *,
    use_mask: bool = True,
    max_episode_steps: int = 100_000,
) -> list[Episode]:
    """Play until `num_episodes` have ended; return them in the order of env and episode.

    Every env plays its own fixed share, so that short episodes are not favoured.

    Args:
        use_mask: False shows the policy a mask in which everything is valid, to see how much it
            depends on the true one; the envs must then not enforce theirs.
        max_episode_steps: a greedy policy can walk in circles for ever, see `make_vector`.

    Raises:
        EnvError: if no episode ends within `max_episode_steps`.
    """
    share = [len(range(i, num_episodes, envs.num_envs)) for i in range(envs.num_envs)]
    ended: list[list[Episode]] = [[] for _ in range(envs.num_envs)]
    running = torch.zeros(envs.num_envs, dtype=torch.int64)  # steps since the last end
    obs, action_mask = envs.reset()
    forget(policy)
    while any(len(e) < s for e, s in zip(ended, share, strict=True)):
        seen: Tensor = action_mask if use_mask else torch.ones_like(action_mask)
        step = envs.step(policy(obs, seen))
        obs, action_mask = step.obs, step.action_mask
        forget(policy, step.ended)
        for index, episode in zip(step.ended.tolist(), step.episodes, strict=True):
            if len(ended[index]) < share[index]:
                ended[index].append(episode)
        running += 1
        running[step.ended] = 0
        too_long = (running >= max_episode_steps).nonzero().flatten().tolist()
        endless = [i for i in too_long if len(ended[i]) < share[i]]
        if endless:
            game = envs.spec.games[endless[0] % len(envs.spec.games)]
            raise EnvError(
                f"an evaluation episode of {game.env_id} did not end in {max_episode_steps} "
                "steps, and nothing cuts it; give the env a time limit"
            )
    return [episode for episodes in ended for episode in episodes]


def summarize(episodes: list[Episode]) -> Evaluation:
    """Return the figures of some episodes.

    Raises:
        ValueError: if there are none.
    """
    n = len(episodes)
    if not n:
        raise ValueError("no episode to summarize")
    returns = [episode.episode_return for episode in episodes]
    steps = sum(episode.episode_length for episode in episodes)
    mean = sum(returns) / n
    variance = sum((r - mean) ** 2 for r in returns) / (n - 1) if n > 1 else math.nan
    return Evaluation(
        mean_return=mean,
        standard_error=math.sqrt(variance / n),
        episodes=n,
        mean_length=steps / n,
        invalid_actions=sum(episode.invalid_actions for episode in episodes) / steps,
    )
