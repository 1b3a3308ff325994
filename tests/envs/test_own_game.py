"""The game of docs/games.md, as it stands there."""

import importlib
import re
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from playing import draw

from rlmask.vector import Game, check_env, list_envs, make_vector

PAGE = (Path(__file__).parents[2] / "docs" / "games.md").read_text()


@pytest.fixture
def nim(tmp_path, monkeypatch):
    (code,) = [
        code for code in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "def setup" in code
    ]
    (tmp_path / "nim.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    yield code
    sys.modules.pop("nim", None)
    gym.registry.pop("mine/Nim-v0", None)


def test_it_has_fewer_than_sixty_lines(nim):
    assert len(nim.splitlines()) < 60


def test_it_keeps_the_contract(nim):
    findings = check_env(Game(env_id="nim:mine/Nim-v0"), 500, 0)
    assert {finding.level for finding in findings} == {"ok"}, findings


def test_it_is_the_game_that_it_says(nim):
    envs = gym.make_vec("nim:mine/Nim-v0", 64, sticks=8, render_mode="rgb_array")
    obs, info = envs.reset(seed=0)
    assert envs.render()[0].shape[2] == 3
    rng, results = np.random.default_rng(0), []
    left = obs.argmax(1)
    assert set(left) == {5, 6, 7, 8}
    for _ in range(30):
        action = draw(info["action_mask"], rng)
        obs, reward, terminated, _, info = envs.step(action)
        after = left - action - 1
        won = terminated & (reward == 1)
        assert (won == (after == 0)).all()
        assert (info["final_obs"].argmax(1)[terminated] == 0).all() if terminated.any() else True
        results += reward[terminated].tolist()
        left = obs.argmax(1)
        assert (info["action_mask"] == (np.arange(3) < left[:, None])).all()
    assert set(results) == {1.0, -1.0}
    with pytest.raises(ValueError, match="4 to 50"):
        gym.make("mine/Nim-v0", sticks=3)


@pytest.mark.parametrize("is_imported", [False, True])
def test_its_id_is_listed_as_it_is_to_be_written(nim, without_atari, is_imported):
    if is_imported:
        importlib.import_module("nim")
    ids = {row[0] for row in list_envs(("rlmask_envs", "nim"))}
    assert {"nim:mine/Nim-v0", "rlmask_envs:rlmask/Snake-v0"} <= ids


def test_rlmask_plays_it(nim):
    vector = make_vector((Game(env_id="nim:mine/Nim-v0"),), 4, 0, vectorization="native")
    obs, mask = vector.reset()
    assert obs.shape == (4, 22)
    step = vector.step(mask.int().argmax(1))
    assert (step.action_mask.sum(1) > 0).all()
