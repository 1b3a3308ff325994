import random

import gymnasium as gym
import hypothesis
import numpy as np
import pytest
import torch

torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other

hypothesis.settings.register_profile("rlmask", deadline=None, derandomize=True)
hypothesis.settings.load_profile("rlmask")


@pytest.fixture(autouse=True)
def _seed():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def without_atari(monkeypatch):
    """Listing makes every registered env: not Atari's hundreds, if another test registered them."""
    for id_, spec in list(gym.registry.items()):
        if str(spec.entry_point).startswith("ale_py"):
            monkeypatch.delitem(gym.registry, id_)
