"""Small Gymnasium envs for the tests, and how to play them. Importing this registers the envs.

The keyword `where` says where an env has its mask: `info`, `obs`, `method` or `none`.
"""

import dataclasses
import os
import signal
from copy import deepcopy

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, iterate


def env_id(name):
    return f"envs_for_tests:rlmask-tests/{name}-v0"


def observation_space(where, space, num_actions):
    if where != "obs":
        return space
    return spaces.Dict({"observation": space, "action_mask": spaces.MultiBinary(num_actions)})


def report(where, obs, mask):
    """Return obs and info with the mask in its place; None is no mask."""
    if mask is None or where in ("method", "none"):
        return ({"observation": obs} if where == "obs" else obs), {}
    if where == "obs":
        return {"observation": obs, "action_mask": mask}, {}
    return obs, {"action_mask": mask}


class Corridor(gym.Env):
    """Walk right to the goal with left, right and stay; a step costs 0.1, the goal is worth 1.

    Left is invalid at the left end, stay at odd places. The first place is drawn from the seed, and
    with probability `wind` an action is blown away. If `strict`, an invalid action raises.
    """

    def __init__(
        self,
        length=6,
        start=0,
        obs_start=0,
        where="info",
        final_mask="empty",
        wind=0.0,
        strict=False,
    ):
        place = spaces.Discrete(length, start=obs_start)
        self.observation_space = observation_space(where, place, 3)
        self.action_space = spaces.Discrete(3, start=start)
        self.goal, self.obs_start = length - 1, obs_start
        final_masks = {"empty": np.zeros(3, np.int8), "full": np.ones(3, np.int8), "missing": None}
        self.final_mask = final_masks[final_mask]
        self.where, self.wind, self.strict = where, wind, strict
        if where == "method":
            self.action_masks = self.mask

    def mask(self):
        if self.at == self.goal:
            return self.final_mask
        return np.array([self.at > 0, True, self.at % 2 == 0], np.int8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = int(self.np_random.integers(self.goal))
        return self.report()

    def step(self, action):
        if not self.action_space.contains(action):
            raise ValueError(f"{action!r} is not in {self.action_space}")
        if self.strict and not self.mask()[action - self.action_space.start]:
            raise ValueError(f"illegal move {action}")
        if self.np_random.random() >= self.wind:
            self.at = max(0, self.at + (-1, 1, 0)[action - self.action_space.start])
        at_goal = self.at == self.goal
        obs, info = self.report()
        return obs, 0.9 if at_goal else -0.1, at_goal, False, info

    def report(self):
        return report(self.where, self.at + self.obs_start, self.mask())


class TwoStates(gym.Env):
    """States A = 0 and B = 1; of three actions the last is never valid.

    A: 0 stays and pays `stay`; 1 goes to B and pays `go`. B: 0 returns to A and pays `back`; 1 ends
    the episode (with an empty mask) and pays `end`. An invalid action raises.
    """

    def __init__(self, stay=1.0, go=0.0, back=2.0, end=0.5):
        self.observation_space, self.action_space = spaces.Discrete(3), spaces.Discrete(3)
        self.moves = {
            (0, 0): (0, stay, False),
            (0, 1): (1, go, False),
            (1, 0): (0, back, False),
            (1, 1): (2, end, True),
        }

    def info(self):
        return {"action_mask": np.array([self.state < 2, self.state < 2, False], np.int8)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = int(self.np_random.integers(2))
        return self.state, self.info()

    def step(self, action):
        if (self.state, action) not in self.moves:
            raise ValueError(f"action {action} is invalid in state {self.state}")
        self.state, reward, terminated = self.moves[self.state, action]
        return self.state, reward, terminated, False, self.info()

    def action_values(self, gamma):
        """Return Q[A or B, 0 or 1] of the best policy over the valid actions."""
        q = np.zeros((3, 2))
        for _ in range(200):
            for (state, action), (successor, reward, _) in self.moves.items():
                q[state, action] = reward + gamma * q[successor].max()
        return q[:2]


class Counter(gym.Env):
    """Counts its steps: obs is (tag, t, t, ...), action a is valid where a + 1 divides t.

    The tag tells episodes apart: it is drawn from the seed. The reward is t. Registered with a time
    limit of 5 steps; terminates at step `last`.
    """

    def __init__(self, size=2, num_actions=3, where="info", last=None):
        self.observation_space = observation_space(
            where, spaces.Box(-np.inf, np.inf, (size,), np.float32), num_actions
        )
        self.action_space = spaces.Discrete(num_actions)
        self.size, self.last, self.where = size, last, where
        if where == "method":
            self.action_masks = self.mask

    def mask(self):
        return counter_mask(self.t, self.action_space.n)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.tag, self.t = self.np_random.random(), 0
        return self.report()

    def step(self, action):
        self.t += 1
        obs, info = self.report()
        return obs, float(self.t), self.t == self.last, False, info

    def report(self):
        obs = np.full(self.size, self.t, np.float32)
        obs[0] = self.tag
        return report(self.where, obs, self.mask())


class Stacked(gym.Env):
    """A Corridor whose observation is its last `frames` images, oldest first, one a channel."""

    def __init__(self, frames=3):
        self.corridor, self.frames = Corridor(), frames
        self.observation_space = spaces.Box(0, 255, (3, 6, frames), np.uint8)
        self.action_space = spaces.Discrete(3)

    def image(self, place):
        image = np.zeros((3, 6, 1), np.uint8)
        image[:, place] = 255
        return image

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        place, info = self.corridor.reset(seed=seed)
        self.obs = np.concatenate([self.image(place)] * self.frames, -1)
        return self.obs, info

    def step(self, action):
        place, *rest = self.corridor.step(action)
        self.obs = np.concatenate([self.obs[..., 1:], self.image(place)], -1)
        return self.obs, *rest


def counter_mask(t, num_actions):
    return np.array([t % (action + 1) == 0 for action in range(num_actions)])


class Grid(gym.Env):
    """Walk in a picture: up, down, left, right, but not out of it; the last pixel is the goal.

    Channel 0 is 255 at the walker. All other bytes of the picture are different, so that no
    confusion of rows, columns and channels goes unseen.
    """

    MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))

    def __init__(self, height=3, width=4, channels=2, channels_first=False, where="info"):
        self.picture = np.arange(height * width * channels, dtype=np.uint8)
        self.picture = self.picture.reshape(height, width, channels)
        self.channels_first, self.where = channels_first, where
        shape = (channels, height, width) if channels_first else self.picture.shape
        self.observation_space = observation_space(where, spaces.Box(0, 255, shape, np.uint8), 4)
        self.action_space = spaces.Discrete(4)
        if where == "method":
            self.action_masks = self.mask

    def mask(self):
        ends = [(self.row + up, self.column + right) for up, right in self.MOVES]
        height, width, _ = self.picture.shape
        return np.array([0 <= row < height and 0 <= column < width for row, column in ends])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        height, width, _ = self.picture.shape
        place = int(self.np_random.integers(height * width - 1))
        self.row, self.column = divmod(place, width)
        return self.report()

    def step(self, action):
        up, right = self.MOVES[action]
        self.row, self.column = self.row + up, self.column + right
        height, width, _ = self.picture.shape
        at_goal = (self.row, self.column) == (height - 1, width - 1)
        obs, info = self.report()
        return obs, float(at_goal), at_goal, False, info

    def report(self):
        picture = self.picture.copy()
        picture[self.row, self.column, 0] = 255
        if self.channels_first:
            picture = np.moveaxis(picture, -1, 0)
        return report(self.where, picture, self.mask())


