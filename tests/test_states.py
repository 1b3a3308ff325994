import pytest
import torch

from rlmask.states import CHUNK_BYTES, Labelled, StateBuffer, StatesError
from rlmask.types import ObsSpec

SPEC = ObsSpec(kind="image", shape=(2, 2, 1), dtype="uint8")


def rows(first, count, num_games=2, num_features=1):
    """Return `count` states of each game; all that is known of a state tells its time and game."""
    time = torch.arange(first, first + count).repeat_interleave(num_games)
    game = torch.arange(num_games).repeat(count)
    return Labelled(
        obs=(time * num_games + game).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 2, 2, 1),
        action_mask=torch.stack([game == 0, game == 1, time % 2 == 0], 1),
        scores=torch.stack([time, game, -time], 1).float(),
        features=game.float().view(-1, 1).expand(-1, num_features),
    )


def buffer(capacity=8, num_games=2, num_features=1, obs=SPEC):
    return StateBuffer(num_games, capacity, obs, 3, num_features, seed=0)


def times_and_games(states, num_games=2):
    value = states.obs[:, 0, 0, 0].long()
    return value // num_games, value % num_games


def test_it_keeps_the_newest_states_of_each_game_with_all_that_belongs_to_them():
    states = buffer(capacity=8)
    for first in range(0, 21, 3):
        states.add(rows(first, 3))
    assert len(states) == 8
    drawn = states.sample(512)
    time, game = times_and_games(drawn)
    assert set(time.tolist()) == set(range(13, 21))
    assert (game == torch.arange(2).repeat(256)).all()  # equal shares, in turn
    expected = rows(0, 21)
    index = time * 2 + game
    for name in ("action_mask", "scores", "features"):
        assert (getattr(drawn, name) == getattr(expected, name)[index]).all()


def test_draws_are_uniform_over_what_is_there():
    states = buffer(capacity=8)
    states.add(rows(0, 5))
    time, _ = times_and_games(states.sample(10_000))
    counts = torch.bincount(time, minlength=8)
    assert counts[5:].sum() == 0
    # 2000 expected of each, standard deviation 40
    assert ((counts[:5] - 2000).abs() < 200).all()


def test_nothing_to_draw_and_too_much_to_add_are_errors():
    states = buffer(capacity=4)
    with pytest.raises(StatesError, match="empty"):
        states.sample(2)
    with pytest.raises(StatesError, match="replay_capacity"):
        states.add(rows(0, 5))
    with pytest.raises(StatesError, match="do not fit"):
        states.add(Labelled(**{name: x[:3] for name, x in vars(rows(0, 2)).items()}))


def test_a_restored_buffer_goes_on_in_the_same_way(tmp_path):
    # rows of 2 MB: several chunks, of which a full ring rewrites some
    obs = ObsSpec(kind="image", shape=(1024, 1024, 1), dtype="uint8")
    assert CHUNK_BYTES // (2 * 2**20) < 8

    def large(first, count):
        states = rows(first, count)
        big = states.obs[:, :1, :1].expand(-1, 1024, 1024, 1)
        return Labelled(**{**vars(states), "obs": big})

    states = buffer(capacity=8, obs=obs)
    states.add(large(0, 5))
    early = {name: chunk.version for name, chunk in states.capture()["chunks"].items()}
    states.add(large(5, 6))
    captured = states.capture()
    assert any(chunk.version != early.get(n) for n, chunk in captured["chunks"].items())
    other = buffer(capacity=8, obs=obs)
    other.restore(captured)
    for _ in range(2):
        mine, theirs = states.sample(16), other.sample(16)
        assert all((getattr(mine, n) == getattr(theirs, n)).all() for n in vars(mine))
        states.add(large(11, 1))
        other.add(large(11, 1))
    with pytest.raises(StatesError, match="capacity"):
        buffer(capacity=4, obs=obs).restore(captured)
