"""Does an env keep the mask contract? Random valid play, and plain words about what was found."""

import contextlib
import importlib
import io
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from torch import Tensor

from rlmask.ops import InvalidActionError
from rlmask.vector.env import MaskedEnv, RefusedError
from rlmask.vector.games import Game, VectorSpec, join
from rlmask.vector.mask import MaskError
from rlmask.vector.native import NativeVector
from rlmask.vector.spaces import EnvError, SpaceError, make_env, with_version
from rlmask.vector.vectorize import ReplayWarning


@dataclass(frozen=True)
class Finding:
    """One thing that was checked: `ok`, a `note` to know, or an `error` to mend."""

    level: Literal["ok", "note", "error"]
    text: str


def check_env(game: Game, num_steps: int, seed: int) -> list[Finding]:
    """Play random valid actions and check every mask; never takes an invalid action in play.

    Args:
        num_steps: how long.
        seed: of the episodes and the choices.
    """
    try:
        spec = join((game,))
    except (EnvError, SpaceError, MaskError) as error:
        return [Finding("error", str(error))]
    obs, action, source = spec.obs, spec.action, spec.games[0].mask_source
    kind = f"{obs.n} discrete" if obs.kind == "discrete" else f"{obs.kind} {obs.shape} {obs.dtype}"
    parts = f" in {len(action.nvec)} parts" if len(action.nvec) > 1 else ""
    findings = [
        Finding("ok", f"observations: {kind}; actions: {action.num_actions}{parts}"),
        Finding("note", "no mask: every action counts as valid")
        if source == "none"
        else Finding("ok", f"mask found in `{source}`"),
    ]
    env = MaskedEnv(spec, index=0, seed=seed)
    rng = np.random.default_rng(seed)
    try:
        findings += play(env, spec, num_steps, rng)
        findings.append(check_replay(env, spec, seed))
        if source != "none":
            findings += [check_aliasing(spec), check_invalid(spec, seed)]
        findings += check_native(game, num_steps, seed)
    except InvalidActionError as error:
        findings.append(
            Finding("error", f"the env refused an action that its mask allows: {error}")
        )
    except (MaskError, EnvError) as error:
        findings.append(Finding("error", str(error)))
    except Exception as error:
        text = f"the env raised {type(error).__name__} on a valid action: {error} (at {env.where})"
        findings.append(Finding("error", text))
    finally:
        env.close()
    return findings


def play(
    env: MaskedEnv, spec: VectorSpec, num_steps: int, rng: np.random.Generator
) -> list[Finding]:
    """Take random valid actions; return what the masks and episodes looked like."""
    _, mask = env.reset()
    masks, valid, episodes, terminated_ends = {mask}, 0, 0, 0
    for _ in range(num_steps):
        valid += mask.count(1)
        _, mask, _, terminated, _, ended = env.step(draw(mask, spec.action.nvec, rng))
        masks.add(mask)
        episodes += ended is not None
        terminated_ends += terminated
    share = valid / (num_steps * spec.action.num_actions)
    findings = [
        Finding("ok", f"{num_steps:,} random valid steps, {episodes:,} episodes, no mask error"),
        Finding(
            "ok", f"{share:.0%} of the actions valid on average, {len(masks):,} different masks"
        ),
    ]
    if spec.games[0].mask_source != "none" and len(masks) == 1:
        what = "rules nothing out" if share == 1 else "is the same in every state"
        findings.append(Finding("note", f"the mask {what}; is it computed from the current state?"))
    if not episodes:
        findings.append(
            Finding("note", "no episode ended; without a time limit there is nothing to log")
        )
    return findings


def check_replay(env: MaskedEnv, spec: VectorSpec, seed: int) -> Finding:
    """Replay the unfinished episode in a second env."""
    twin = MaskedEnv(spec, index=0, seed=seed)
    try:
        *_, same = twin.restore(env.capture())
    finally:
        twin.close()
    if same:
        return Finding("ok", "the same seed and actions lead to the same state: resume is exact")
    return Finding(
        "note",
        "the same seed and actions led to another state: runs cannot be resumed exactly. Draw all "
        "randomness from self.np_random",
    )


def check_aliasing(spec: VectorSpec) -> Finding:
    """See whether the env hands out one mask array and changes it later."""
    game = spec.games[0]
    env = make_env(game.env_id, dict(game.env_kwargs))
    try:
        obs, info = env.reset(seed=0)
        if game.mask_source == "method":
            first = env.get_wrapper_attr("action_masks")()
            again = env.get_wrapper_attr("action_masks")()
        else:
            first = (info if game.mask_source == "info" else obs)["action_mask"]
            obs, info = env.reset(seed=1)
            again = (info if game.mask_source == "info" else obs)["action_mask"]
    finally:
        env.close()
    if isinstance(first, np.ndarray) and np.shares_memory(first, np.asarray(again)):
        return Finding(
            "note",
            "the env hands out the same mask array each time; rlmask copies it, others may not",
        )
    return Finding("ok", "every mask is an array of its own")