class Target(gym.Env):
    """Say the numbers of the observation, one a part; the reward is the share that is right.

    About half of the numbers are valid, the right ones always; but of the part `empty` none is at
    step `at`. Eight steps.
    """

    def __init__(
        self, nvec=(3, 2, 4), start=0, layout="flat", where="info", binary=False, empty=None, at=3
    ):
        self.nvec, self.start = np.array(nvec), start
        self.empty, self.at = empty, at
        box = spaces.Box(0, 1, (len(nvec),), np.float32)
        self.observation_space = observation_space(where, box, sum(nvec))
        if binary:
            self.action_space = spaces.MultiBinary(len(nvec))
        else:
            self.action_space = spaces.MultiDiscrete(nvec, start=[start] * len(nvec))
        self.layout, self.where = layout, where
        if where == "method":
            self.action_masks = self.mask

    def mask(self):
        if self.layout == "tuple":
            return tuple(self.masks)
        return np.concatenate(self.masks)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        self.draw()
        return self.report()

    def step(self, action):
        if not self.action_space.contains(action):
            raise ValueError(f"{action!r} is not in {self.action_space}")
        reward = float(np.mean(action - self.start == self.target))
        self.t += 1
        self.draw()
        obs, info = self.report()
        return obs, reward, self.t == 8, False, info

    def draw(self):
        self.target = self.np_random.integers(self.nvec)
        self.masks = [self.np_random.random(n) < 0.5 for n in self.nvec]
        for mask, number in zip(self.masks, self.target, strict=True):
            mask[number] = True
        if self.empty is not None and self.t == self.at:
            self.masks[self.empty][:] = False

    def report(self):
        return report(self.where, (self.target / self.nvec).astype(np.float32), self.mask())


