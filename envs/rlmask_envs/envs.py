"""A game as a Gymnasium env: N copies behind one call, or a single one."""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from rlmask_envs.compiled import Batch, first_invalid, load_game, loops_of
from rlmask_envs.rules import Setup

RENDER_MODES = ("rgb_array", "ansi")
NEVER = np.iinfo(np.int64).max
ENVS_PER_THREAD = 512  # below that, waking a thread takes about as long as what it would do


class InvalidActionError(ValueError):
    """An action that the rules do not allow; names the env and the action."""


class GameVectorEnv(VectorEnv):
    """N copies of a game, stepped in one compiled call a thread.

    An episode that ends is followed by the next one within the same step (autoreset mode SameStep):
    `obs` and `info["action_mask"]` are then the new one's, the end of the old one is in
    `info["final_obs"]` and `info["final_info"]["action_mask"]`, in the rows that
    `info["_final_obs"]` marks. Copy i draws from its own stream of random numbers, which depends on
    the seed and i alone: trajectories are the same for any number of threads and of copies.

    Args:
        game: name of the module with the rules.
        num_envs: N.
        max_episode_steps: an episode is truncated there; None: never.
        num_threads: that share the copies; None: one for 512 copies each, at most all cores.
        copy: return arrays of their own each time; if not, the same ones, written over by the
            next call.
        render_mode: `rgb_array` or `ansi`.
        **sizes: of the game.

    Raises:
        ValueError: for sizes that the game cannot be played in.
    """

    metadata = {  # noqa: RUF012  as Gymnasium has it
        "autoreset_mode": AutoresetMode.SAME_STEP,
        "render_modes": list(RENDER_MODES),
        "render_fps": 8,
    }

    def __init__(
        self,
        game: str,
        num_envs: int = 1,
        *,
        max_episode_steps: int | None = None,
        num_threads: int | None = None,
        copy: bool = True,
        render_mode: str | None = None,
        **sizes: Any,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs is {num_envs}; it has to be at least 1")
        self.game, self.setup = set_up(game, render_mode, sizes)
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.single_observation_space = self.setup.observation_space
        self.single_action_space = spaces.Discrete(self.setup.num_actions)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._max_steps = NEVER if max_episode_steps is None else max_episode_steps
        self._crew = Crew(num_envs, choose_threads(num_threads, num_envs))
        self._copy = copy
        self._loops = loops_of(self.game)
        self._options = make_record(self.setup.options)
        self._batch = make_batch(self.setup, num_envs)
        self._is_seeded = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode in every copy; without a seed, go on drawing from the streams."""
        if seed is not None or not self._is_seeded:
            self._batch.rngs[:, 0] = keys(seed, self.num_envs)
            self._batch.rngs[:, 1] = 0
            self._is_seeded = True
        return self._show(begin=True)

    def step(
        self, actions: Any
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Take an action [N] in every copy.

        Raises:
            InvalidActionError: if one is invalid; then no copy has moved.
            ValueError: if there is not one a copy.
        """
        batch = self._batch
        actions = np.asarray(actions, np.int64)
        if actions.shape != (self.num_envs,):
            raise ValueError(f"actions have shape {actions.shape}, not ({self.num_envs},)")
        if not self._is_seeded:
            raise gym.error.ResetNeeded("call reset() before step()")
        check_actions(self.game, actions, batch.masks)
        self._crew.run(
            partial(self._loops.step_some, batch, actions, self._options, self._max_steps, True)
        )
        obs, masks, rewards, terminated, truncated = (
            self._own(array)
            for array in (
                batch.obs,
                batch.masks,
                batch.rewards,
                batch.terminated,
                batch.truncated,
            )
        )
        info: dict[str, Any] = {"action_mask": masks}
        ended = batch.terminated | batch.truncated
        if ended.any():
            info["final_obs"], info["_final_obs"] = self._own_rows(batch.final_obs, ended), ended
            info["final_info"] = {"action_mask": self._own_rows(batch.final_masks, ended)}
            info["_final_info"] = ended
        return obs, rewards, terminated, truncated, info

    def capture_state(self) -> dict[str, np.ndarray]:
        """Return everything that the rest of the trajectories depends on, as plain arrays."""
        batch = self._batch
        states = batch.states.view(np.uint8).reshape(self.num_envs, -1)
        return {"states": states.copy(), "rngs": batch.rngs.copy(), "steps": batch.steps.copy()}

    def restore_state(self, state: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
        """Go back to a captured state; return its observations and masks.

        Raises:
            ValueError: if it is of another number of copies or other sizes.
        """
        own = self.capture_state()
        for name, array in own.items():
            if np.shape(state[name]) != array.shape:
                raise ValueError(
                    f"the state of {self.game.__name__} has `{name}` of shape "
                    f"{np.shape(state[name])}, these envs {array.shape}: other sizes or num_envs"
                )
        batch = self._batch
        batch.states.view(np.uint8).reshape(self.num_envs, -1)[:] = state["states"]
        batch.rngs[:], batch.steps[:] = state["rngs"], state["steps"]
        self._is_seeded = True
        return self._show(begin=False)

    def render(self) -> tuple[Any, ...] | None:
        """Return a picture or a text of every copy."""
        if self.render_mode is None:
            return None
        return tuple(
            show(self.game, self.render_mode, state, self._options)
            for state in self._batch.states.view(np.recarray)
        )

    def close_extras(self, **kwargs: Any) -> None:
        """End the threads."""
        self._crew.end()

    def _show(self, begin: bool) -> tuple[np.ndarray, dict[str, Any]]:
        self._crew.run(partial(self._loops.reset_some, self._batch, self._options, begin))
        return self._own(self._batch.obs), {"action_mask": self._own(self._batch.masks)}

    def _own(self, array: np.ndarray) -> np.ndarray:
        return array.copy() if self._copy else array

    def _own_rows(self, array: np.ndarray, rows: np.ndarray) -> np.ndarray:
        if not self._copy:
            return array
        own = np.zeros_like(array)
        own[rows] = array[rows]
        return own


class GameEnv(gym.Env):
    """One copy of a game as an ordinary Gymnasium env; `info["action_mask"]` is its mask, int8.

    The time limit is Gymnasium's wrapper, as `gymnasium.make` puts it on.

    Args:
        game: name of the module with the rules.
        render_mode: `rgb_array` or `ansi`.
        **sizes: of the game.

    Raises:
        ValueError: for sizes that the game cannot be played in.
    """

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": 8}  # noqa: RUF012

    def __init__(self, game: str, *, render_mode: str | None = None, **sizes: Any) -> None:
        self.game, self.setup = set_up(game, render_mode, sizes)
        self.render_mode = render_mode
        self.observation_space = self.setup.observation_space
        self.action_space = spaces.Discrete(self.setup.num_actions)
        self._loops = loops_of(self.game)
        self._options = make_record(self.setup.options)
        self._batch = make_batch(self.setup, 1)
        self._action = np.zeros(1, np.int64)
        self._is_running = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode."""
        super().reset(seed=seed)
        batch = self._batch
        batch.rngs[0] = self.np_random.integers(2**64, dtype=np.uint64), 0
        self._loops.reset_some(batch, self._options, True, 0, 1)
        self._is_running = True
        return batch.obs[0].copy(), {"action_mask": batch.masks[0].copy()}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take an action.

        Raises:
            InvalidActionError: if it is invalid; the state is then as it was.
        """
        if not self._is_running:
            raise gym.error.ResetNeeded("the episode has ended or not begun: call reset()")
        batch = self._batch
        self._action[0] = action
        check_actions(self.game, self._action, batch.masks)
        self._loops.step_some(batch, self._action, self._options, NEVER, False, 0, 1)
        terminated = bool(batch.terminated[0])
        self._is_running = not terminated
        info = {"action_mask": batch.masks[0].copy()}
        return batch.obs[0].copy(), float(batch.rewards[0]), terminated, False, info

    def render(self) -> Any:
        """Return a picture or a text of the state."""
        if self.render_mode is None:
            return None
        (state,) = self._batch.states.view(np.recarray)
        return show(self.game, self.render_mode, state, self._options)


def set_up(
    game: str, render_mode: str | None, sizes: Mapping[str, Any]
) -> tuple[ModuleType, Setup]:
    """Return the module of a game, and what depends on its sizes."""
    if render_mode is not None and render_mode not in RENDER_MODES:
        raise ValueError(f"render_mode is {render_mode!r}; it takes {' or '.join(RENDER_MODES)}")
    module = load_game(game)
    return module, module.setup(**sizes)


def make_record(fields: Mapping[str, Any]) -> np.ndarray:
    """Return numbers and arrays as one record, [1]; integers become int64, floats float64."""
    arrays = {name: np.asarray(value) for name, value in fields.items()}
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


def keys(seed: int | None, num_envs: int) -> np.ndarray:
    """Return the key of each copy's stream, [N] uint64; that of copy i depends on seed and i."""
    return np.random.SeedSequence(seed).generate_state(num_envs, np.uint64)


class Crew:
    """Threads that share N copies between them, this one among them; made anew after a fork."""

    def __init__(self, num_envs: int, num_threads: int) -> None:
        bounds = np.linspace(0, num_envs, num_threads + 1).astype(int).tolist()
        self._own, *self._others = pairwise(bounds)
        self._pool: ThreadPoolExecutor | None = None
        self._process = 0

    def run(self, loop: Callable[[int, int], None]) -> None:
        """Call `loop(start, stop)` for all shares at once."""
        if not self._others:
            loop(*self._own)
            return
        if self._pool is None or self._process != os.getpid():
            self._pool, self._process = ThreadPoolExecutor(len(self._others)), os.getpid()
        waiting = [self._pool.submit(loop, *share) for share in self._others]
        loop(*self._own)
        for future in waiting:
            future.result()

    def end(self) -> None:
        """End the other threads."""
        if self._pool is not None:
            self._pool.shutdown()


def choose_threads(wanted: int | None, num_envs: int) -> int:
    """Return how many threads to use.

    Raises:
        ValueError: if none or more than copies are wanted.
    """
    if wanted is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return max(1, min(cores or 1, num_envs // ENVS_PER_THREAD))
    if not 1 <= wanted <= num_envs:
        raise ValueError(f"num_threads is {wanted}; it takes 1 to num_envs, {num_envs}")
    return wanted


def show(game: ModuleType, render_mode: str, state: Any, options: np.ndarray) -> Any:
    """Return a state as a picture or as text."""
    (options,) = options.view(np.recarray)
    return game.image(state, options) if render_mode == "rgb_array" else game.text(state, options)


def check_actions(game: ModuleType, actions: np.ndarray, masks: np.ndarray) -> None:
    """Raise `InvalidActionError` if one of the actions is invalid."""
    index = first_invalid(actions, masks)
    if index < 0:
        return
    name = game.__name__.rpartition(".")[2]
    valid = np.flatnonzero(masks[index]).tolist()
    shown = ", ".join(map(str, valid[:20])) + (", ..." if len(valid) > 20 else "")
    raise InvalidActionError(
        f"{name}, env {index}: action {actions[index]} is invalid; valid: {shown}"
    )
