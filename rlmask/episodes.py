"""The episodes that ended last: what a training return is the mean of."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlmask.types import Episode


def metric_suffixes(games: Sequence[str]) -> list[str]:
    """Return what the names of metrics end in, game by game: nothing if there is only one."""
    return [f"/{name}" for name in games] if len(games) > 1 else [""]


class RecentEpisodes:
    """The last hundred training episodes of each game.

    Args:
        games: their names, of which metrics carry one if there are several.
    """

    def __init__(self, games: Sequence[str]) -> None:
        self._games = {name: deque[Episode](maxlen=100) for name in games}

    def add(self, episodes: Iterable[Episode]) -> None:
        """Remember episodes, forget what is too old."""
        of_game = list(self._games.values())
        for episode in episodes:
            of_game[episode.game].append(episode)

    def metrics(self) -> dict[str, float]:
        """Return mean return and length, by game if there are several; nothing before an end."""
        metrics = {}
        suffixes = metric_suffixes(list(self._games))
        for suffix, episodes in zip(suffixes, self._games.values(), strict=True):
            if episodes:
                returns = [episode.episode_return for episode in episodes]
                lengths = [episode.episode_length for episode in episodes]
                metrics[f"rollout/episode_return{suffix}"] = sum(returns) / len(returns)
                metrics[f"rollout/episode_length{suffix}"] = sum(lengths) / len(lengths)
        return metrics

    def capture(self) -> list[dict[str, Any]]:
        """Return the episodes, game by game, as plain values."""
        return [vars(episode) for episodes in self._games.values() for episode in episodes]

    def restore(self, state: Iterable[Mapping[str, Any]]) -> None:
        """Remember captured episodes."""
        self.add(Episode(**episode) for episode in state)
