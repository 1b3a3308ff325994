"""One game, behind the one mask convention: seeded episode by episode, checked, replayable."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from gymnasium.wrappers import RenderCollection

from rlmask.ops import InvalidActionError
from rlmask.types import Episode
from rlmask.vector.games import VectorSpec
from rlmask.vector.mask import Where, canonical_mask, check_not_empty
from rlmask.vector.spaces import (
    EnvError,
    action_spec,
    as_env_error,
    make_env,
    obs_spec,
    without_mask,
)


def episode_seed(seed: int, stream: int, env_index: int, episode: int) -> int:
    """Return the seed of one episode, below 2^31, from its place in the run alone.

    Args:
        seed: of the run.
        stream: 0 for training, 1 for evaluation; their episodes never share a seed on purpose.
        env_index: of the sub-env.
        episode: counted from 1 in that sub-env.
    """
    sequence = np.random.SeedSequence([seed, stream, env_index, episode])
    return int(sequence.generate_state(1)[0]) >> 1


class RefusedError(EnvError):
    """An env does not put up with an invalid action."""


def refused(where: Where, error: Exception) -> RefusedError:
    """Return the error for what an env raised when it was given an invalid action."""
    return RefusedError(
        f"{where}: the env refuses an invalid action ({error}), so it cannot be played without its "
        "mask"
    )


@dataclass(frozen=True)
class Ended:
    """The end of an episode: the true final observation, its mask, and the episode's figures."""

    obs: Any
    mask: bytes
    episode: Episode