def check_invalid(spec: VectorSpec, seed: int) -> Finding:
    """Take one invalid action in a fresh env and see whether the env minds."""
    env = MaskedEnv(spec, index=0, seed=seed, enforce=False)
    rng = np.random.default_rng(seed)
    try:
        _, mask = env.reset()
        for _ in range(100):
            if 0 in mask and len(spec.action.nvec) == 1:
                break
            _, mask, *_ = env.step(draw(mask, spec.action.nvec, rng))
        else:
            return Finding("note", "met no invalid action to try")
        try:
            env.step(mask.index(0))
        except RefusedError as error:
            name = type(error.__cause__).__name__
            return Finding("ok", f"the env refuses an invalid action ({name})")
    finally:
        env.close()
    return Finding(
        "note",
        "the env accepts an invalid action: its mask is advice (`useful`), not a rule. "
        "rlmask never takes one",
    )


def check_native(game: Game, num_steps: int, seed: int) -> list[Finding]:
    """Play the game's own vector env, if it has one, and bring a second one to its state."""
    name = with_version(game.env_id.rpartition(":")[2])
    if gym.spec(name).vector_entry_point is None:
        return []
    try:
        vector, twin = (NativeVector(game, 4, seed, stream=0) for _ in range(2))
    except (EnvError, MaskError, SpaceError) as error:
        return [Finding("note", f"its own vector env is of no use here: {error}")]
    rng = np.random.default_rng(seed)
    nvec = vector.spec.action.nvec

    def draws(masks: Tensor) -> Tensor:
        return torch.tensor([draw(row.numpy().tobytes(), nvec, rng) for row in masks])

    try:
        seen = vector.reset()
        for _ in range(-(-num_steps // 4)):
            step = vector.step(draws(seen[1]))
            seen = step.obs, step.action_mask
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always", ReplayWarning)
            restored = twin.restore(vector.capture())
        same = all(map(torch.equal, restored, seen))
        for _ in range(20 if same else 0):
            action = draws(seen[1])
            one, two = vector.step(action), twin.step(action)
            seen = one.obs, one.action_mask
            same &= all(map(torch.equal, seen, (two.obs, two.action_mask)))
    finally:
        vector.close()
        twin.close()
    findings = [Finding("ok", "its own vector env (vectorization `native`) plays without an error")]
    if warned or not same:
        text = "its own vector env does not come back to a saved state: no exact resume with it"
        return [*findings, Finding("note", text)]
    text = "its own vector env comes back to a saved state: resume is exact"
    return [*findings, Finding("ok", text)]


def draw(mask: bytes, nvec: tuple[int, ...], rng: np.random.Generator) -> int | list[int]:
    """Return a random valid action."""
    parts, start = [], 0
    for n in nvec:
        parts.append(
            int(rng.choice(np.flatnonzero(np.frombuffer(mask, np.uint8)[start : start + n])))
        )
        start += n
    return parts[0] if len(nvec) == 1 else parts


def list_envs(modules: Sequence[str] = ()) -> list[tuple[str, str, str, str]]:
    """Return id, observation, actions and mask source of each registered env that can be used.

    Of each env only the newest version, and only those whose packages are installed.

    Args:
        modules: imported first; the ids of their envs begin with their names.

    Raises:
        EnvError: if one cannot be imported.
    """
    module_of = {}
    for module in modules:
        before = set(gym.registry)
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise EnvError(f"cannot import {module}: {error}") from error
        module_of.update(dict.fromkeys(gym.registry.keys() - before, module))
    newest: dict[str, EnvSpec] = {}
    for spec in gym.registry.values():
        name = f"{spec.namespace}/{spec.name}" if spec.namespace else spec.name
        if name not in newest or (spec.version or 0) > (newest[name].version or 0):
            newest[name] = spec
    rows = []
    for spec in newest.values():
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            try:
                joined = join((Game(env_id=spec.id),))
            except (EnvError, SpaceError, MaskError):
                continue  # continuous actions, or a package that is not installed
        obs, nvec = joined.obs, joined.action.nvec
        module = module_of.get(spec.id, package_of(spec))
        rows.append(
            (
                f"{module}:{spec.id}" if module in modules else spec.id,
                f"{obs.n} discrete" if obs.kind == "discrete" else f"{obs.kind} {obs.shape}",
                str(nvec[0]) if len(nvec) == 1 else " + ".join(map(str, nvec)),
                joined.games[0].mask_source,
            )
        )
    return sorted(rows, key=lambda row: (row[3] == "none", row[0]))


def package_of(spec: EnvSpec) -> str:
    """Return the package that an env comes from: of its game, if it is made from a module."""
    game = spec.kwargs.get("game")
    if isinstance(game, str) and game in sys.modules:
        return game.partition(".")[0]
    entry = spec.entry_point or spec.vector_entry_point
    module = entry if isinstance(entry, str) else getattr(entry, "__module__", "")
    return module.partition(":")[0].partition(".")[0]
