import ast
import random

import gymnasium as gym
import hypothesis
import jaxtyping
import numpy as np
import pytest
import torch
from jaxtyping._import_hook import JaxtypingTransformer

torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other

hypothesis.settings.register_profile("rlmask", deadline=None, derandomize=True)
hypothesis.settings.load_profile("rlmask")

_typed = JaxtypingTransformer.visit_FunctionDef


def _typed_unless_nested(self: JaxtypingTransformer, node: ast.FunctionDef) -> ast.FunctionDef:
    """A function within another, a pullback say, would be compiled again at each call of that."""
    nested = any(isinstance(parent, ast.FunctionDef) for parent in self._parents)
    return node if nested else _typed(self, node)


JaxtypingTransformer.visit_FunctionDef = _typed_unless_nested  # before rlmask is imported


@pytest.fixture(autouse=True)
def _seed():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _types_are_checked_where_it_is_quick(request, monkeypatch):
    """Checking the types of every call takes several times as long as a small training."""
    is_slow = request.node.get_closest_marker("slow") is not None
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", is_slow)


@pytest.fixture
def types_are_not_checked(monkeypatch):
    """As outside of tests: what a misspelt name does there."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def without_atari(monkeypatch):
    """Listing makes every registered env: not Atari's hundreds, if another test registered them."""
    for id_, spec in list(gym.registry.items()):
        if str(spec.entry_point).startswith("ale_py"):
            monkeypatch.delitem(gym.registry, id_)
