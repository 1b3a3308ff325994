import numpy as np
import pytest
import torch
from envs_for_tests import assert_same_steps, counter_mask, env_id, play
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from rlmask.ops import InvalidActionError
from rlmask.types import ActionSpec, ObsSpec
from rlmask.vector import (
    Game,
    MaskedEnv,
    MaskError,
    ReplayWarning,
    SpaceError,
    game_names,
    join,
    make_vector,
)

SEED = 2


def game(name, action_ids=None, **env_kwargs):
    return Game(env_id=env_id(name), env_kwargs=env_kwargs, action_ids=action_ids)


# Corridor's actions are left, right, stay. None of the games has the first actions of the union.
CORRIDORS = (
    game("Corridor", (4, 1, 2), length=4, wind=0.2),
    game("Corridor", (0, 5, 3), length=6, wind=0.2, start=3, where="obs"),
    game("Corridor", (6, 2, 1), length=5, wind=0.2, obs_start=2, where="method"),
)
ROWS = ((0, 4), (4, 10), (10, 15))
COUNTERS = (
    game("Counter", (3, 1), size=2, num_actions=2),
    game("Counter", (5, 4, 0, 2), size=4, num_actions=4, last=3),
    game("Counter", (1, 2, 3), size=3, where="method"),
)
GRIDS = (
    game("Grid", (3, 2, 1, 0), height=3, width=4, channels=2),
    game("Grid", (4, 5, 6, 7), height=5, width=3, channels=1, channels_first=True, where="obs"),
)


def to_local(action_ids, action):
    return action_ids.index(action)


def test_games_of_one_id_are_named_by_what_differs():
    pong, breakout = (game("Atari", game=name, skip=4) for name in ("pong", "breakout"))
    other = game("Corridor")
    names = game_names((pong, other, breakout))
    assert names == [env_id("Atari") + "-pong", env_id("Corridor"), env_id("Atari") + "-breakout"]
    assert game_names((pong, pong)) == [env_id("Atari") + "-0", env_id("Atari") + "-1"]
    long = game("Atari", game="x" * 50, skip=4)
    assert game_names((pong, long)) == [env_id("Atari") + "-pong", env_id("Atari") + "-1"]
    numbered = game("Atari", game="0"), game("Atari", game="z" * 50), game("Atari", game="1")
    assert len(set(game_names(numbered))) == 3


def test_discrete_games_have_rows_of_their_own():
    spec = join(CORRIDORS)
    assert spec.obs == ObsSpec(kind="discrete", shape=(), dtype="int64", n=4 + 6 + 5)
    assert spec.obs_offsets == (0, 4, 10)
    vector = make_vector(CORRIDORS, 6, SEED)
    obs, mask = vector.reset()
    seen = [obs, *(step.obs for step in play(vector, mask, 200)[1])]
    for index in range(6):
        start, end = ROWS[index % 3]
        of_env = {int(o[index]) for o in seen}
        assert of_env == set(range(start, end - 1))  # the goal is seen in final_obs only


def test_the_rows_of_final_observations_are_the_goals():
    vector = make_vector(CORRIDORS, 6, SEED)
    _, mask = vector.reset()
    steps = [step for step in play(vector, mask, 200)[1] if len(step.ended)]
    games = [index % 3 for step in steps for index in step.ended.tolist()]
    assert set(games) == {0, 1, 2}
    assert torch.cat([step.final_obs for step in steps]).tolist() == [ROWS[g][1] - 1 for g in games]
    assert [episode.game for step in steps for episode in step.episodes] == games


@pytest.mark.parametrize("games", [CORRIDORS, COUNTERS, GRIDS], ids=["rows", "vectors", "images"])
def test_foreign_actions_are_always_masked(games):
    vector = make_vector(games, 2 * len(games), SEED)
    num_actions = vector.spec.action.num_actions
    assert num_actions == 1 + max(i for g in games for i in g.action_ids)
    _, mask = vector.reset()
    steps = play(vector, mask, 100)[1]
    for index in range(vector.num_envs):
        ids = set(games[index % len(games)].action_ids)
        foreign = sorted(set(range(num_actions)) - ids)
        masks = torch.stack([mask[index], *(step.action_mask[index] for step in steps)])
        assert not masks[:, foreign].any()
        assert masks[:, sorted(ids)].any(0).all()
    for step in steps:
        for row, index in enumerate(step.ended.tolist()):
            ids = set(games[index % len(games)].action_ids)
            assert set(step.final_action_mask[row].nonzero()[:, 0].tolist()) <= ids