FAULTY_MASKS = {
    "list": [1, 0, 1, 0],
    "tuple": (1, 0, 1, 0),
    "half": np.array([1, 0.5, 0, 1]),
    "nan": np.array([1, np.nan, 0, 1]),
    "two": np.array([1, 2, 0, 1], np.int8),
    "minus one": np.array([1, -1, 0, 1], np.int8),
    "length 1": np.ones(1, np.int8),
    "length 5": np.ones(5, np.int8),
    "matrix": np.ones((1, 4), np.int8),
    "objects": np.array([1, 0, 1, 0], object),
    "bytes": np.array([b"\1", b"\0", b"\1", b"\0"]),
    "strings": np.array(["1", "0", "1", "0"]),
    "empty": np.zeros(4, np.int8),
    "missing": None,
}


class Pick(gym.Env):
    """One step: pick the entity of the larger number; of 6 places, 2 to 6 hold an entity.

    A place is two numbers, whether there is an entity and its number; at the end comes a constant.
    """

    def __init__(self):
        self.observation_space = spaces.Box(0, 1, (13,), np.float32)
        self.action_space = spaces.Discrete(6)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        there = np.zeros(6)
        there[self.np_random.permutation(6)[: self.np_random.integers(2, 7)]] = 1
        number = self.np_random.random(6)
        self.best = np.argmax(np.where(there, number, -1))
        self.obs = np.append(np.stack([there, number], 1).ravel(), 1).astype(np.float32)
        return self.obs, {"action_mask": there.astype(np.int8)}

    def step(self, action):
        mask = np.zeros(6, np.int8)
        return self.obs, float(action == self.best), True, False, {"action_mask": mask}


class Malformed(gym.Env):
    """Four actions, obs (t, t); does what `fault` says at step `at`, 0 for reset, of each episode.

    Faults: those of `FAULTY_MASKS`; `late`, a mask at that step only; `nan reward`, `inf reward`;
    `obs shape`, `nan obs`; `error`, `error with %`, `death`. Where they are `aliased`, masks and
    observations are the same arrays at every step. Episodes have 4 steps.
    """

    def __init__(self, fault="none", at=2, where="info", aliased=False):
        box = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.observation_space = observation_space(where, box, 4)
        self.action_space = spaces.Discrete(4)
        self.fault, self.at, self.where, self.aliased = fault, at, where, aliased
        self.obs, self.valid = np.zeros(2, np.float32), np.zeros(4, np.int8)
        if where == "method":
            self.action_masks = self.mask

    def mask(self):
        if self.t == self.at and self.fault in FAULTY_MASKS:
            return FAULTY_MASKS[self.fault]
        if self.fault == "late" and self.t != self.at:
            return None
        if not self.aliased:
            self.valid = np.zeros(4, np.int8)
        self.valid[:] = np.arange(4) <= self.t
        return self.valid

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.report()

    def step(self, action):
        self.t += 1
        is_now = self.t == self.at
        if is_now and self.fault == "error":
            raise RuntimeError("the game is broken")
        if is_now and self.fault == "error with %":
            raise RuntimeError("the game is %s broken" % "quite")  # noqa: UP031
        if is_now and self.fault == "death":
            os.kill(os.getpid(), signal.SIGKILL)
        rewards = {"nan reward": np.nan, "inf reward": -np.inf} if is_now else {}
        obs, info = self.report()
        return obs, rewards.get(self.fault, 1.0), self.t == 4, False, info

    def report(self):
        wrong = {"obs shape": np.zeros(3, np.float32), "nan obs": np.full(2, np.nan, np.float32)}
        if self.t == self.at and self.fault in wrong:
            return report(self.where, wrong[self.fault], self.mask())
        if not self.aliased:
            self.obs = np.zeros(2, np.float32)
        self.obs[:] = self.t
        return report(self.where, self.obs, self.mask())