class MaskedEnv:
    """One sub-env: actions are union indices, masks are checked bytes, episodes restart themselves.

    Every episode has its own seed, so that the state of the env is known from the number of the
    episode and the actions since it began: `capture` stores those, `restore` plays them again.

    Args:
        spec: of the vector env that this is a part of.
        index: of this sub-env in the vector env.
        seed: of the run.
        stream: 0 for training, 1 for evaluation.
        enforce: raise on an invalid action; otherwise count it and let the env decide.
        max_episode_steps: truncate an episode here, if the env has not ended it before.
        render_mode: `rgb_array` to collect `frames`.
    """

    def __init__(
        self,
        spec: VectorSpec,
        index: int,
        seed: int,
        stream: int = 0,
        enforce: bool = True,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.game_index = index % len(spec.games)
        game = spec.games[self.game_index]
        self.spec = spec
        self.env = make_env(game.env_id, dict(game.env_kwargs), render_mode)
        if render_mode is not None:
            self.env = RenderCollection(self.env, pop_frames=False, reset_clean=False)
        self._env_id = game.env_id
        self._seed = (seed, stream, index)
        self._enforce = enforce
        self._max_steps = math.inf if max_episode_steps is None else max_episode_steps
        self._source = game.mask_source
        if self._source == "method":
            self._action_masks = self.env.get_wrapper_attr("action_masks")
        self._read_obs = self._obs_reader(spec.obs_offsets[self.game_index])
        own, self._to_action = action_spec(self.env.action_space)
        self._nvec, self._parts = own.nvec, len(own.nvec)
        self._mask_shape = (own.num_actions,)
        self._part_starts = np.cumsum((0, *own.nvec[:-1])).tolist()
        self._union_size = spec.action.num_actions
        self._ids = None if game.action_ids is None else list(game.action_ids)
        all_valid = bytes([1]) * own.num_actions
        self._all_valid = all_valid if self._ids is None else self._in_union(all_valid)
        # union index -> the env's own action, None where it has none; for one part only
        self._own_action: list[Any] = [None] * (self._union_size if self._parts == 1 else 0)
        if self._parts == 1:
            for index, union in enumerate(self._ids or range(own.num_actions)):
                self._own_action[union] = self._to_action(index)
        self.action_valid = True  # what the env said of the last action
        self._episode = 0
        self._episode_return, self._invalid_actions = 0.0, 0
        self._actions: list[Any] = []  # of the unfinished episode
        self._obs: Any = None
        self._mask = b""

    @property
    def where(self) -> Where:
        """The place in the run that the env is at, for error messages."""
        return Where(self._env_id, self._seed[2], self._episode, len(self._actions))

    def reset(self) -> tuple[Any, bytes]:
        """Start the next episode; return its first observation and mask."""
        self._episode += 1
        self._episode_return, self._invalid_actions = 0.0, 0
        self._actions = []
        try:
            obs, info = self.env.reset(seed=episode_seed(*self._seed, self._episode))
        except gym.error.Error as error:
            raise as_env_error(self.where, error) from error
        self._mask = self._read_mask(obs, info, False)
        self._obs = self._read_obs(obs)
        return self._obs, self._mask

    def step(self, action: Any) -> tuple[Any, bytes, float, bool, bool, Ended | None]:
        """Take a union action; return obs, mask, reward, terminated, truncated, and the end if any.

        After the end of an episode obs and mask are those of the next one. Then `action_valid` is
        False if the env says so, by `info["action_valid"]`, of the action.

        Raises:
            InvalidActionError: if the mask rules the action out and masks are enforced.
            RefusedError: if they are not, and the env does not put up with it.
            MaskError: if the env's new mask is missing, malformed or empty.
        """
        if self._parts > 1:
            is_valid = self._are_valid(action)
        else:
            is_valid = 0 <= action < self._union_size and self._mask[action]
        if not is_valid:
            self._refuse(action)
        own = self._own_action[action] if self._parts == 1 else self._to_action(action)
        self._actions.append(action)
        try:
            obs, reward, terminated, truncated, info = self.env.step(own)
        except Exception as error:
            if not is_valid:
                raise refused(self.where, error) from error
            if not isinstance(error, gym.error.Error):
                raise
            raise as_env_error(self.where, error) from error
        reward = float(reward)
        self._episode_return += reward
        self.action_valid = self._read_valid(info)
        if is_valid and not self.action_valid:
            self._invalid_actions += 1
        if not math.isfinite(reward):
            raise EnvError(f"{self.where}: the reward is {reward}; it would destroy the network")
        mask = self._read_mask(obs, info, terminated)
        obs = self._read_obs(obs)
        if not (terminated or truncated or len(self._actions) >= self._max_steps):
            self._mask, self._obs = mask, obs
            return obs, mask, reward, False, False, None
        episode = Episode(
            game=self.game_index,
            episode_return=self._episode_return,
            episode_length=len(self._actions),
            invalid_actions=self._invalid_actions,
        )
        ended = Ended(obs, mask, episode)
        obs, mask = self.reset()
        return obs, mask, reward, bool(terminated), bool(truncated or not terminated), ended

    def capture(self) -> dict[str, Any]:
        """Return number and actions of the unfinished episode, and what is to be seen now."""
        return {
            "episode": self._episode,
            "actions": np.array(self._actions, np.int64),
            "obs": np.array(self._obs),
            "mask": np.frombuffer(self._mask, np.uint8).copy(),
        }

    def restore(self, state: Mapping[str, Any]) -> tuple[Any, bytes, bool]:
        """Play the unfinished episode again; return obs, mask, and whether it came out the same."""
        self._episode = int(state["episode"]) - 1
        obs, mask = self.reset()
        for action in state["actions"].tolist():
            try:
                obs, mask, *_, ended = self.step(action)
            except InvalidActionError:
                return obs, mask, False
            if ended is not None:  # sooner than it did before
                return obs, mask, False
        same = mask == state["mask"].tobytes() and np.array_equal(np.array(obs), state["obs"])
        return obs, mask, same

    def frames(self) -> list[np.ndarray]:
        """Return an image of every state since the env was made with a `render_mode`."""
        return self.env.get_wrapper_attr("frame_list")

    def close(self) -> None:
        """Close the env."""
        self.env.close()

    def _are_valid(self, action: Any) -> bool:
        return all(
            0 <= part < n and self._mask[start + part]
            for part, n, start in zip(action, self._nvec, self._part_starts, strict=True)
        )

    def _refuse(self, action: Any) -> None:
        if self._parts > 1:
            playable = all(0 <= part < n for part, n in zip(action, self._nvec, strict=True))
        else:
            playable = 0 <= action < self._union_size and self._own_action[action] is not None
        if self._enforce or not playable:
            raise InvalidActionError(
                f"{self.where}: action {action} is invalid here; choose with the mask that came "
                "with the observation"
            )
        self._invalid_actions += 1

    def _read_valid(self, info: Mapping[str, Any]) -> bool:
        valid = info.get("action_valid", True)
        if not isinstance(valid, bool | np.bool_):
            raise EnvError(f"{self.where}: info['action_valid'] is {valid!r}; give True or False")
        return bool(valid)

    def _obs_reader(self, offset: int) -> Callable[[Any], Any]:
        """Return the function from the env's observation to one of the union, always a copy."""
        space = self.env.observation_space
        strip: Callable[[Any], Any] | None = None
        if self._source == "obs":
            space, strip = without_mask(space)
        own, convert = obs_spec(space)
        if own.kind == "discrete":
            n, shift = own.n, convert(0)  # 0 unless the space starts elsewhere

            def read_index(obs: Any) -> int:
                value = obs if strip is None else strip(obs)
                try:
                    index = value.__index__() + shift  # int() would round and unpack
                except (AttributeError, TypeError):
                    index = -1
                if not 0 <= index < n:
                    raise EnvError(f"{self.where}: the observation {value!r} is not in its space")
                return index + offset

            return read_index
        shape = space.shape if isinstance(space, Box) else None  # else `convert` minds
        where = tuple(slice(n) for n in own.shape)

        def read_array(obs: Any) -> np.ndarray:
            obs = obs if strip is None else strip(obs)
            if shape is not None and np.shape(obs) != shape:
                raise EnvError(
                    f"{self.where}: the observation has shape {np.shape(obs)}, its space {shape}"
                )
            padded = np.zeros(self.spec.obs.shape, own.dtype)
            padded[where] = convert(obs)
            if own.dtype == "float32" and np.count_nonzero(np.isfinite(padded)) < padded.size:
                raise EnvError(f"{self.where}: the observation is not finite: {obs}")
            return padded

        if own.kind != "vector" or not shape == own.shape == self.spec.obs.shape:
            return read_array

        def read_vector(obs: Any) -> np.ndarray:  # the common case, in half the time
            plain = obs if strip is None else strip(obs)
            if (
                type(plain) is np.ndarray
                and plain.dtype == np.float32
                and plain.shape == shape
                and np.count_nonzero(np.isfinite(plain)) == plain.size
            ):
                return plain.copy()
            return read_array(obs)

        return read_vector

    def _read_mask(self, obs: Any, info: Mapping[str, Any], terminated: bool) -> bytes:
        """Return the checked mask over the union; of a terminated state it may be empty."""
        source = self._source
        if source == "none":
            if "action_mask" in info:
                raise self.where.error(
                    "info has an `action_mask`, but the first reset gave none",
                    "Give one at every reset and step, or set mask_source to `info`",
                )
            return self._all_valid
        if source == "info":
            raw = info.get("action_mask")
        elif source == "obs":
            raw = obs.get("action_mask")
        else:
            raw = self._action_masks()
        if (
            type(raw) is np.ndarray
            and raw.shape == self._mask_shape
            and raw.dtype.char in "?bB"
            and not (mask := raw.tobytes()).translate(None, b"\0\1")
        ):
            pass  # the common case: one byte an action, all of them 0 or 1
        elif raw is None and terminated:
            mask = bytes(self._mask_shape[0])
        elif raw is None:
            raise self.where.error(
                f"`{source}` has no action mask",
                "Give one at every reset and step (a terminated state may go without)",
            )
        else:
            mask = canonical_mask(raw, self._nvec, source, self.where)
        if (self._parts > 1 or 1 not in mask) and not terminated:
            check_not_empty(mask, self._nvec, self.where)
        return mask if self._ids is None else self._in_union(mask)

    def _in_union(self, mask: bytes) -> bytes:
        union = np.zeros(self._union_size, np.uint8)
        union[self._ids] = np.frombuffer(mask, np.uint8)
        return union.tobytes()
