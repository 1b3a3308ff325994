import pytest
import torch

from rlmask.joint_replay import JointReplay, seeds_of
from rlmask.replay import Replay, ReplayError
from rlmask.types import ObsSpec

SPEC = ObsSpec(kind="vector", shape=(2,), dtype="float32")
NUM_GAMES, NUM_ENVS = 3, 6


def make(prioritized=False, seed=0):
    each = [
        Replay(2, 40, SPEC, 4, prioritized=prioritized, seed=own)
        for own in seeds_of(seed, NUM_GAMES)
    ]
    return JointReplay(each)


def fill(replay, steps=7, first=0):
    """Obs is (env, time); an episode of env i ends every i + 2 steps; the reward is the game."""
    env = torch.arange(NUM_ENVS)

    def obs(t):
        return torch.stack([env.float(), torch.full((NUM_ENVS,), float(t))], 1)

    mask = torch.ones(NUM_ENVS, 4, dtype=torch.bool)
    if not first:
        replay.start(obs(0), mask)
    for t in range(first + 1, first + steps + 1):
        ended = (t % (env + 2) == 0).nonzero().flatten()
        final = obs(t)[ended] + 0.5
        terminated = torch.zeros(NUM_ENVS, dtype=torch.bool)
        terminated[ended] = True
        reward = (env % NUM_GAMES).float()
        replay.add(env % 4, reward, terminated, obs(t), mask, ended, final, mask[ended])


@pytest.mark.parametrize("prioritized", [False, True])
def test_batches_have_an_equal_share_of_each_game_in_turn(prioritized):
    replay = make(prioritized)
    fill(replay)
    assert len(replay) == NUM_ENVS * 7
    drawn, index, weight = replay.sample(9, num_batches=4, gamma=0.9)
    assert len(drawn.obs) == len(index) == len(weight) == 36
    game = torch.arange(36) % NUM_GAMES
    assert (drawn.obs[:, 0].long() % NUM_GAMES == game).all()
    assert (drawn.reward == game).all()
    assert (drawn.next_obs[:, 0] // 1 % NUM_GAMES == game).all()
    ended = drawn.discount == 0
    assert ended.any()
    # the successor of a last step is its own final observation, half a step on
    assert (drawn.next_obs[:, 1] - drawn.obs[:, 1] == torch.where(ended, 1.5, 1.0)).all()
    with pytest.raises(ReplayError, match="multiple of 3"):
        replay.sample(10, gamma=0.9)


def test_priorities_go_to_the_buffer_of_their_game():
    replay = make(prioritized=True)
    fill(replay)
    _, index, _ = replay.sample(300, gamma=0.9)
    replay.update_priorities(index, torch.zeros(300))
    drawn, index, _ = replay.sample(3, gamma=0.9)
    chosen = drawn.obs.clone()
    replay.update_priorities(index, torch.full((3,), 1e9))
    again, _, _ = replay.sample(60, gamma=0.9)
    assert (again.obs == chosen.repeat(20, 1)).all()


def test_a_restored_buffer_goes_on_in_the_same_way():
    replay, other = make(seed=1), make(seed=2)
    fill(replay)
    other.restore(replay.capture())
    for first in (7, 9):
        mine, theirs = (r.sample(9, gamma=0.9)[0] for r in (replay, other))
        assert torch.equal(mine.obs, theirs.obs)
        fill(replay, 2, first)
        fill(other, 2, first)
