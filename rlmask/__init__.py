"""Reinforcement learning where not every action is valid in every state.

import rlmask
from rlmask import ppo

for update in ppo.train(ppo.PPOConfig(env="Taxi-v4")):
    print(update.env_steps, update.metrics.get("rollout/episode_return"))  # None before an end

policy = rlmask.load("runs/...")
action = policy(obs, action_mask)
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "load"]

if TYPE_CHECKING:
    from rlmask.run import load


def __getattr__(name: str) -> Any:
    # loading a run needs most of the library; worker processes of envs do not
    if name == "load":
        from rlmask.run import load

        return load
    raise AttributeError(f"module 'rlmask' has no attribute {name!r}")
