"""Envs that are vector envs themselves (`vector_entry_point`): one call steps all of them."""

import warnings
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor

from rlmask.types import Episode
from rlmask.vector.env import episode_seed
from rlmask.vector.games import Game, VectorSpec
from rlmask.vector.mask import Where, check_not_empty
from rlmask.vector.spaces import EnvError, action_spec, explain_make, obs_spec, without_mask
from rlmask.vector.vectorize import ReplayWarning, VectorStep


class NativeVector:
    """N envs behind one `gymnasium.vector.VectorEnv`.

    What it asks of the env: autoreset mode SameStep; a mask of shape [N, A] for all envs at every
    reset and step, as `obs["action_mask"]`, `info["action_mask"]` or `action_masks()`, or none at
    all; final observations (and masks) as Gymnasium's SameStep gives them, in `info["final_obs"]`
    and `info["final_info"]`. `capture_state()` and `restore_state(state)` make resuming exact.

    Raises:
        EnvError: if it cannot be made, or resets itself in another mode.
    """

    def __init__(self, game: Game, num_envs: int, seed: int, stream: int) -> None:
        kwargs = dict(game.env_kwargs)
        with explain_make(game.env_id):
            if gym.spec(game.env_id).vector_entry_point is None:
                raise EnvError(
                    f"{game.env_id} has no vector env of its own; set vectorization to `sync`"
                )
            self._envs: Any = gym.make_vec(
                game.env_id, num_envs, vectorization_mode="vector_entry_point", **kwargs
            )
        mode = self._envs.metadata.get("autoreset_mode")
        if mode != AutoresetMode.SAME_STEP:
            raise EnvError(
                f"{game.env_id} resets itself in mode {getattr(mode, 'value', mode)}, which puts a "
                "dead step after every episode; ask for SameStep in env_kwargs if it can, or set "
                "vectorization to `sync`"
            )
        self.num_envs = num_envs
        self._seed, self._stream, self._resets = seed, stream, 0
        self._where = Where(game.env_id)
        obs, info = self._envs.reset(seed=episode_seed(seed, stream, 0, 0))
        self._source = self._find(obs, info) if game.mask_source == "auto" else game.mask_source
        space: gym.Space = self._envs.single_observation_space
        self._strip = None
        if self._source == "obs":
            space, self._strip = without_mask(space)
        own_obs, self._to_obs = obs_spec(space)
        self._discrete = own_obs.kind == "discrete"
        own_action, self._to_action = action_spec(self._envs.single_action_space)
        self.spec = VectorSpec(
            obs=own_obs,
            action=own_action,
            games=(Game(env_id=game.env_id, env_kwargs=kwargs, mask_source=self._source),),
            obs_offsets=(0,),
        )
        self._returns = np.zeros(num_envs)
        self._lengths = np.zeros(num_envs, np.int64)
        self._mask = np.zeros((num_envs, own_action.num_actions), bool)

    def reset(self) -> tuple[Tensor, Tensor]:
        """Start an episode in every env; return obs [N, *obs] and mask [N, A]."""
        self._resets += 1
        obs, info = self._envs.reset(seed=episode_seed(self._seed, self._stream, 0, self._resets))
        self._returns[:], self._lengths[:] = 0, 0
        self._mask = self._masks(obs, info)
        return self._obs(obs), torch.from_numpy(self._mask)

    def step(self, action: Tensor) -> VectorStep:
        """Take one action [N, *parts] in every env. The env itself refuses an invalid one."""
        own = self._to_action(action.numpy())
        obs, reward, terminated, truncated, info = self._envs.step(own)
        self._where.step += 1
        if not np.isfinite(reward).all():
            raise EnvError(f"{self._where}: a reward is not finite; it would destroy the network")
        self._returns += reward
        self._lengths += 1
        ended = np.flatnonzero(terminated | truncated)
        self._mask = self._masks(obs, info)
        final_obs, final_mask = self._final(ended, info)
        episodes = [
            Episode(
                game=0,
                episode_return=float(self._returns[i]),
                episode_length=int(self._lengths[i]),
            )
            for i in ended
        ]
        self._returns[ended], self._lengths[ended] = 0, 0
        return VectorStep(
            obs=self._obs(obs),
            action_mask=torch.from_numpy(self._mask),
            reward=torch.from_numpy(np.asarray(reward, np.float32)),
            terminated=torch.from_numpy(np.array(terminated, bool)),
            truncated=torch.from_numpy(np.array(truncated, bool)),
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
        self._mask = self._masks(obs, info)
        return self._obs(obs), torch.from_numpy(self._mask)

    def close(self) -> None:
        """Close the envs."""
        self._envs.close()

    def _find(self, obs: Any, info: Mapping[str, Any]) -> Any:
        if "action_mask" in info:
            return "info"
        if isinstance(obs, Mapping) and "action_mask" in obs:
            return "obs"
        return "method" if hasattr(self._envs, "action_masks") else "none"

    def _obs(self, obs: Any) -> Tensor:
        if self._strip is not None:
            obs = self._strip(obs)
        spec = self.spec.obs
        if self._discrete:
            start = int(self._envs.single_observation_space.start)
            return torch.from_numpy(np.array(obs, np.int64) - start)
        rows = [self._to_obs(one) for one in obs] if spec.kind == "image" else obs
        return torch.from_numpy(np.array(rows, spec.dtype).reshape(self.num_envs, *spec.shape))

    def _masks(self, obs: Any, info: Mapping[str, Any]) -> np.ndarray:
        """Return checked masks [N, A] of states in which the episode goes on."""
        if self._source == "none":
            return np.ones((self.num_envs, self.spec.action.num_actions), bool)
        if self._source == "method":
            raw = self._envs.action_masks()
        else:
            raw = (info if self._source == "info" else obs).get("action_mask")
        reported = info.get("_action_mask")
        if self._source == "info" and reported is not None and not np.all(reported):
            raise self._where.error("not every env reports a mask", "Give one for all of them")
        masks = self._checked(raw, self.num_envs)
        if not masks.any(-1).all() or len(self.spec.action.nvec) > 1:
            for index, row in enumerate(masks):
                self._where.index = index
                check_not_empty(row.tobytes(), self.spec.action.nvec, self._where)
        return masks

    def _checked(self, raw: Any, rows: int) -> np.ndarray:
        shape = (rows, self.spec.action.num_actions)
        fix = f"Return a bool array of shape {shape}"
        if not isinstance(raw, np.ndarray) or raw.shape != shape or raw.dtype.kind not in "biu":
            found = (
                f"{raw.dtype} {raw.shape}" if isinstance(raw, np.ndarray) else type(raw).__name__
            )
            raise self._where.error(f"the masks are {found}", fix)
        valid = raw == 1
        if not (valid | (raw == 0)).all():
            raise self._where.error("a mask holds something else than 0 and 1", fix)
        return valid

    def _final(self, ended: np.ndarray, info: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        spec = self.spec
        final_obs = torch.zeros((len(ended), *spec.obs.shape), dtype=spec.obs.torch_dtype)
        final_mask = torch.zeros((len(ended), spec.action.num_actions), dtype=torch.bool)
        if not len(ended):
            return final_obs, final_mask
        if "final_obs" not in info:
            raise EnvError(f"{self._where.env_id} ended an episode without info['final_obs']")
        finals = info["final_obs"]
        if isinstance(finals, Mapping):
            rows = [{key: value[i] for key, value in finals.items()} for i in ended]
        else:
            rows = [finals[i] for i in ended]
        if self._source == "obs":
            raw = np.stack([row["action_mask"] for row in rows])
            final_mask = torch.from_numpy(self._checked(raw, len(ended)))
            rows = [self._strip(row) for row in rows] if self._strip else rows
        elif self._source == "info" and "action_mask" in info.get("final_info", {}):
            raw = np.asarray(info["final_info"]["action_mask"])[ended]
            final_mask = torch.from_numpy(self._checked(raw, len(ended)))
        elif self._source == "none":
            final_mask[:] = True
        converted = np.array([self._to_obs(row) for row in rows], spec.obs.dtype)
        return torch.from_numpy(converted.reshape(final_obs.shape)), final_mask
