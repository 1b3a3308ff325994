"""A mask that is learned from what an env says of the actions that were taken.

For envs that punish invalid actions but emit no mask. `LearnedMask` stands between the envs and a
trainer: the masks that come out are narrowed by a head that learns, from the signal about each
taken action, which ones are invalid. It never makes an action valid that the env's mask rules out,
leaves at least one, and narrows nothing until it has proved right on steps it never learned from.
Once it narrows, held-out steps are among what it left; then only the eliminated actions that are
tried all the same, drawn uniformly, tell what it takes away.

Reference: Zahavy et al. 2018, arXiv:1809.02121 (action elimination).

Dimension key: `N` envs, `B` rows, `A` actions.
"""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from rlmask.labels import Memory, Ring, Tries
from rlmask.ops import fit_ridge
from rlmask.optim import FlatAdam
from rlmask.types import captured_specs
from rlmask.validity import ValidityConfig, ValidityHead, validity_gradient
from rlmask.vector import SpaceError, VectorEnv, VectorStep

CHECK_PERIOD = 32  # gradient steps between two validations
LEAST_VALID = 20  # held-out valid actions without which nothing speaks for it
TOLERANCE = 5  # it goes off with so many times the loss of valid actions with which it went on


class LearnedMask:
    """Envs whose masks are narrowed by what is learned from them; a `VectorEnv` itself.

    Args:
        envs: that say of the taken actions whether they were valid.
        seed: of the run.

    Attributes:
        admissible: [N, A], what may be valid after the last step, the mask without what is
            eliminated. It is the mask to act under, but where that is one eliminated action.

    Raises:
        SpaceError: if there are several games, or an action has several parts.
    """

    def __init__(self, envs: VectorEnv, config: ValidityConfig, seed: int) -> None:
        spec = envs.spec
        if len(spec.action.nvec) > 1 or len(spec.games) > 1:
            raise SpaceError(
                f"{spec.games[0].env_id}: a learned mask is for one game whose actions have one "
                "part; set learned_mask to false"
            )
        self.spec, self.num_envs, self._envs, self._config = spec, envs.num_envs, envs, config
        # not the stream of the policy's draws, which come from the same seed
        self._generator = torch.Generator().manual_seed((seed + 0x5EED) % 2**63)
        with torch.random.fork_rng(devices=()):
            self._learner = ValidityHead(spec.obs, spec.action, config, self._generator)
        self._optimizer = FlatAdam(self._learner)
        # what narrows is the very head that was validated, not the one that goes on learning
        self.acting = copy.deepcopy(self._learner).requires_grad_(False)
        self._memory = Memory(config.capacity, spec.action.num_actions, spec.obs)
        self._held_out = Ring(config.window, spec.obs)
        self._tries = Tries()
        self._num_steps = self._num_learned = 0
        # observation and action of each env's last step
        self._last = torch.zeros(envs.num_envs, *spec.obs.shape), torch.full((envs.num_envs,), -1)
        self._obs = self._mask = torch.empty(0)
        self._tried = torch.zeros(envs.num_envs, dtype=torch.int64)
        self.admissible = torch.empty(0, dtype=torch.bool)
        self._found = {"precision": 0.0, "recall": 0.0, "kept": 1.0}
        self._sums = {"eliminated": 0.0, "invalid": 0.0, "steps": 0.0}

    def reset(self) -> tuple[Tensor, Tensor]:
        """Start an episode in every env; return obs [N, *obs] and mask [N, A]."""
        self._obs, mask = self._envs.reset()
        self._mask = self._narrowed(self._obs, mask)
        return self._obs, self._mask

    def step(self, action: Tensor) -> VectorStep:
        """Take one action [N] in every env, and learn from what comes of it."""
        step = self._envs.step(action)
        with torch.inference_mode(False), torch.no_grad():
            self._learn(self._obs, action, step.action_valid)
            self._obs, self._mask = step.obs, self._narrowed(step.obs, step.action_mask)
            final_mask = self.acting.narrow(step.final_obs, step.final_action_mask)
        return replace(step, action_mask=self._mask, final_action_mask=final_mask)

    def metrics(self) -> dict[str, float]:
        """Return what is to be logged of the steps since the last call."""
        steps = max(1.0, self._sums["steps"])
        shares = {name: self._sums[name] / steps for name in ("eliminated", "invalid")}
        self._sums = dict.fromkeys(self._sums, 0.0)
        found = {**self._found, "missed": self._tries.mean()}
        figures = {**found, "on": float(self.acting.is_on), **shares}
        return {f"validity/{name}": value for name, value in figures.items()}

    def capture(self) -> dict[str, Any]:
        """Return the state of the envs and of all that is learned."""
        return {
            "envs": self._envs.capture(),
            "learner": self._learner.state_dict(),
            "acting": self.acting.state_dict(),
            "optimizer": self._optimizer.capture(),
            "memory": self._memory.capture(),
            "held_out": self._held_out.capture(),
            "tries": self._tries.capture(),
            "tried": self._tried,
            "admissible": self.admissible,
            "last": list(self._last),
            "generator": self._generator.get_state(),
            "num_steps": self._num_steps,
            "num_learned": self._num_learned,
            "mask": self._mask,
            "found": dict(self._found),
            "sums": dict(self._sums),
        }

    def restore(self, state: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Bring envs and head back to a captured state; return obs and mask."""
        self._obs, mask = self._envs.restore(state["envs"])
        self._learner.load_state_dict(state["learner"])
        self.acting.load_state_dict(state["acting"])
        self._optimizer.restore(state["optimizer"])
        self._memory.restore(state["memory"])
        self._held_out.restore(state["held_out"])
        self._tries.restore(state["tries"])
        self._tried = state["tried"]
        self._last = tuple(state["last"])
        self._generator.set_state(state["generator"])
        self._num_steps, self._num_learned = state["num_steps"], state["num_learned"]
        self._found, self._sums = dict(state["found"]), dict(state["sums"])
        # an env that does not repeat itself may by now have another mask
        kept, admissible = mask & state["mask"], mask & state["admissible"]
        is_same = kept.any(-1, keepdim=True)
        self._mask = torch.where(is_same, kept, mask)
        self.admissible = torch.where(is_same, admissible, mask)
        return self._obs, self._mask

    def close(self) -> None:
        """Close the envs."""
        self._envs.close()

    def _narrowed(self, obs: Tensor, mask: Bool[Tensor, " N A"]) -> Bool[Tensor, " N A"]:
        """Return the mask to act under: narrowed, or one eliminated action to be tried again."""
        narrow = self.acting.narrow(obs, mask)
        gone = mask & ~narrow
        self._sums["eliminated"] += float(gone.float().mean())
        self._sums["steps"] += 1
        draws = torch.rand(len(obs), 1 + mask.shape[-1], generator=self._generator)
        tried = torch.where(gone, draws[:, 1:], -1.0).argmax(-1, keepdim=True)
        explores = (draws[:, :1] < self._config.explore) & gone.any(-1, keepdim=True)
        self._tried = torch.where(explores, gone.sum(-1, keepdim=True), 0).squeeze(-1)
        alone = torch.zeros_like(mask).scatter_(-1, tried, True)
        self.admissible = narrow
        return torch.where(explores, alone, narrow)

    def _learn(self, obs: Tensor, action: Tensor, valid: Bool[Tensor, " N"]) -> None:
        self._sums["invalid"] += float((~valid).float().mean())
        is_try = self._tried > 0
        self._tries.add(self._tried[is_try], valid[is_try])
        # an agent that repeats itself where nothing happens would push out all else
        again = (action == self._last[1]) & (obs == self._last[0]).reshape(len(obs), -1).all(1)
        new = valid | ~again
        self._last = obs, action
        held_out = torch.rand(len(obs), generator=self._generator) < self._config.held_out
        held_out, learned = new & held_out, new & ~held_out
        self._held_out.add(obs[held_out], action[held_out], valid[held_out])
        self._memory.add(obs[learned], action[learned], valid[learned])
        self._num_steps += len(obs)
        while self._num_learned < self._num_steps // self._config.period:
            self._num_learned += 1
            if self._memory.has_both():
                self._gradient_step()
                if self._num_learned % CHECK_PERIOD == 0:
                    self._validate()

    def _gradient_step(self) -> None:
        half = self._config.batch_size // 2
        drawn = [self._memory.draw(label, half, self._generator) for label in (False, True)]
        obs, action = (torch.cat(columns) for columns in zip(*drawn, strict=True))
        valid = torch.arange(2 * half) >= half
        logits, pullback = self._learner.vjp(obs)
        pullback(validity_gradient(logits, action, valid, self._config))
        self._optimizer.step(self._config.learning_rate, 1.0)

    def _validate(self) -> None:
        """Let the head that acts be the one that learns, as it is; see whether it is to be used."""
        config, acting = self._config, self.acting
        was_on = bool(acting.is_on)
        acting.load_state_dict({**self._learner.state_dict(), "is_on": acting.is_on})
        if config.rule == "bound":
            obs, action, valid = self._memory.read()
            features = acting.features(obs)
            ridge = fit_ridge(features, action, ~valid, self.spec.action.num_actions, strength=1.0)
            acting.theta.copy_(ridge.theta)
            acting.inverse.copy_(ridge.inverse)
        obs, action, valid = self._held_out.read()
        out = acting.eliminated(obs).gather(-1, action.unsqueeze(-1)).squeeze(-1)
        called, right, num_valid = (int(x.sum()) for x in (out, out & ~valid, valid))
        num_invalid = len(valid) - num_valid
        precision, kept = right / max(1, called), 1 - (called - right) / max(1, num_valid)
        self._found = {
            "precision": precision,
            "recall": right / max(1, num_invalid),
            "kept": kept,
        }
        if was_on:
            # beside at least one valid action that is left
            missed = self._tries.at_least()
            if missed / (1 + missed) > TOLERANCE * (1 - config.kept):
                acting.is_on.fill_(False)
                self._held_out.clear()  # it was among what a bad mask left
        else:
            is_seen = called >= config.least_predictions and num_valid >= LEAST_VALID
            if is_seen and precision >= config.precision and kept >= config.kept:
                acting.is_on.fill_(True)
                self._tries.clear()


def with_learned_mask(envs: VectorEnv, config: Any) -> VectorEnv:
    """Return the envs of a trainer's settings, with a learned mask if they ask for one.

    Raises:
        SpaceError: if nothing could be learned from them.
    """
    if not config.learned_mask:
        return envs
    if config.vectorization == "native":
        raise SpaceError(
            f"{envs.spec.games[0].env_id}: native envs do not say whether an action was valid; "
            "set vectorization to sync, or learned_mask to false"
        )
    return LearnedMask(envs, config.validity, config.seed)


def admissible_mask(envs: VectorEnv, action_mask: Bool[Tensor, " N A"]) -> Bool[Tensor, " N A"]:
    """Return what a target may bootstrap over, of envs that show this mask to act under."""
    return envs.admissible if isinstance(envs, LearnedMask) else action_mask


def validity_metrics(envs: VectorEnv) -> dict[str, float]:
    """Return the metrics of a learned mask; none of envs without."""
    return envs.metrics() if isinstance(envs, LearnedMask) else {}


def head_of(envs: VectorEnv) -> ValidityHead | None:
    """Return the head that narrows the masks of envs, if any."""
    return envs.acting if isinstance(envs, LearnedMask) else None


def load_head(config: Any, state: Mapping[str, Any]) -> ValidityHead | None:
    """Return the head of a trainer's captured state, if it has one."""
    if not config.learned_mask:
        return None
    with torch.random.fork_rng(devices=()):
        head = ValidityHead(*captured_specs(state), config.validity, torch.Generator())
    head.load_state_dict(state["envs"]["acting"])
    return head
