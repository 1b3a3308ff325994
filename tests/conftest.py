import random

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
