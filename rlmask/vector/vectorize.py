"""Vector envs of our own sub-envs: one after the other in this process, or each in its own."""

import multiprocessing
import signal
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.vector.async_vector_env import AsyncState
from gymnasium.vector.utils import create_empty_array
from jaxtyping import Bool
from torch import Tensor

from rlmask.ops import InvalidActionError
from rlmask.types import Episode
from rlmask.vector.env import Ended, MaskedEnv
from rlmask.vector.games import VectorSpec
from rlmask.vector.mask import MaskError
from rlmask.vector.spaces import EnvError


class ReplayWarning(UserWarning):
    """An env did not come back to the state that it was saved in; the resumed run is not exact."""


@dataclass(frozen=True, kw_only=True)
class VectorStep:
    """One step of N envs, all tensors fresh on the CPU.

    `obs` and `action_mask` are what to act on next: of the new episode where one ended. The true
    successors of those steps are in the `final_*` rows, in the order of `ended`.

    Dimension key: `N` envs, `E` envs whose episode ended, `A` union actions.
    """

    obs: Tensor  # [N, *obs]
    action_mask: Tensor  # [N, A] bool
    reward: Tensor  # [N] float32
    action_valid: Bool[Tensor, " N"]  # False where an env says that the taken action was invalid
    terminated: Tensor  # [N] bool
    truncated: Tensor  # [N] bool
    ended: Tensor  # [E] int64, indices of envs
    final_obs: Tensor  # [E, *obs]
    final_action_mask: Tensor  # [E, A] bool; all False where the final state has no mask
    episodes: list[Episode]  # E of them


class SyncVector:
    """N sub-envs stepped one after the other in this process; the fastest for cheap Python envs."""

    def __init__(self, spec: VectorSpec, envs: Sequence[MaskedEnv]) -> None:
        self.spec = spec
        self.num_envs = len(envs)
        self._envs = envs
        self._none_ended = final_rows(spec, {})

    def reset(self) -> tuple[Tensor, Tensor]:
        """Start an episode in every env; return obs [N, *obs] and mask [N, A]."""
        obs, masks = zip(*(env.reset() for env in self._envs), strict=True)
        return obs_tensor(self.spec, obs), mask_tensor(self.spec, masks)

    def step(self, action: Tensor) -> VectorStep:
        """Take one action [N, *parts] in every env."""
        steps = [env.step(a) for env, a in zip(self._envs, action.tolist(), strict=True)]
        obs, masks, reward, terminated, truncated, ends = zip(*steps, strict=True)
        ended = {index: end for index, end in enumerate(ends) if end is not None}
        return VectorStep(
            obs=obs_tensor(self.spec, obs),
            action_mask=mask_tensor(self.spec, masks),
            # through numpy: torch.tensor() of a Python list takes ten times as long
            reward=torch.from_numpy(np.array(reward, np.float32)),
            action_valid=torch.from_numpy(np.array([env.action_valid for env in self._envs])),
            terminated=torch.from_numpy(np.array(terminated, bool)),
            truncated=torch.from_numpy(np.array(truncated, bool)),
            **(final_rows(self.spec, ended) if ended else {**self._none_ended, "episodes": []}),
        )

    def capture(self) -> list[dict[str, Any]]:
        """Return the state of every env."""
        return [env.capture() for env in self._envs]

    def restore(self, state: Sequence[Mapping[str, Any]]) -> tuple[Tensor, Tensor]:
        """Bring every env back to a captured state; return obs and mask. Warns if one differs."""
        restored = [env.restore(s) for env, s in zip(self._envs, state, strict=True)]
        obs, masks, same = zip(*restored, strict=True)
        warn_if_different(self.spec, same)
        return obs_tensor(self.spec, obs), mask_tensor(self.spec, masks)

    def close(self) -> None:
        """Close the envs."""
        for env in self._envs:
            env.close()


