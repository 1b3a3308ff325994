from dataclasses import replace

import pytest
import torch
from envs_for_tests import assert_same_steps, counter_mask, env_id, play
from gymnasium import spaces

from rlmask.ops import InvalidActionError
from rlmask.vector import Game, JointVector, SpaceError, make_vector

IDS = (0, 1, 2)
GAMES = (
    Game(env_id=env_id("CountersWithState"), action_ids=IDS),
    Game(env_id=env_id("CountersWithState"), action_ids=IDS, mask_source="info"),
    Game(env_id=env_id("Counters"), env_kwargs={"where": "method"}, action_ids=IDS),
)
SEED = 4


def make(games=GAMES, num_envs=12, stream=0):
    return make_vector(games, num_envs, SEED, vectorization="native", stream=stream)


def test_env_i_plays_game_i_modulo_their_number():
    joint = make()
    assert isinstance(joint, JointVector)
    assert joint.num_envs == 12
    assert [game.env_id for game in joint.spec.games] == [game.env_id for game in GAMES]
    assert [game.mask_source for game in joint.spec.games] == ["info", "info", "method"]
    obs, mask = joint.reset()
    lone = make((GAMES[0],), 4)
    lone_obs, lone_mask = lone.reset()
    assert torch.equal(obs[::3], lone_obs) and torch.equal(mask[::3], lone_mask)
    actions, steps = play(joint, mask, 40)
    episodes = 0
    for action, step in zip(actions, steps, strict=True):
        assert torch.equal(step.ended, (step.terminated | step.truncated).nonzero()[:, 0])
        successor = obs + torch.tensor([0, 1])  # same tag, next t
        assert torch.equal(step.reward, successor[:, 1])
        assert torch.equal(step.final_obs, successor[step.ended])
        assert step.action_valid.tolist() == [True] * 12
        expected = [counter_mask(int(t), 3).tolist() for t in step.final_obs[:, 1]]
        assert step.final_action_mask.tolist() == expected
        assert [episode.game for episode in step.episodes] == [i % 3 for i in step.ended.tolist()]
        assert [e.episode_length for e in step.episodes] == step.final_obs[:, 1].tolist()
        own = lone.step(action[::3])
        assert torch.equal(step.obs[::3], own.obs)
        assert torch.equal(step.action_mask[::3], own.action_mask)
        assert [e for e in step.episodes if e.game == 0] == own.episodes
        obs, episodes = step.obs, episodes + len(step.episodes)
    assert episodes > 50


def test_copies_of_one_game_have_seeds_of_their_own():
    first, second = make((GAMES[0],), 2), make((GAMES[0], GAMES[0]), 4)
    obs, _ = second.reset()
    assert torch.equal(first.reset()[0], obs[::2])
    assert not torch.equal(obs[::2], obs[1::2])


def test_it_comes_back_to_a_captured_state():
    joint, twin = make(GAMES[:2], 8), make(GAMES[:2], 8, stream=1)
    play(joint, joint.reset()[1], 11)
    state = joint.capture()
    _, steps = play(joint, torch.stack(masks_now(joint)), 20, seed=1)
    _, mask = twin.restore(state)
    assert_same_steps(play(twin, mask, 20, seed=1)[1], steps)


def masks_now(joint):
    """The masks of two games' envs, in turn."""
    parts = [torch.from_numpy(vector._masks) for vector in joint._vectors]
    return [mask for pair in zip(*parts, strict=True) for mask in pair]


@pytest.mark.parametrize(
    "other",
    [
        Game(env_id=env_id("NativeSpaces"), action_ids=IDS),  # discrete
        Game(
            env_id=env_id("NativeSpaces"),
            env_kwargs={"observation": spaces.Box(0, 1, (3,))},
            action_ids=IDS,
        ),
        Game(
            env_id=env_id("NativeSpaces"),
            env_kwargs={"observation": spaces.Box(-9, 9, (2,)), "action": spaces.Discrete(4)},
            action_ids=(0, 1, 2, 3),
        ),
    ],
)
def test_other_spaces_are_refused(other):
    with pytest.raises(SpaceError, match=r"CountersWithState.* and .*NativeSpaces.* `sync`"):
        make((GAMES[0], other), 4)
    if other.env_kwargs == {}:
        with pytest.raises(SpaceError, match="do not share"):
            make((other, replace(other)), 4)


def test_action_ids_are_needed():
    """That two games have the same number of actions does not make them the same."""
    with pytest.raises(SpaceError, match=r"CountersWithState.* action_ids 0 to 2"):
        make((replace(GAMES[0], action_ids=None),) * 2, 4)


def test_an_invalid_action_moves_no_game():
    joint = make(GAMES[:2], 6)
    _, mask = joint.reset()
    while mask[5].all():
        step = play(joint, mask, 1)[1][0]
        obs, mask = step.obs, step.action_mask
    action = mask.int().argmax(1)
    action[5] = int(mask[5].int().argmin())
    with pytest.raises(InvalidActionError, match=r"env 5.* action \[?\d"):
        joint.step(action)
    action[5] = int(mask[5].int().argmax())
    assert torch.equal(joint.step(action).reward, obs[:, 1] + 1)  # none has moved before


def test_an_even_share_is_needed():
    with pytest.raises(ValueError, match="multiple of 3"):
        make(GAMES, 4)
