"""Rows of several games in one batch: in turn, row i is of game i modulo G.

So come the rows of a vector env, of a rollout in one row, and of every minibatch.

Dimension key: `B` rows, `G` games.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Int, Shaped
from torch import Tensor


def by_game(x: Shaped[Tensor, " B *shape"], num_games: int) -> Shaped[Tensor, " G rows *shape"]:
    """Return the rows of each game.

    Raises:
        ValueError: if they are not as many of each.
    """
    if len(x) % num_games:
        raise ValueError(
            f"{len(x)} rows are not an equal share of each of {num_games} games: give a network of "
            "several games the rows of all games in turn"
        )
    return x.unflatten(0, (-1, num_games)).transpose(0, 1)


def by_row(x: Shaped[Tensor, " G rows *shape"]) -> Shaped[Tensor, " B *shape"]:
    """Return the rows of all games in turn; undoes `by_game`."""
    return x.transpose(0, 1).flatten(0, 1)


def interleave(parts: Sequence[Tensor]) -> Tensor:
    """Return the rows of G tensors [B / G, *shape] in turn, [B, *shape]."""
    return torch.stack(list(parts), dim=1).flatten(0, 1)


def shuffled_in_turn(
    num_rows: int, num_games: int, generator: torch.Generator, passes: int = 1
) -> Int[Tensor, " B"]:
    """Return the rows in random order, of the games in turn.

    Args:
        passes: how often each row comes; every pass over a game has all of its rows.
    """
    of_games = [
        torch.cat(
            [torch.randperm(num_rows // num_games, generator=generator) for _ in range(passes)]
        )
        for _ in range(num_games)
    ]
    return (torch.stack(of_games, 1) * num_games + torch.arange(num_games)).flatten()
