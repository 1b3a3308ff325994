"""Unmasked: any env with a mask, without it. Invalid actions do nothing but cost a penalty.

For agents that have to find out what is valid. A step's info has `action_valid`, whether its action
was; the mask is nowhere but in `info["true_action_mask"]`, which is for measuring only.
"""

import operator
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from rlmask_envs.actions import InvalidActionError
from rlmask_envs.envs import RENDER_MODES, check_running


class UnmaskedEnv(gym.Env):
    """An env that hides the mask which another one gives in `info["action_mask"]`.

    An invalid action leaves the other env as it is: the same observation again, reward `-penalty`,
    `info["action_valid"]` False. Any other step is the other env's, with `action_valid` True.
    Invalid steps count for the time limit, which is `max_episode_steps` of `gymnasium.make`, 200 if
    not given; that of the other env does not apply.

    Args:
        env_id: Gymnasium id of the other env; `module:Name-v0` imports the module first.
        env_kwargs: its keyword arguments.
        penalty: for an invalid action, at least 0.
        render_mode: the other env's.

    Raises:
        ValueError: if the penalty is negative or the other env's actions are not `Discrete`.
    """

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": 8}  # noqa: RUF012

    def __init__(
        self,
        env_id: str,
        env_kwargs: Mapping[str, Any] | None = None,
        penalty: float = 0.1,
        *,
        render_mode: str | None = None,
    ) -> None:
        if not 0 <= penalty < np.inf:
            raise ValueError(f"penalty is {penalty}; it takes a number of at least 0")
        kwargs = dict(env_kwargs or {})
        if render_mode is not None:  # not every env takes one
            kwargs["render_mode"] = render_mode
        kwargs["max_episode_steps"] = -1
        self._env = gym.make(env_id, disable_env_checker=True, **kwargs)
        space = self._env.action_space
        if not isinstance(space, spaces.Discrete):
            raise ValueError(f"the actions of {env_id} are {space}; Unmasked takes Discrete ones")
        self.action_space, self.observation_space = space, self._env.observation_space
        self.render_mode = render_mode
        self._env_id, self._penalty = env_id, float(penalty)
        self._first, self._num_actions = int(space.start), int(space.n)
        self._obs: Any = None
        self._mask = np.zeros(self._num_actions, np.int8)
        self._is_running = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode.

        Raises:
            gymnasium.error.Error: if the other env gives no mask.
        """
        super().reset(seed=seed)
        obs, info = self._env.reset(seed=seed, options=options)
        self._obs, self._is_running = deepcopy(obs), True
        return obs, self._hide(info, False)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take an action, if it is valid.

        Raises:
            InvalidActionError: if it is none of the action space.
            gymnasium.error.Error: if the other env gives no mask.
        """
        check_running(self._is_running)
        index = operator.index(action) - self._first
        if not 0 <= index < self._num_actions:
            raise InvalidActionError(f"{self._env_id}: {action} is not in {self.action_space}")
        if not self._mask[index]:
            info = {"action_valid": False, "true_action_mask": self._mask.copy()}
            return deepcopy(self._obs), -self._penalty, False, False, info
        obs, reward, terminated, truncated, info = self._env.step(action)
        self._obs, self._is_running = deepcopy(obs), not (terminated or truncated)
        info = {**self._hide(info, terminated), "action_valid": True}
        return obs, float(reward), terminated, truncated, info

    def render(self) -> Any:
        """Return what the other env draws."""
        return self._env.render()

    def close(self) -> None:
        """Close the other env."""
        self._env.close()

    def _hide(self, info: Mapping[str, Any], terminated: bool) -> dict[str, Any]:
        """Keep the mask; return info with it under another key."""
        shown = dict(info)
        mask = shown.pop("action_mask", None)
        if mask is None:
            if not terminated:
                raise gym.error.Error(f"{self._env_id} has no info['action_mask'] to hide")
            return shown
        self._mask = np.array(mask, np.int8)
        shown["true_action_mask"] = self._mask.copy()
        return shown
