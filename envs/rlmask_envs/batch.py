"""The arrays of N copies of a game: made, captured and restored."""

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from rlmask_envs.rules import Setup


class Batch(NamedTuple):
    """N copies of a game, and what there is to tell of them after a reset or a step."""

    states: np.ndarray  # [N] records
    rngs: np.ndarray  # [N, 2] uint64, key and counter
    steps: np.ndarray  # [N] int64, since the episode began
    obs: np.ndarray  # [N, *obs]
    masks: np.ndarray  # [N, A] int8
    rewards: np.ndarray  # [N] float64
    terminated: np.ndarray  # [N] bool
    truncated: np.ndarray  # [N] bool
    final_obs: np.ndarray  # [N, *obs], of those that ended and were restarted
    final_masks: np.ndarray  # [N, A] int8


def make_options(setup: Setup) -> np.ndarray:
    """Return the options as one record, [1]; numbers become int64 or float64, arrays stay."""
    arrays = {name: np.asarray(value) for name, value in setup.options.items()}
    dtype = [(name, array.dtype, array.shape) for name, array in arrays.items()]
    record = np.zeros(1, np.dtype(dtype or [("nothing", np.int64)], align=True))
    for name, array in arrays.items():
        record[name] = array
    return record


def make_batch(setup: Setup, num_envs: int) -> Batch:
    """Return room for N copies."""
    obs, num_actions = setup.observation_space, setup.num_actions
    fields = setup.state.fields or {}
    aligned = np.dtype([(name, spec[0]) for name, spec in fields.items()], align=True)
    return Batch(
        states=np.zeros(num_envs, aligned),
        rngs=np.zeros((num_envs, 2), np.uint64),
        steps=np.zeros(num_envs, np.int64),
        obs=np.zeros((num_envs, *obs.shape), obs.dtype),
        masks=np.zeros((num_envs, num_actions), np.int8),
        rewards=np.zeros(num_envs),
        terminated=np.zeros(num_envs, bool),
        truncated=np.zeros(num_envs, bool),
        final_obs=np.zeros((num_envs, *obs.shape), obs.dtype),
        final_masks=np.zeros((num_envs, num_actions), np.int8),
    )


def capture(batch: Batch, options: np.ndarray, game: str) -> dict[str, Any]:
    """Return all of a batch that lasts, as plain arrays and text."""
    return {
        "game": game,
        "sizes": fingerprint(batch.states.dtype, options),
        "states": batch.states.view(np.uint8).reshape(len(batch.states), -1).copy(),
        "rngs": batch.rngs.copy(),
        "steps": batch.steps.copy(),
    }


def fingerprint(state: np.dtype, options: np.ndarray) -> str:
    """Return a hash of what the sizes of a game decide: the layout of its state, the options."""
    digest = hashlib.sha256(f"{state}{options.dtype}".encode())
    for name in options.dtype.names or ():
        digest.update(np.ascontiguousarray(options[name]).tobytes())
    return digest.hexdigest()


def restore(batch: Batch, options: np.ndarray, game: str, state: Mapping[str, Any]) -> None:
    """Write a captured state to a batch, if it fits."""
    for name, own in capture(batch, options, game).items():
        found: Any = state.get(name)
        if isinstance(own, str):
            fits = found == own
        else:
            fits = (np.shape(found), getattr(found, "dtype", None)) == (own.shape, own.dtype)
        if not fits:
            raise ValueError(
                f"the state is not one of these {len(batch.steps)} copies of {game}: `{name}` "
                "differs; restore it into an env of the same game, keyword arguments and num_envs"
            )
    batch.states.view(np.uint8).reshape(len(batch.states), -1)[:] = state["states"]
    batch.rngs[:], batch.steps[:] = state["rngs"], state["steps"]


def rows_of(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return an array of its own with some of the rows, and zeros in the others."""
    own = np.zeros_like(array)
    own[rows] = array[rows]
    return own