def assert_plays_as_alone(games, index, num_actions, num_steps):
    """A sub-env of the union is that game alone, with its actions and observations moved."""
    ids = games[index % len(games)].action_ids
    alone = Game(
        env_id=games[index % len(games)].env_id, env_kwargs=games[index % len(games)].env_kwargs
    )
    spec = join(games, num_actions)
    union = MaskedEnv(spec, index=index, seed=SEED)
    local = MaskedEnv(join((alone,)), index=index, seed=SEED)
    offset = spec.obs_offsets[index % len(games)]
    rng = np.random.default_rng(0)

    def assert_same_state(obs, mask, its_obs, its_mask):
        assert [mask[i] for i in ids] == list(its_mask)
        assert sum(mask) == sum(its_mask)
        if spec.obs.kind == "discrete":
            assert obs == its_obs + offset
            return
        padded = np.zeros(spec.obs.shape, spec.obs.dtype)
        padded[tuple(slice(n) for n in its_obs.shape)] = its_obs
        assert np.array_equal(obs, padded)

    (obs, mask), (its_obs, its_mask) = union.reset(), local.reset()
    assert_same_state(obs, mask, its_obs, its_mask)
    for _ in range(num_steps):
        action = int(rng.choice(np.flatnonzero(list(mask))))
        obs, mask, *facts, end = union.step(action)
        its_obs, its_mask, *its_facts, its_end = local.step(to_local(ids, action))
        assert facts == its_facts
        assert_same_state(obs, mask, its_obs, its_mask)
        assert (end is None) == (its_end is None)
        if end is not None:
            assert_same_state(end.obs, end.mask, its_end.obs, its_end.mask)
            assert end.episode.episode_return == its_end.episode.episode_return
            assert end.episode.episode_length == its_end.episode.episode_length


@pytest.mark.parametrize("games", [CORRIDORS, COUNTERS, GRIDS], ids=["rows", "vectors", "images"])
@pytest.mark.parametrize("index", range(6))
def test_a_game_in_the_union_is_the_game_alone(games, index):
    assert_plays_as_alone(games, index, None, 60)


@settings(max_examples=25)
@given(
    st.permutations(range(9)).map(lambda ids: tuple(ids[:3])),
    st.permutations(range(9)).map(lambda ids: tuple(ids[:4])),
    st.integers(0, 1),
)
def test_it_is_so_for_all_action_ids(three, four, index):
    games = (game("Counter", three), game("Counter", four, num_actions=4))
    assert_plays_as_alone(games, index, 9, 8)


def test_the_smaller_vectors_are_padded_with_zeros():
    vector = make_vector(COUNTERS, 3, SEED)
    assert vector.spec.obs == ObsSpec(kind="vector", shape=(4,), dtype="float32")
    _, mask = vector.reset()
    for t, step in enumerate(play(vector, mask, 2)[1], start=1):
        assert step.obs[:, 1:].tolist() == [[t, 0, 0], [t, t, t], [t, t, 0]]
        assert (step.obs[:, 0] > 0).all()
        for index, one in enumerate(COUNTERS):
            valid = counter_mask(t, len(one.action_ids))
            expected = {a for a, v in zip(one.action_ids, valid, strict=True) if v}
            assert set(step.action_mask[index].nonzero()[:, 0].tolist()) == expected


def test_the_smaller_images_are_padded_with_zeros():
    vector = make_vector(GRIDS, 2, SEED)
    assert vector.spec.obs == ObsSpec(kind="image", shape=(5, 4, 2), dtype="uint8")
    obs, _ = vector.reset()
    for image, (height, width, channels) in zip(obs, [(3, 4, 2), (5, 3, 1)], strict=True):
        inside = image[:height, :width, :channels]
        assert int(inside[..., 0].max()) == 255
        assert image.sum() == inside.sum()


def test_the_union_may_be_larger_than_the_games_need():
    spec = join(CORRIDORS, 12)
    assert spec.action == ActionSpec(nvec=(12,))
    _, mask = MaskedEnv(spec, index=0, seed=SEED).reset()
    assert len(mask) == 12


@pytest.mark.parametrize("enforce", [True, False])
@pytest.mark.parametrize("action", [0, 3, 5, 6, 7, -1])
def test_a_foreign_action_is_always_an_error(action, enforce):
    env = MaskedEnv(join(CORRIDORS), index=0, seed=SEED, enforce=enforce)
    env.reset()
    with pytest.raises(InvalidActionError, match=f"Corridor-v0, env 0, .*action {action} "):
        env.step(action)


def test_one_game_may_be_part_of_a_larger_union():
    one = game("Counter", (4, 0, 2))
    vector = make_vector((one,), 2, SEED, num_actions=6)
    assert vector.reset()[1].tolist() == [[True, False, True, False, True, False]] * 2
    step = vector.step(torch.tensor([4, 4]))  # at t = 1 only its first action is valid
    assert step.action_mask.tolist() == [[False, False, False, False, True, False]] * 2


def test_an_env_without_a_mask_has_its_own_actions_in_the_union():
    vector = make_vector((game("Counter", (4, 0, 2), where="none"),), 1, SEED, num_actions=6)
    _, mask = vector.reset()
    for step in play(vector, mask, 12)[1]:
        assert step.action_mask.tolist() == [[True, False, True, False, True, False]]
        for final in step.final_action_mask:
            assert final.tolist() == [True, False, True, False, True, False]