class AsyncVector:
    """N sub-envs in N processes, through Gymnasium's pool and shared memory; for slow envs."""

    def __init__(self, spec: VectorSpec, num_envs: int, make: partial[MaskedEnv]) -> None:
        self.spec = spec
        self.num_envs = num_envs
        self._none_ended = final_rows(spec, {})
        context = multiprocessing.get_context("forkserver")  # a fork of torch's threads can hang
        context.set_forkserver_preload([__name__])
        with _explain_worker(spec):
            self._pool = AsyncVectorEnv(
                [partial(_WorkerEnv, make, index) for index in range(num_envs)],
                shared_memory=True,
                copy=True,
                context="forkserver",
                autoreset_mode=AutoresetMode.DISABLED,  # the sub-envs restart themselves
            )

    def reset(self) -> tuple[Tensor, Tensor]:
        """Start an episode in every env; return obs [N, *obs] and mask [N, A]."""
        with _explain_worker(self.spec):
            observed, info = self._pool.reset()
        raise_first_error(info)
        return self._read(observed)

    def step(self, action: Tensor) -> VectorStep:
        """Take one action [N, *parts] in every env."""
        with _explain_worker(self.spec):
            observed, reward, terminated, truncated, info = self._pool.step(action.numpy())
        raise_first_error(info)
        obs, mask = self._read(observed)
        action_valid = torch.ones(self.num_envs, dtype=torch.bool)
        if "invalid" in info:
            action_valid = torch.from_numpy(~info["invalid"])
        ends = info.get("ended", ())
        ended = {index: end for index, end in enumerate(ends) if end is not None}
        return VectorStep(
            obs=obs,
            action_mask=mask,
            reward=torch.from_numpy(reward.astype(np.float32)),
            action_valid=action_valid,
            terminated=torch.from_numpy(terminated),
            truncated=torch.from_numpy(truncated),
            **(final_rows(self.spec, ended) if ended else {**self._none_ended, "episodes": []}),
        )

    def capture(self) -> list[dict[str, Any]]:
        """Return the state of every env."""
        with _explain_worker(self.spec):
            return list(self._pool.call("capture"))

    def restore(self, state: Sequence[Mapping[str, Any]]) -> tuple[Tensor, Tensor]:
        """Bring every env back to a captured state; return obs and mask. Warns if one differs."""
        if len(state) != self.num_envs:
            raise ValueError(f"the state is of {len(state)} envs, not {self.num_envs}")
        with _explain_worker(self.spec):
            observed, info = self._pool.reset(options={"restore": list(state)})
        raise_first_error(info)
        warn_if_different(self.spec, info["same"].tolist())
        return self._read(observed)

    def close(self) -> None:
        """End the worker processes."""
        self._pool._state = AsyncState.DEFAULT  # wait for no answer, above all not of the dead
        for process in self._pool.processes:
            process.kill()
        self._pool.close(terminate=True)

    def _read(self, observed: Mapping[str, np.ndarray]) -> tuple[Tensor, Tensor]:
        mask = torch.from_numpy(observed["action_mask"]).bool()
        return torch.from_numpy(observed["obs"]), mask