class NonDeterministic(gym.Env):
    """Ignores its seed. Its observations, its masks or (through `length`) its length differ."""

    length = 100

    def __init__(self, what="obs"):
        self.observation_space = spaces.Box(-np.inf, np.inf, (4,), np.float32)
        self.action_space = spaces.Discrete(64)
        self.what = what
        self.random = np.random.default_rng()

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return self.report()

    def step(self, action):
        self.t += 1
        obs, info = self.report()
        return obs, 0.0, self.t >= self.length, False, info

    def report(self):
        obs, mask = np.zeros(4, np.float32), np.ones(64, bool)
        if self.what == "obs":
            obs = self.random.normal(size=4).astype(np.float32)
        if self.what == "mask":
            mask = np.arange(64) == self.random.integers(64)
        return obs, {"action_mask": mask}


class Truncated(gym.Env):
    """Truncated at step 2, where it has no mask, or one without a valid action if it is `empty`."""

    def __init__(self, where="info", empty=False):
        self.final_mask = np.zeros(2, bool) if empty else None
        self.observation_space = observation_space(where, spaces.Discrete(3), 2)
        self.action_space = spaces.Discrete(2)
        self.where = where
        if where == "method":
            self.action_masks = self.mask

    def mask(self):
        return self.final_mask if self.t == 2 else np.ones(2, bool)

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return report(self.where, self.t, self.mask())

    def step(self, action):
        self.t += 1
        obs, info = report(self.where, self.t, self.mask())
        return obs, 0.0, False, self.t == 2, info


class Spaces(gym.Env):
    """Shows samples of the given observation space, takes the given actions, never ends.

    Args:
        shows: what it shows instead of samples.
        masks: the places where it has a mask; only action k is valid according to the k-th of
            `info`, `obs`, `method`.
    """

    def __init__(self, observation=None, action=None, shows=None, masks=()):
        self.observation_space = spaces.Discrete(2) if observation is None else observation
        self.action_space = spaces.Discrete(3) if action is None else action
        self.shows, self.masks = shows, masks
        if "obs" in masks:
            self.observation_space = observation_space("obs", self.observation_space, 3)
        if "method" in masks:
            self.action_masks = lambda: np.arange(3) == 2

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.report()

    def step(self, action):
        obs, info = self.report()
        return obs, 0.0, False, False, info

    def report(self):
        obs = self.observation_space.sample() if self.shows is None else self.shows
        if "obs" in self.masks:
            obs["action_mask"] = np.arange(3) == 1
        return obs, {"action_mask": np.arange(3) == 0} if "info" in self.masks else {}


class OldReset(gym.Env):
    """Gym's API before 0.26, in two ways: `reset` without a seed, or without info."""

    observation_space = spaces.Discrete(7)
    action_space = spaces.Discrete(2)

    def __init__(self, lacks="info"):
        if lacks == "seed":
            self.reset = lambda: (0, {})

    def reset(self, *, seed=None, options=None):
        return 0


class NeedsExtra(gym.Env):
    def __init__(self, error="dependency"):
        if error == "dependency":
            raise gym.error.DependencyNotInstalled("run `pip install no-such-game`")
        import no_such_game  # noqa: F401


class Breaks(gym.Env):
    """Raises Gymnasium's own error at a reset or step, counted from 1."""

    def __init__(self, reset=0, step=0):
        self.observation_space, self.action_space = spaces.Discrete(2), spaces.Discrete(2)
        self.left = {"reset": reset, "step": step}

    def count(self, what):
        self.left[what] -= 1
        if self.left[what] == 0:
            raise gym.error.Error(f"the opponent\nfailed at a {what}")

    def reset(self, *, seed=None, options=None):
        self.count("reset")
        return 0, {}

    def step(self, action):
        self.count("step")
        return 1, 0.0, False, False, {}