@pytest.mark.parametrize(
    "action_ids",
    [None, (), (0, 1), (0, 1, 2, 3), (0, 1, 1), (-1, 0, 1), (0, 1, 9)],
    ids=str,
)
def test_wrong_action_ids_are_an_error(action_ids):
    games = (CORRIDORS[0], game("Corridor", action_ids, length=7))
    with pytest.raises(SpaceError, match=r"Corridor-v0.* action_ids"):
        make_vector(games, 2, SEED, num_actions=9)


@pytest.mark.parametrize("action_ids", [(0, 1, 1), (-1, 0, 1), (0, 1)])
def test_they_are_so_for_a_single_game_and_no_given_size(action_ids):
    with pytest.raises(SpaceError, match=r"Corridor-v0.* action_ids"):
        make_vector((game("Corridor", action_ids),), 2, SEED)


@pytest.mark.parametrize("num_actions", [2, 4])
def test_another_size_needs_action_ids(num_actions):
    with pytest.raises(SpaceError, match=r"Corridor-v0 has 3 actions.* action_ids"):
        make_vector((game("Corridor"),), 2, SEED, num_actions=num_actions)
    assert make_vector((game("Corridor"),), 2, SEED, num_actions=3).spec.action.num_actions == 3


def test_several_parts_cannot_be_part_of_a_union():
    with pytest.raises(SpaceError, match="Target-v0: only Discrete"):
        make_vector((game("Target", tuple(range(9))),), 2, SEED)


FLOAT_PLANES = spaces.Box(0, 1, (3, 4, 2), np.float32)
MIXED = {
    "rows and vectors": (CORRIDORS[0], COUNTERS[0]),
    "vectors and images": (COUNTERS[0], GRIDS[0]),
    "images and rows": (GRIDS[0], CORRIDORS[0]),
    "bytes and floats": (GRIDS[0], game("Spaces", (0, 1, 2), observation=FLOAT_PLANES)),
}


@pytest.mark.parametrize("kind", MIXED)
def test_mixed_observations_are_an_error_that_names_both_games(kind):
    first, second = MIXED[kind]
    with pytest.raises(SpaceError) as caught:
        make_vector((first, second), 2, SEED)
    assert first.env_id in str(caught.value)
    assert second.env_id in str(caught.value)


@pytest.mark.parametrize("num_envs", [1, 2, 4, 7])
def test_every_game_needs_the_same_share_of_the_envs(num_envs):
    with pytest.raises(ValueError, match=f"num_envs is {num_envs}.* multiple of 3"):
        make_vector(CORRIDORS, num_envs, SEED)


def test_a_faulty_mask_names_the_game_that_it_is_of():
    games = (COUNTERS[0], game("Malformed", (5, 6, 7, 8), fault="two", at=1))
    vector = make_vector(games, 4, SEED)
    vector.reset()
    with pytest.raises(MaskError, match="Malformed-v0, env 1, episode 1, step 1: "):
        vector.step(torch.tensor([3, 5, 3, 5]))


def test_a_game_that_ignores_its_seed_is_the_one_that_is_warned_of():
    size_4 = game("Counter", (0, 1, 2), size=4)
    games = (size_4, game("NonDeterministic", tuple(range(64)), what="obs"))
    vector = make_vector(games, 4, SEED)
    vector.reset()
    with pytest.warns(ReplayWarning, match=r"NonDeterministic-v0: .* 2 of 4 .*first: env 1\)") as w:
        make_vector(games, 4, SEED).restore(vector.capture())
    assert "Counter-v0" not in str(w[0].message)


@pytest.mark.parametrize("games", [CORRIDORS, COUNTERS, GRIDS], ids=["rows", "vectors", "images"])
def test_a_restored_run_goes_on_to_the_last_bit(games):
    vector, twin = (make_vector(games, 2 * len(games), SEED) for _ in range(2))
    mask = play(vector, vector.reset()[1], 13)[1][-1].action_mask
    assert torch.equal(twin.restore(vector.capture())[1], mask)
    expected, found = (play(v, mask, 100, seed=1) for v in (vector, twin))
    assert {e.game for step in expected[1] for e in step.episodes} == set(range(len(games)))
    assert_close(found[0], expected[0], rtol=0, atol=0)
    assert_same_steps(found[1], expected[1])


@pytest.mark.slow
@pytest.mark.parametrize("games", [CORRIDORS, GRIDS], ids=["rows", "images"])
def test_sync_and_async_are_equal_to_the_last_bit(games):
    runs = []
    for kind in ("sync", "async"):
        vector = make_vector(games, len(games), SEED, vectorization=kind)
        obs, mask = vector.reset()
        runs.append((obs, mask, *play(vector, mask, 100)))
        vector.close()
    (*expected, steps), (*found, its_steps) = runs
    assert_close(found, expected, rtol=0, atol=0)
    assert {e.game for step in steps for e in step.episodes} == set(range(len(games)))
    assert_same_steps(its_steps, steps)
