import itertools

import numpy as np
import playing
import pytest
import torch
from PIL import Image

from rlmask import record
from rlmask.record import grid, record_video
from rlmask.recorded import RecordedError, read_states, record_states
from rlmask.teachers import random_policy
from rlmask.vector import Game

GAMES = (
    Game(env_id=playing.env_id("Snake"), action_ids=tuple(range(6))),
    Game(env_id=playing.env_id("Tetris"), env_kwargs={"width": 6}, action_ids=tuple(range(6))),
)


def frames_of(path):
    with Image.open(path) as image:
        frames = []
        for index in range(image.n_frames):
            image.seek(index)
            frames.append(np.asarray(image.convert("RGB"), np.int64))
    return frames


def test_all_games_are_played_at_the_same_time(tmp_path):
    seen = []
    policy = random_policy(0)

    def watched(obs, mask):
        seen.append(mask.any(-1).tolist())
        return policy(obs, mask)

    path = tmp_path / "both.gif"
    record_video(GAMES, None, watched, path, seed=1)
    assert all(rows == [True, True] for rows in seen)  # a row of each game, never an empty mask
    frames = frames_of(path)
    assert len(frames) > 5
    side = record.TILE
    assert frames[0].shape == (side + record.CAPTION, 2 * side, 3)
    halves = [(frame[:, :side], frame[:, side:]) for frame in frames]
    for half in (0, 1):  # both move
        assert any((a[half] != b[half]).any() for a, b in itertools.pairwise(halves[:4]))
    assert not list(tmp_path.glob(".*"))


def test_a_game_that_is_over_stays_dimmed():
    white = np.full((10, 10, 3), 255, np.uint8)
    long, short = [white] * 3, [white]
    pictures = grid([long, short], ["A", "B"], [[0.0, 1.0, 2.0], [5.0]])
    assert len(pictures) == 3
    middle = record.CAPTION + record.TILE // 2
    left, right = record.TILE // 2, record.TILE + record.TILE // 2
    assert pictures[0][middle, right].tolist() == [255] * 3
    assert pictures[2][middle, left].tolist() == [255] * 3
    assert (pictures[2][middle, right] < 150).all()
    # the caption is written anew where a return changes
    assert (pictures[0][: record.CAPTION, :220] != pictures[1][: record.CAPTION, :220]).any()


def test_a_video_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "one.gif"
    path.write_bytes(b"before")

    def full(*arguments, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space"):
        record_video(GAMES[:1], None, random_policy(0), path, seed=0)
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["one.gif"]


@pytest.mark.parametrize("vectorization", ["sync", "native"])
def test_recorded_states_are_read_back(tmp_path, vectorization):
    seen = []
    policy = random_policy(0)

    def watched(obs, mask):
        seen.append((obs.clone(), mask.clone()))
        return policy(obs, mask)

    path = tmp_path / "states.safetensors"
    count = record_states(
        GAMES, None, watched, path, num_states=20, seed=0, vectorization=vectorization
    )
    assert count == 32  # a multiple of 16 envs
    obs, mask = read_states(path, GAMES)
    assert torch.equal(obs, torch.cat([o for o, _ in seen]))
    assert torch.equal(mask, torch.cat([m for _, m in seen]))
    assert mask.any(-1).all()


class Remembers:
    """A random policy that counts how often it acted in each row since it was told to forget."""

    def __init__(self):
        self.policy, self.ages, self.told = random_policy(0), None, 0

    def __call__(self, obs, action_mask):
        self.ages = torch.zeros(len(obs)) if self.ages is None else self.ages + 1
        self.told += 1
        return self.policy(obs, action_mask)

    def forget(self, rows=None):
        if rows is None:
            self.ages = None
        else:
            self.ages[rows] = -1


def test_a_policy_that_remembers_forgets_where_episodes_end(tmp_path):
    games = (Game(env_id=playing.env_id("TMaze"), env_kwargs={"corridor_length": 3}),)
    policy = Remembers()
    policy.ages = torch.full((16,), 1000.0)
    path = tmp_path / "seen.safetensors"
    record_states(games, None, policy, path, num_states=16 * 40, seed=0, vectorization="native")
    obs, _ = read_states(path, games)
    starts = obs.view(40, 16, -1)[..., 0]  # 1 at the start of the corridor
    assert policy.told == 40 and 0 <= policy.ages.max() < 40
    assert (starts[-1][policy.ages == 0] == 1).all() and (policy.ages == 0).any()
    policy.ages = torch.full((1,), 1000.0)
    record_video(games, None, policy, tmp_path / "one.gif", seed=1)
    assert policy.ages.max() < 200


def test_files_that_are_no_recorded_states_are_named(tmp_path):
    path = tmp_path / "states.safetensors"
    with pytest.raises(RecordedError, match="cannot be read"):
        read_states(path, GAMES)
    record_states(GAMES, None, random_policy(0), path, num_states=1, seed=0)
    with pytest.raises(RecordedError, match="the config's games are others"):
        read_states(path, GAMES[:1])
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RecordedError, match="cannot be read"):
        read_states(path, GAMES)