class Telling(gym.Env):
    """Five steps, no mask; says afterwards that action 2 was invalid, and of others if asked to.

    Args:
        says: what to say of action 2.
        always: say it of the valid ones as well.
    """

    def __init__(self, says=False, always=True):
        self.observation_space = spaces.Box(0, 5, (1,), np.float32)
        self.action_space = spaces.Discrete(3)
        self.says, self.always = says, always

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        info = {"action_valid": self.says} if action == 2 else {}
        if self.always and action != 2:
            info["action_valid"] = True
        return np.full(1, self.t, np.float32), 0.0, self.t == 5, False, info


class Doors(gym.Env):
    """A row of rooms with `doors` doors each, of which only that to the next and that back open.

    No mask: info["action_valid"] says whether the door opened. Trying costs 0.1, the last room is
    worth 1. With `where` info the mask is there as well.
    """

    def __init__(self, rooms=5, doors=12, where="none"):
        self.observation_space = spaces.Discrete(rooms)
        self.action_space = spaces.Discrete(doors)
        self.rooms, self.doors, self.where = rooms, doors, where

    def mask(self):
        mask = np.zeros(self.doors, np.int8)
        mask[[self.on(), self.back()]] = 1
        return mask

    def on(self):
        return (7 * self.at + 3) % self.doors

    def back(self):
        return (7 * self.at + 5) % self.doors

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = int(self.np_random.integers(self.rooms - 1))
        return report(self.where, self.at, self.mask())

    def step(self, action):
        move = {self.on(): 1, self.back(): -1}.get(int(action))
        self.at = max(0, self.at + (move or 0))
        won = self.at == self.rooms - 1
        obs, info = report(self.where, self.at, self.mask())
        return obs, 0.9 if won else -0.1, won, False, {**info, "action_valid": move is not None}


class Counters(VectorEnv):
    """Counter as one vector env, which resets within the step, and uses its arrays again and again.

    Episodes have 2 to 6 steps; those of an even number terminate, the others are truncated.

    Args:
        where: `info`, `obs`, `method` or `none`.
        mode: of autoreset, as it says; it always resets within the step.
        fault: of the last env at its step 1: `two`, `half`, `empty`, `missing` (masks) or `nan`
            (reward); `no final_obs`; of all envs `no final_mask` or an `empty final_mask`.
    """

    def __init__(self, num_envs, where="info", mode="SameStep", fault="none"):
        self.num_envs, self.where, self.fault = num_envs, where, fault
        self.metadata = {"autoreset_mode": AutoresetMode(mode)}
        box = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.single_observation_space = observation_space(where, box, 3)
        self.single_action_space = spaces.Discrete(3)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.t, self.length = np.zeros((2, num_envs), np.int64)
        self.obs, self.valid = np.zeros((num_envs, 2), np.float32), np.zeros((num_envs, 3), bool)
        self.reward = np.zeros(num_envs, np.float32)
        self.terminated, self.truncated = np.zeros((2, num_envs), bool)
        if where == "method":
            self.action_masks = self.mask

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.begin(np.ones(self.num_envs, bool))
        return self.report()

    def step(self, actions):
        rows = np.arange(self.num_envs)
        if self.where != "none" and not self.valid[rows, actions].all():
            raise ValueError(f"an invalid action in {actions}")
        self.t += 1
        self.reward[:] = self.t
        if self.fault == "nan" and self.t[-1] == 1:
            self.reward[-1] = np.nan
        ended = self.t == self.length
        self.terminated[:] = ended & (self.length % 2 == 0)
        self.truncated[:] = ended & (self.length % 2 == 1)
        final_obs, final_info = deepcopy(self.report())
        self.final_mask = self.valid.copy()
        self.begin(ended)
        obs, info = self.report()
        if ended.any() and self.fault != "no final_obs":
            info["final_obs"], info["final_info"] = final_obs, final_info
            if self.where == "method":
                final_info["action_mask"] = self.final_mask
            if self.fault == "no final_mask":
                final_info.pop("action_mask", None)
            if self.fault == "empty final_mask":
                (final_obs if self.where == "obs" else final_info)["action_mask"][:] = False
        return obs, self.reward, self.terminated, self.truncated, info

    def begin(self, envs):
        for env in np.flatnonzero(envs):
            self.t[env], self.length[env] = 0, self.np_random.integers(2, 7)
            self.obs[env, 0] = self.np_random.random()

    def report(self):
        self.obs[:, 1] = self.t
        self.valid[:] = [counter_mask(t, 3) for t in self.t]
        return report(self.where, self.obs, self.mask())

    def mask(self):
        if self.t[-1] != 1 or self.fault not in ("two", "half", "empty", "missing"):
            return self.valid
        if self.fault == "missing":
            return None
        mask = self.valid.astype(np.float32 if self.fault == "half" else np.int8)
        mask[-1] = {"two": [1, 2, 0], "half": [1, 0.5, 0], "empty": [0, 0, 0]}[self.fault]
        return mask


