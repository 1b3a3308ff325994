"""Gymnasium spaces -> the three kinds of observation and the one kind of action of rlmask."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import find_highest_version, get_env_id, parse_env_id

from rlmask.types import ActionSpec, ObsSpec


class SpaceError(ValueError):
    """A space that rlmask has no network or no mask for."""


def obs_spec(space: spaces.Space) -> tuple[ObsSpec, Callable[[Any], Any]]:
    """Return what an observation of this space becomes, and the function that brings it there.

    Discrete -> an index from 0. Box of three axes -> an image, channels last; the channel axis is
    the odd one out of (n, n, c) and (c, n, n), else the shorter of the first and the last. Any
    other Box -> a flat float32 vector. MultiBinary, MultiDiscrete, Dict and Tuple -> a flat float32
    vector as `gymnasium.spaces.flatten` makes it. For a Discrete space or an image, the function
    takes a whole batch as well.

    Raises:
        SpaceError: for spaces of varying size (Sequence, Graph, Text).
    """
    if isinstance(space, spaces.Discrete):
        start = int(space.start)
        return (
            ObsSpec(kind="discrete", shape=(), dtype="int64", n=int(space.n)),
            lambda obs: obs - start,
        )
    if isinstance(space, spaces.Box) and len(space.shape) == 3:
        first, middle, last = space.shape
        is_square = first == middle or middle == last
        channels_first = first != middle if is_square else first < last
        dtype = "uint8" if space.dtype == np.uint8 else "float32"
        if channels_first:
            shape = (*space.shape[1:], first)
            return ObsSpec(kind="image", shape=shape, dtype=dtype), lambda obs: np.moveaxis(
                obs, -3, -1
            )
        return ObsSpec(kind="image", shape=space.shape, dtype=dtype), np.asarray
    if not space.is_np_flattenable or isinstance(space, spaces.Text):
        raise SpaceError(f"observations of {space} have no fixed size; wrap the env to give a Box")
    flat = spaces.flatten_space(space)
    if not isinstance(flat, spaces.Box):
        raise SpaceError(f"observations of {space} do not flatten to a Box")
    if isinstance(space, spaces.Box):
        return ObsSpec(kind="vector", shape=flat.shape, dtype="float32"), np.ravel
    return (
        ObsSpec(kind="vector", shape=flat.shape, dtype="float32"),
        lambda obs: spaces.flatten(space, obs),
    )


def without_mask(space: spaces.Space) -> tuple[spaces.Space, Callable[[Any], Any]]:
    """Return a Dict space without its `action_mask`, and the function that strips it.

    A Dict with one other entry becomes that entry.
    """
    if not isinstance(space, spaces.Dict):
        raise SpaceError(f"mask_source `obs` needs a Dict observation, not {space}")
    rest = {key: value for key, value in space.spaces.items() if key != "action_mask"}
    if len(rest) == 1:
        (key,) = rest
        return rest[key], lambda obs: obs[key]
    return spaces.Dict(rest), lambda obs: {key: obs[key] for key in rest}


def action_spec(space: spaces.Space) -> tuple[ActionSpec, Callable[[Any], Any]]:
    """Return the action set of a space, and the function from our index (or list of) to its action.

    Raises:
        SpaceError: unless the space is Discrete, MultiDiscrete (1-d) or MultiBinary (1-d).
    """
    if isinstance(space, spaces.Discrete):
        start = int(space.start)
        return ActionSpec(nvec=(int(space.n),)), lambda action: action + start
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        offset, dtype = space.start, space.dtype
        nvec = tuple(int(n) for n in space.nvec)
        if len(nvec) == 1:
            return ActionSpec(nvec=nvec), lambda action: np.array([action], dtype) + offset
        return ActionSpec(nvec=nvec), lambda action: np.asarray(action, dtype) + offset
    if isinstance(space, spaces.MultiBinary) and len(space.shape) == 1 and space.shape[0] > 1:
        return (
            ActionSpec(nvec=(2,) * space.shape[0]),
            lambda action: np.asarray(action, space.dtype),
        )
    raise SpaceError(
        f"actions of {space} have no mask: rlmask needs Discrete, MultiDiscrete or MultiBinary"
    )


def make_env(env_id: str, env_kwargs: dict[str, Any], render_mode: str | None = None) -> gym.Env:
    """Make one env with the mask checks of rlmask in place of Gymnasium's passive checker.

    Raises:
        EnvError: one line, if the id is unknown, an extra is missing, or a keyword is wrong.
    """
    kwargs = dict(env_kwargs) if render_mode is None else {**env_kwargs, "render_mode": render_mode}
    with explain_make(env_id), explain_values(env_id):
        return gym.make(env_id, disable_env_checker=True, **kwargs)


def with_version(name: str) -> str:
    """Return an id (without a module) with its newest version, unless it has one."""
    namespace, env, version = parse_env_id(name)
    if version is None:
        version = find_highest_version(namespace, env)
    return get_env_id(namespace, env, version)


class EnvError(ValueError):
    """An env cannot be made, or broke while it ran."""


def as_env_error(where: object, error: Exception) -> EnvError:
    """Return what an env says, as one line that begins with its place."""
    return EnvError(f"{where}: {' '.join(str(error).split())}")


@contextmanager
def explain_make(env_id: str) -> Iterator[None]:
    """Turn whatever goes wrong in making `env_id` into an `EnvError` of one line."""
    try:
        yield
    except (gym.error.DependencyNotInstalled, ImportError) as error:
        raise EnvError(f"{env_id} needs a package that is not installed: {error}") from error
    except gym.error.Error as error:
        message = " ".join(str(error).split())
        raise EnvError(f"{env_id}: {message} (`rlmask envs` lists what there is)") from error
    except TypeError as error:
        raise EnvError(f"{env_id} does not take these env_kwargs: {error}") from error


@contextmanager
def explain_values(env_id: str) -> Iterator[None]:
    """Turn what a constructor says of a keyword argument into an `EnvError`."""
    try:
        yield
    except ValueError as error:
        raise EnvError(f"{env_id} cannot be made: {error}") from error
