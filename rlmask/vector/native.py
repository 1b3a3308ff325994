"""Envs that are vector envs themselves (`vector_entry_point`): one call steps all of them."""

import importlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import iterate
from torch import Tensor

from rlmask.ops import InvalidActionError
from rlmask.types import Episode
from rlmask.vector.env import episode_seed, refused
from rlmask.vector.games import Game, VectorSpec
from rlmask.vector.mask import Where, check_not_empty, resolve_source
from rlmask.vector.spaces import (
    EnvError,
    SpaceError,
    action_spec,
    as_env_error,
    explain_make,
    explain_values,
    obs_spec,
    with_version,
    without_mask,
)
from rlmask.vector.vectorize import ReplayWarning, VectorStep


class NativeVector:
    """N envs behind one `gymnasium.vector.VectorEnv`.

    What it asks of the env: autoreset mode SameStep; a mask of shape [N, A] for all envs at every
    reset and step, as `obs["action_mask"]`, `info["action_mask"]` or `action_masks()`, or none at
    all; final observations (and masks) as Gymnasium's SameStep gives them, in `info["final_obs"]`
    and `info["final_info"]`. `capture_state()` and `restore_state(state)` make resuming exact.

    Args:
        place: of this game among others, and how many they are; each has seeds of its own.
        max_episode_steps: truncate an episode here, if the game's registered limit, which it has to
            have, is not less.

    Raises:
        EnvError: if it cannot be made, or resets itself in another mode.
    """

    def __init__(
        self,
        game: Game,
        num_envs: int,
        seed: int,
        stream: int,
        num_actions: int | None = None,
        enforce: bool = True,
        max_episode_steps: int | None = None,
        *,
        place: tuple[int, int] = (0, 1),
    ) -> None:
        self._enforce = enforce
        self._envs = make_native(game, num_envs, max_episode_steps)
        self.num_envs = num_envs
        self._seed, self._resets = (seed, stream, place[0]), 0
        self._index = np.arange(num_envs) * place[1] + place[0]  # as errors name them
        self._where = Where(game.env_id)
        obs, info = self._envs.reset(seed=episode_seed(*self._seed, 0))
        has_method = hasattr(self._envs, "action_masks")
        source = resolve_source(game.mask_source, obs, info, has_method, self._where)
        self._source = source
        space, batch_space = self._envs.single_observation_space, self._envs.observation_space
        self._strip: Callable[[Any], Any] = lambda obs: obs
        if source == "obs":
            space, self._strip = without_mask(space)
            batch_space, _ = without_mask(batch_space)
        own_obs, self._to_obs = obs_spec(space)
        self._batch_space = batch_space
        self._is_array = isinstance(space, spaces.Box | spaces.Discrete)  # so are N of them
        own_action, self._to_action = action_spec(self._envs.single_action_space)
        own_ids = tuple(range(own_action.num_actions))
        if game.action_ids not in (None, own_ids) or num_actions not in (None, len(own_ids)):
            raise SpaceError(
                f"{game.env_id}: a native vector env has the actions it has, {len(own_ids)}; set "
                "vectorization to `sync` for other action_ids or a larger union"
            )
        self.spec = VectorSpec(
            obs=own_obs,
            action=own_action,
            games=(replace(game, mask_source=source),),
            obs_offsets=(0,),
        )
        self._returns = np.zeros(num_envs)
        self._lengths = np.zeros(num_envs, np.int64)
        self._invalid = np.zeros(num_envs, np.int64)
        self._part_starts = np.cumsum((0, *own_action.nvec[:-1]))
        self._masks = np.zeros((num_envs, own_action.num_actions), bool)

    def reset(self) -> tuple[Tensor, Tensor]:
        """Start an episode in every env; return obs [N, *obs] and mask [N, A]."""
        self._resets += 1
        obs, info = self._envs.reset(seed=episode_seed(*self._seed, self._resets))
        self._returns[:], self._lengths[:], self._invalid[:] = 0, 0, 0
        return self._read_obs(obs), self._read_masks(obs, info)

    def step(self, action: Tensor) -> VectorStep:
        """Take one action [N, *parts] in every env.

        Raises:
            InvalidActionError: if a mask rules its action out and masks are enforced.
            RefusedError: if they are not, and the env does not put up with it.
        """
        return self.step_checked(action, self.check(action))

    def step_checked(self, action: Tensor, valid: np.ndarray) -> VectorStep:
        """Take actions of which `check` has said which are valid; raises as `step`."""
        self._invalid += np.logical_not(valid)
        own = np.reshape(self._to_action(action.numpy()), self._envs.action_space.shape)
        try:
            obs, reward, terminated, truncated, info = self._envs.step(own)
        except Exception as error:
            if not valid.all():
                raise refused(self._where, error) from error
            if not isinstance(error, gym.error.Error):
                raise
            raise as_env_error(self._where, error) from error
        self._where.step += 1
        reward = np.array(reward, np.float32)
        if not np.isfinite(reward).all():
            row = int((~np.isfinite(reward)).argmax())
            self._where.index, value = int(self._index[row]), reward[row]
            raise EnvError(f"{self._where}: the reward is {value}; it would destroy the network")
        self._returns += reward
        self._lengths += 1
        terminated, truncated = np.array(terminated, bool), np.array(truncated, bool)
        ended = np.flatnonzero(terminated | truncated)
        final_obs, final_mask = self._final(ended, terminated, info)
        episodes = [
            Episode(
                game=0,
                episode_return=float(self._returns[i]),
                episode_length=int(self._lengths[i]),
                invalid_actions=int(self._invalid[i]),
            )
            for i in ended
        ]
        self._returns[ended], self._lengths[ended], self._invalid[ended] = 0, 0, 0
        return VectorStep(
            obs=self._read_obs(obs),
            action_mask=self._read_masks(obs, info),
            reward=torch.from_numpy(reward),
            action_valid=torch.ones(self.num_envs, dtype=torch.bool),  # it does not tell
            terminated=torch.from_numpy(terminated),
            truncated=torch.from_numpy(truncated),
            ended=torch.from_numpy(ended),
            final_obs=final_obs,
            final_action_mask=final_mask,
            episodes=episodes,
        )

    def capture(self) -> dict[str, Any]:
        """Return the state of the envs, if they can tell it."""
        state: dict[str, Any] = {
            "step": self._where.step,
            "resets": self._resets,
            "returns": self._returns.copy(),
            "lengths": self._lengths.copy(),
            "invalid": self._invalid.copy(),
        }
        if hasattr(self._envs, "capture_state"):
            state["env"] = self._envs.unwrapped.capture_state()
        return state

    def restore(self, state: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Bring the envs back to a captured state; where they cannot, start episodes and warn."""
        self._where.step, self._resets = int(state["step"]), int(state["resets"])
        if "env" not in state:
            warnings.warn(
                f"{self._where.env_id} cannot save its state (no capture_state()): the resumed run "
                "starts with new episodes, and is not exactly the run it would have been",
                ReplayWarning,
                stacklevel=2,
            )
            return self.reset()
        obs, info = self._envs.unwrapped.restore_state(state["env"])
        self._returns, self._lengths = state["returns"].copy(), state["lengths"].copy()
        self._invalid = state["invalid"].copy()
        return self._read_obs(obs), self._read_masks(obs, info)

    def close(self) -> None:
        """Close the envs."""
        self._envs.close()

    def _read_obs(self, obs: Any) -> Tensor:
        obs = self._strip(obs)
        return self._obs_rows(obs if self._is_array else iterate(self._batch_space, obs))

    def _obs_rows(self, rows: Any) -> Tensor:
        """Return observations as one tensor, a copy: of one array, or of one after the other."""
        spec = self.spec.obs
        if isinstance(rows, np.ndarray):
            rows = rows.reshape(len(rows), -1) if spec.kind == "vector" else self._to_obs(rows)
        else:
            rows = [self._to_obs(one) for one in rows]
        array = np.array(rows, spec.dtype).reshape(-1, *spec.shape)
        if spec.dtype == "float32" and not np.isfinite(array).all():
            raise EnvError(f"{self._where}: an observation is not finite")
        return torch.from_numpy(array)

    def check(self, action: Tensor) -> np.ndarray:
        """Return which actions [N, *parts] are valid.

        Raises:
            InvalidActionError: if one is not, and masks are enforced or the env has none such.
        """
        index = action.numpy().reshape(self.num_envs, -1)
        within = ((index >= 0) & (index < self.spec.action.nvec)).all(-1)
        place = np.where(np.expand_dims(within, 1), index + self._part_starts, 0)
        valid = np.asarray(within & np.take_along_axis(self._masks, place, 1).all(-1))
        accepted = valid if self._enforce else within
        if not accepted.all():
            row = int(np.argmin(accepted))
            self._where.index = int(self._index[row])
            raise InvalidActionError(
                f"{self._where}: action {action[row].tolist()} is invalid here; choose with the "
                "mask that came with the observation"
            )
        return valid

    def _read_masks(self, obs: Any, info: Mapping[str, Any]) -> Tensor:
        """Return checked masks [N, A] of states in which the episode goes on, and keep them."""
        nvec = self.spec.action.nvec
        if self._source == "none":
            self._masks = np.ones((self.num_envs, sum(nvec)), bool)
            return torch.from_numpy(self._masks.copy())
        if self._source == "method":
            raw = self._envs.action_masks()
        else:
            raw = (info if self._source == "info" else obs).get("action_mask")
        reported = info.get("_action_mask")
        if self._source == "info" and reported is not None and not np.all(reported):
            raise self._where.error("not every env reports a mask", "Give one for all of them")
        masks = self._checked(raw, self._index)
        self._check_not_empty(masks, self._index)
        self._masks = masks
        return torch.from_numpy(masks.copy())

    def _checked(self, raw: Any, envs: np.ndarray) -> np.ndarray:
        """Return the masks of some envs as bool, if they are masks."""
        shape = (len(envs), self.spec.action.num_actions)
        fix = f"Return a bool array of shape {shape}"
        if not isinstance(raw, np.ndarray) or raw.shape != shape or raw.dtype.kind not in "biu":
            is_array = isinstance(raw, np.ndarray)
            found = f"{raw.dtype} {raw.shape}" if is_array else type(raw).__name__
            raise self._where.error(f"the masks are {found}", fix)
        valid = raw == 1
        wrong = ~(valid | (raw == 0))
        if wrong.any():
            self._where.index = int(envs[wrong.any(-1).argmax()])
            raise self._where.error("a mask holds something else than 0 and 1", fix)
        return valid

    def _check_not_empty(self, masks: np.ndarray, envs: np.ndarray) -> None:
        """Raise `MaskError` if the mask of one of some envs has no valid action."""
        nvec = self.spec.action.nvec
        if len(nvec) == 1 and masks.any(-1).all():
            return
        for index, row in zip(envs.tolist(), masks, strict=True):
            self._where.index = index
            check_not_empty(row.tobytes(), nvec, self._where)

    def _final(
        self, ended: np.ndarray, terminated: np.ndarray, info: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Return the true successors of the ended steps, and their masks.

        Of a terminated one the mask may be missing or empty.
        """
        masks = np.zeros((len(ended), self.spec.action.num_actions), bool)
        if not len(ended):
            return self._obs_rows([]), torch.from_numpy(masks)
        if "final_obs" not in info:
            raise EnvError(f"{self._where}: an episode ended without info['final_obs']")
        finals = info["final_obs"]
        is_array = isinstance(finals, np.ndarray)
        if is_array and finals.dtype != object and self._is_array and self._source != "obs":
            rows = finals[ended]
        else:
            if not is_array or finals.dtype != object:
                finals = list(iterate(self._envs.observation_space, finals))
            rows = [self._strip(finals[i]) for i in ended]
        if self._source == "obs":
            own = np.stack([finals[i]["action_mask"] for i in ended])
            masks = self._checked(own, self._index[ended])
        elif self._source == "none":
            masks[:] = True
        elif "action_mask" in info.get("final_info", {}):
            finals = np.asarray(info["final_info"]["action_mask"])
            masks = self._checked(finals[ended], self._index[ended])
        elif not terminated[ended].all():
            self._where.index = int(self._index[ended[~terminated[ended]][0]])
            raise self._where.error(
                "a truncated state has no action mask", "Give one in info['final_info']"
            )
        goes_on = ~terminated[ended]
        self._check_not_empty(masks[goes_on], self._index[ended[goes_on]])
        return self._obs_rows(rows), torch.from_numpy(masks)


def make_native(game: Game, num_envs: int, max_episode_steps: int | None = None) -> Any:
    """Make the vector env of a game.

    Args:
        max_episode_steps: to be used if it is less than the registered limit.

    Raises:
        EnvError: if it cannot be made, has none of its own, or resets itself in another mode.
    """
    module, _, name = game.env_id.rpartition(":")
    with explain_make(game.env_id):
        if module:
            importlib.import_module(module)
        spec = gym.spec(with_version(name))
        if spec.vector_entry_point is None:
            raise EnvError(
                f"{game.env_id} has no vector env of its own; set vectorization to `sync`"
            )
        kwargs = dict(game.env_kwargs)
        if max_episode_steps is not None and spec.max_episode_steps is not None:
            limit = kwargs.get("max_episode_steps", spec.max_episode_steps)
            if limit is None or not 0 < limit < max_episode_steps:  # -1: never, as None
                kwargs["max_episode_steps"] = max_episode_steps
        with explain_values(game.env_id):
            envs = gym.make_vec(name, num_envs, vectorization_mode="vector_entry_point", **kwargs)
    mode = envs.metadata.get("autoreset_mode")
    if mode != AutoresetMode.SAME_STEP:
        raise EnvError(
            f"{game.env_id} resets itself in mode {getattr(mode, 'value', mode)}, which puts a "
            "dead step after every episode; ask for SameStep in env_kwargs if it can, or set "
            "vectorization to `sync`"
        )
    return envs