class CountersWithState(Counters):
    """Counters that can be saved."""

    def capture_state(self):
        arrays = {"t": self.t, "length": self.length, "tag": self.obs[:, 0]}
        state = {name: array.copy() for name, array in arrays.items()}
        return {**state, "random": self.np_random.bit_generator.state}

    def restore_state(self, state):
        self.t[:], self.length[:], self.obs[:, 0] = state["t"], state["length"], state["tag"]
        self.np_random.bit_generator.state = state["random"]
        return self.report()


class NativeSpaces(VectorEnv):
    """Shows samples of the given observation space, takes the given actions; two steps an episode.

    The actions can be found in `taken`. With a `mask`, it is the mask of all envs at all times.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012
    taken = []  # noqa: RUF012

    def __init__(self, num_envs, observation=None, action=None, mask=None):
        self.num_envs = num_envs
        self.info = {} if mask is None else {"action_mask": np.array(mask)}
        self.single_observation_space = spaces.Discrete(2) if observation is None else observation
        self.single_action_space = spaces.Discrete(3) if action is None else action
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed=None, options=None):
        self.observation_space.seed(seed)
        self.t = 0
        return self.observation_space.sample(), self.info

    def step(self, actions):
        if not self.action_space.contains(actions):
            raise ValueError(f"{actions!r} is not in {self.action_space}")
        self.taken.append(actions)
        self.t += 1
        ended, info = np.full(self.num_envs, self.t % 2 == 0), dict(self.info)
        if ended.all():
            info["final_obs"] = np.empty(self.num_envs, object)
            final_obs = iterate(self.observation_space, self.observation_space.sample())
            for env, obs in enumerate(final_obs):
                info["final_obs"][env] = obs
        not_truncated = np.zeros(self.num_envs, bool)
        reward = np.zeros(self.num_envs)
        return self.observation_space.sample(), reward, ended, not_truncated, info


SINGLE = (
    Corridor,
    Grid,
    Target,
    Malformed,
    Pick,
    NonDeterministic,
    Truncated,
    TwoStates,
    Stacked,
    Spaces,
    OldReset,
    NeedsExtra,
    Breaks,
    Telling,
)
for _env in SINGLE:
    gym.register(f"rlmask-tests/{_env.__name__}-v0", entry_point=_env)
gym.register("rlmask-tests/Counter-v0", entry_point=Counter, max_episode_steps=5)
gym.register("rlmask-tests/Doors-v0", entry_point=Doors, max_episode_steps=40)
gym.register("rlmask-tests/Both-v0", entry_point=Counter, vector_entry_point=Counters)
for _env in (Counters, CountersWithState, NativeSpaces):
    gym.register(f"rlmask-tests/{_env.__name__}-v0", vector_entry_point=_env)


def random_actions(mask, nvec, generator):
    """Return one valid action a row, each valid one as likely."""
    parts = [torch.multinomial(m.float(), 1, generator=generator) for m in mask.split(nvec, -1)]
    return torch.cat(parts, -1) if len(nvec) > 1 else parts[0][:, 0]


def play(vector, mask, num_steps, seed=0):
    """Step a vector env with random valid actions; return the actions and the steps."""
    generator = torch.Generator().manual_seed(seed)
    actions, steps = [], []
    for _ in range(num_steps):
        actions.append(random_actions(mask, vector.spec.action.nvec, generator))
        steps.append(vector.step(actions[-1]))
        mask = steps[-1].action_mask
    return actions, steps


def assert_same_steps(steps, expected):
    """All tensors and figures of two runs are equal to the last bit."""
    assert len(steps) == len(expected)
    for step, other in zip(steps, expected, strict=True):
        for field in dataclasses.fields(step):
            value, target = getattr(step, field.name), getattr(other, field.name)
            if isinstance(value, torch.Tensor):
                assert value.dtype == target.dtype, field.name
                assert torch.equal(value, target), field.name
            else:
                assert value == target, field.name
