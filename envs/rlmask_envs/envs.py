"""A game as a Gymnasium env: N copies behind one call, or a single one."""

import operator
from collections.abc import Mapping
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from rlmask_envs.actions import InvalidActionError, check_action, check_integers, refusal
from rlmask_envs.batch import Batch, capture, make_batch, make_options, restore, rows_of
from rlmask_envs.compiled import CompiledGame, compile_game, first_invalid
from rlmask_envs.crew import Crew
from rlmask_envs.drawing import check_render_mode
from rlmask_envs.rng import stream_keys
from rlmask_envs.rules import set_up

RENDER_MODES = ("rgb_array", "ansi")
NEVER = np.iinfo(np.int64).max


class GameVectorEnv(VectorEnv):
    """N copies of a game, stepped in one compiled call a thread.

    An episode that ends is followed by the next one within the same step (autoreset mode SameStep):
    `obs` and `info["action_mask"]` are then the new one's, the end of the old one is in
    `info["final_obs"]` and `info["final_info"]["action_mask"]`: arrays like `obs` and the masks, of
    which the rows that `info["_final_obs"]` marks count. Copy i draws from its own stream of random
    numbers, which depends on the seed and i alone: trajectories are the same for any number of
    threads and of copies.

    Args:
        game: name of the module with the rules.
        num_envs: N.
        max_episode_steps: an episode is truncated there; None or -1: never.
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
        check_render_mode(render_mode, RENDER_MODES)
        self.game = compile_game(game)
        self.setup = set_up(self.game.module, sizes)
        self.num_envs, self.render_mode = num_envs, render_mode
        self.single_observation_space = self.setup.observation_space
        self.single_action_space = spaces.Discrete(self.setup.num_actions)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._max_steps = time_limit(max_episode_steps)
        self._copy = copy
        self._crew = Crew(num_envs, num_threads)
        self._batch, self._options = make_batch(self.setup, num_envs), make_options(self.setup)
        self._actions = np.zeros(num_envs, np.int64)
        self._is_running = False

    @property
    def states(self) -> np.ndarray:
        """The states of all copies, a record array [N]; set them at your own risk."""
        return self._batch.states.view(np.recarray)

    @property
    def options(self) -> Any:
        """What the rules are given besides the state, a record."""
        return self._options.view(np.recarray)[0]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode in every copy; without a seed, go on drawing from the streams.

        Args:
            seed: of all copies.
            options: `reset_mask`, a bool array [N]: start one in these copies only.
        """
        super().reset(seed=None if seed is None else operator.index(seed))
        begin = np.ones(self.num_envs, bool)
        if self._is_running and options and "reset_mask" in options:
            begin[:] = options["reset_mask"]
        if seed is not None or not self._is_running:
            self._batch.rngs[begin, 0] = stream_keys(seed, self.num_envs)[begin]
            self._batch.rngs[begin, 1] = 0
        self._is_running = True
        return self._show(begin)

    def step(
        self, actions: Any
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Take an action [N] in every copy.

        Raises:
            InvalidActionError: if one is invalid; then no copy has moved.
            ValueError: unless they are N integers.
        """
        check_running(self._is_running)
        batch = self._batch
        self._actions[:] = check_integers(actions, self.num_envs)
        refused = first_invalid(self._actions, batch.masks)
        if refused >= 0:
            action, mask = self._actions[refused], batch.masks[refused]
            raise refusal(self.game.name, refused, action, mask)
        batch, loop = self._fresh(), self.game.step_some
        self._crew.run(partial(loop, batch, self._actions, self._options, self._max_steps, True))
        info = self._masks()
        ended = batch.terminated | batch.truncated
        if ended.any():
            masks = rows_of(batch.final_masks, ended)
            info["final_obs"], info["_final_obs"] = rows_of(batch.final_obs, ended), ended
            info["final_info"] = {"action_mask": masks, "_action_mask": ended.copy()}
            info["_final_info"] = ended.copy()
        return batch.obs, batch.rewards, batch.terminated, batch.truncated, info

    def capture_state(self) -> dict[str, Any]:
        """Return everything that the rest of the trajectories depends on."""
        return capture(self._batch, self._options, self.game.name)

    def restore_state(self, state: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
        """Go back to a captured state; return its observations and masks.

        Raises:
            ValueError: if it is of another game, of other sizes, or of another number of copies.
        """
        restore(self._batch, self._options, self.game.name, state)
        self._is_running = True
        return self._show(np.zeros(self.num_envs, bool))

    def render(self) -> tuple[Any, ...] | None:
        """Return a picture or a text of every copy."""
        if self.render_mode is None:
            return None
        check_running(self._is_running)
        return tuple(show(self.game, self.render_mode, s, self.options) for s in self.states)

    def close_extras(self, **kwargs: Any) -> None:
        """End the threads."""
        self._crew.end()

    def _show(self, begin: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        batch = self._fresh()
        self._crew.run(partial(self.game.reset_some, batch, begin, self._options))
        return batch.obs, self._masks()

    def _fresh(self) -> Batch:
        """Return the batch to write to, with arrays for the caller to keep if `copy`."""
        if self._copy:
            names = ("obs", "rewards", "terminated", "truncated")
            own = {name: np.empty_like(getattr(self._batch, name)) for name in names}
            self._batch = self._batch._replace(**own)
        return self._batch

    def _masks(self) -> dict[str, Any]:
        masks = self._batch.masks.copy() if self._copy else self._batch.masks.view()
        masks.flags.writeable = self._copy  # nobody else may write to what the next step checks
        return {"action_mask": masks, "_action_mask": np.ones(self.num_envs, bool)}


class GameEnv(gym.Env):
    """One copy of a game as an ordinary Gymnasium env; `info["action_mask"]` is its mask, int8.

    The time limit is Gymnasium's wrapper, as `gymnasium.make` puts it on.

    Args:
        game: name of the module with the rules.
        render_mode: `rgb_array` or `ansi`.
        num_threads, copy: mean nothing here; they are taken so that a config fits both envs.
        **sizes: of the game.

    Raises:
        ValueError: for sizes that the game cannot be played in.
    """

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": 8}  # noqa: RUF012

    def __init__(
        self,
        game: str,
        *,
        render_mode: str | None = None,
        num_threads: int | None = None,
        copy: bool = True,
        **sizes: Any,
    ) -> None:
        check_render_mode(render_mode, RENDER_MODES)
        self.game = compile_game(game)
        self.setup = set_up(self.game.module, sizes)
        self.render_mode = render_mode
        self.observation_space = self.setup.observation_space
        self.action_space = spaces.Discrete(self.setup.num_actions)
        self._batch, self._options = make_batch(self.setup, 1), make_options(self.setup)
        self._action = np.zeros(1, np.int64)
        self._is_running = False

    @property
    def state(self) -> Any:
        """The state, a record; set it at your own risk."""
        return self._batch.states.view(np.recarray)[0]

    @property
    def options(self) -> Any:
        """What the rules are given besides the state, a record."""
        return self._options.view(np.recarray)[0]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode."""
        super().reset(seed=seed)
        self._batch.rngs[0] = self.np_random.integers(2**64, dtype=np.uint64), 0
        self.game.reset_some(self._batch, np.ones(1, bool), self._options, 0, 1)
        self._is_running = True
        return self._seen()

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take an action.

        Raises:
            InvalidActionError: if it is invalid; the state is then as it was.
        """
        check_running(self._is_running)
        batch = self._batch
        self._action[0] = check_action(action, batch.masks[0], self.game.name)
        self.game.step_some(batch, self._action, self._options, NEVER, False, 0, 1)
        terminated = bool(batch.terminated[0])
        self._is_running = not terminated
        obs, info = self._seen()
        return obs, float(batch.rewards[0]), terminated, False, info

    def capture_state(self) -> dict[str, Any]:
        """Return everything that the rest of the episode depends on."""
        return capture(self._batch, self._options, self.game.name)

    def restore_state(self, state: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
        """Go back to a captured state, in which the episode had not ended; return what it shows.

        Raises:
            ValueError: if it is of another game or of other sizes.
        """
        restore(self._batch, self._options, self.game.name, state)
        self.game.reset_some(self._batch, np.zeros(1, bool), self._options, 0, 1)
        self._is_running = True
        return self._seen()

    def render(self) -> Any:
        """Return a picture or a text of the state."""
        if self.render_mode is None:
            return None
        check_begun(bool(self._batch.rngs.any()))
        return show(self.game, self.render_mode, self.state, self.options)

    def _seen(self) -> tuple[np.ndarray, dict[str, Any]]:
        return self._batch.obs[0].copy(), {"action_mask": self._batch.masks[0].copy()}


def time_limit(max_episode_steps: int | None) -> int:
    """Return after how many steps an episode is truncated.

    Raises:
        ValueError: if there would be none.
    """
    if max_episode_steps is None or max_episode_steps == -1:  # as gymnasium.make has it
        return NEVER
    if max_episode_steps < 1:
        raise ValueError(f"max_episode_steps is {max_episode_steps}; it takes 1 or more, or -1")
    return max_episode_steps


def check_running(is_running: bool) -> None:
    """Raise Gymnasium's `ResetNeeded` if there is no episode."""
    if not is_running:
        raise gym.error.ResetNeeded("the episode has ended or not begun: call reset()")


def check_begun(has_begun: bool) -> None:
    """Raise Gymnasium's `ResetNeeded` if there never was an episode to look at."""
    if not has_begun:
        raise gym.error.ResetNeeded("there is nothing to see yet: call reset()")


def show(game: CompiledGame, render_mode: str, state: Any, options: Any) -> Any:
    """Return a state as a picture or as text."""
    draw = game.module.image if render_mode == "rgb_array" else game.module.text
    return draw(state, options)


__all__ = ["GameEnv", "GameVectorEnv", "InvalidActionError"]
