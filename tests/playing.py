"""Random valid play of native games, for the tests and scripts of each of them."""

import gymnasium as gym
import numpy as np


def env_id(name):
    return f"rlmask_envs:rlmask/{name}-v0"


def make_vec(name, num_envs=8, **sizes):
    return gym.make_vec(env_id(name), num_envs, **sizes)


def draw(mask, rng):
    """Return a random valid action a row."""
    return (rng.random(mask.shape, np.float32) * (mask != 0)).argmax(-1)


def play(envs, num_steps, seed=0):
    """Take random valid actions; yield (action, obs, reward, terminated, truncated, info)."""
    rng = np.random.default_rng(seed)
    _, info = envs.reset(seed=seed)
    for _ in range(num_steps):
        action = draw(info["action_mask"], rng)
        obs, reward, terminated, truncated, info = envs.step(action)
        yield action, obs, reward, terminated, truncated, info