class _WorkerEnv(gym.Env):
    """A `MaskedEnv` as the `gym.Env` that Gymnasium's worker process wants."""

    def __init__(self, make: partial[MaskedEnv], index: int) -> None:
        if multiprocessing.parent_process() is not None:
            # a signal may reach the whole process group; the parent decides when the workers end
            for signum in (signal.SIGINT, signal.SIGTERM):
                signal.signal(signum, signal.SIG_IGN)
        self._env = make(index=index)
        self._index = index
        spec = self._env.spec
        self.observation_space = spaces.Dict(
            {
                "obs": spaces.Discrete(spec.obs.n)
                if spec.obs.kind == "discrete"
                else spaces.Box(-np.inf, np.inf, spec.obs.shape, np.float32)
                if spec.obs.dtype == "float32"
                else spaces.Box(0, 255, spec.obs.shape, np.uint8),
                "action_mask": spaces.MultiBinary(spec.action.num_actions),
            }
        )
        self._nothing: Any = create_empty_array(self.observation_space, fn=np.zeros)
        nvec = spec.action.nvec
        self.action_space = (
            spaces.Discrete(nvec[0]) if len(nvec) == 1 else spaces.MultiDiscrete(list(nvec))
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        try:
            if options is None:
                return self._observe(*self._env.reset()), {}
            obs, mask, same = self._env.restore(options["restore"][self._index])
        except Exception as error:
            return self._nothing, {"error": _shown(error)}
        return self._observe(obs, mask), {"same": same}

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        try:
            obs, mask, reward, terminated, truncated, end = self._env.step(action.tolist())
        except Exception as error:  # Gymnasium would print it, and lose it if it holds a "%"
            return self._nothing, 0.0, False, False, {"error": _shown(error)}
        info: dict[str, Any] = {} if end is None else {"ended": end}
        if not self._env.action_valid:
            info["invalid"] = True  # absent: False, in the array that Gymnasium makes of it
        return self._observe(obs, mask), reward, terminated, truncated, info

    def capture(self) -> dict[str, Any]:
        return self._env.capture()

    def close(self) -> None:
        self._env.close()

    def _observe(self, obs: Any, mask: bytes) -> dict[str, Any]:
        return {"obs": obs, "action_mask": np.frombuffer(mask, np.int8)}


def _shown(error: Exception) -> Exception:
    """Return an error that the parent will raise; print where an env's own one came from."""
    if not isinstance(error, EnvError | MaskError | InvalidActionError):
        traceback.print_exception(error)
    return error


def raise_first_error(info: Mapping[str, Any]) -> None:
    """Raise what a worker raised."""
    for error in info.get("error", ()):
        if error is not None:
            raise error


def obs_tensor(spec: VectorSpec, obs: Sequence[Any]) -> Tensor:
    """Return observations of single envs as one tensor [N, *obs]."""
    if spec.obs.kind == "discrete":
        return torch.from_numpy(np.array(obs, np.int64))
    batch = np.empty((len(obs), *spec.obs.shape), spec.obs.dtype)
    for row, one in enumerate(obs):
        batch[row] = one
    return torch.from_numpy(batch)


def mask_tensor(spec: VectorSpec, masks: Sequence[bytes]) -> Tensor:
    """Return checked masks of single envs as one tensor [N, A]."""
    num_actions = spec.action.num_actions
    if not masks:
        return torch.empty((0, num_actions), dtype=torch.bool)
    joined = bytearray().join(masks)
    return torch.frombuffer(joined, dtype=torch.bool).view(len(masks), num_actions)


def final_rows(spec: VectorSpec, ended: Mapping[int, Ended]) -> dict[str, Any]:
    """Return the fields of a `VectorStep` about the envs whose episode ended."""
    ends = list(ended.values())
    return {
        "ended": torch.from_numpy(np.array(list(ended), np.int64)),
        "final_obs": obs_tensor(spec, [end.obs for end in ends]),
        "final_action_mask": mask_tensor(spec, [end.mask for end in ends]),
        "episodes": [end.episode for end in ends],
    }


def warn_if_different(spec: VectorSpec, same: Sequence[bool]) -> None:
    """Warn if a restored env shows something else than when it was captured."""
    different = [index for index, is_same in enumerate(same) if not is_same]
    if different:
        names = ", ".join(sorted({spec.games[i % len(spec.games)].env_id for i in different}))
        warnings.warn(
            f"{names}: replaying the unfinished episode led to another observation in "
            f"{len(different)} of {len(same)} envs (first: env {different[0]}). The env does not "
            "repeat itself under the same seed and actions, so this run goes on, but not exactly "
            "as it would have",
            ReplayWarning,
            stacklevel=3,
        )


@contextmanager
def _explain_worker(spec: VectorSpec) -> Iterator[None]:
    """Turn a worker's death into one line; its own exceptions come through as they are."""
    try:
        yield
    except (EOFError, ConnectionError) as error:
        names = ", ".join(game.env_id for game in spec.games)
        raise EnvError(
            f"a worker process of {names} died: killed, out of memory, or the id is registered in "
            "this process only (then write it as `module:Name-v0`)"
        ) from error
