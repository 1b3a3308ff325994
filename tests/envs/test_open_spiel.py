import importlib.abc
import sys
from collections import Counter
from functools import partial

import gymnasium as gym
import numpy as np
import pytest

from rlmask.vector import EnvError, Game, check_env, make_vector
from rlmask.vector.spaces import make_env
from rlmask_envs.actions import InvalidActionError
from rlmask_envs.open_spiel import OpenSpielEnv, draw
from rlmask_envs.opponents import OpponentError, random_action
from rlmask_envs.text_picture import text_picture

pyspiel = pytest.importorskip("pyspiel", reason="needs the extra `games`")

ENV_ID = "rlmask-tests/OpenSpiel-v0"
if ENV_ID not in gym.registry:
    gym.register(ENV_ID, "rlmask_envs.open_spiel:OpenSpielEnv")

GAMES = {  # and how many steps of it are played
    "tic_tac_toe": 1000,
    "connect_four": 1000,
    "backgammon": 1000,
    "leduc_poker": 1000,
    "kuhn_poker": 1000,
    "2048": 1000,
    "go(board_size=5)": 1000,
    "dots_and_boxes": 1000,  # who closes a box moves again
    "solitaire": 300,
    "hearts": 300,  # four players
    "hanabi": 1000,  # points are given on the way, also before a seat's first turn
    "universal_poker(blind=50 100)": 1000,  # may end before a seat's first turn
    "matching_pennies_3p": 300,  # simultaneous moves
    "goofspiel": 300,
}
FOLD, CALL = 0, 1  # in poker
WITH_BLINDS = "universal_poker(blind=50 100)"  # so that the first player may fold at once


def first_valid(obs, mask, rng):
    return int(mask.argmax())


def invalid_action(obs, mask, rng):
    return int(mask.argmin())


def play(env, num_steps, seed=0):
    """Take random valid actions; yield (action, obs, reward, terminated, info), also of resets."""
    rng = np.random.default_rng(seed)
    obs, info = env.reset(seed=seed)
    yield None, obs, 0.0, False, info
    for _ in range(num_steps):
        action = random_action(obs, info["action_mask"], rng)
        obs, reward, terminated, truncated, info = env.step(action)
        assert not truncated
        yield action, obs, reward, terminated, info
        if terminated:
            obs, info = env.reset()
            yield None, obs, 0.0, False, info


def turn_based(name):
    game = pyspiel.load_game(name)
    is_simultaneous = game.get_type().dynamics == pyspiel.GameType.Dynamics.SIMULTANEOUS
    return pyspiel.convert_to_turn_based(game) if is_simultaneous else game


def tensor(game, state, player):
    has_observation = game.get_type().provides_observation_tensor
    read = state.observation_tensor if has_observation else state.information_state_tensor
    return np.array(read(player), np.float32)


@pytest.mark.parametrize("name", GAMES)
def test_a_game_is_openspiels_own(name):
    """Play it again in OpenSpiel, with legality checks, and compare all that the env has said."""
    env = OpenSpielEnv(name)
    game = turn_based(name)
    assert env.action_space.n == game.num_distinct_actions()
    seats, masks, total, state = Counter(), [], 0.0, game.new_initial_state()
    for action, obs, reward, terminated, info in play(env, GAMES[name]):
        if action is None:
            state, total = game.new_initial_state(), 0.0
            seats[env.player] += 1
        applied = env.state.history()[len(state.history()) :]
        for index, move in enumerate(applied):
            is_agents = state.current_player() == env.player
            assert is_agents == (action is not None and index == 0)
            if is_agents:
                assert move == action
            state.apply_action_with_legality_check(move)
        assert str(state) == str(env.state)
        total += reward
        assert total == pytest.approx(0.0 if action is None else state.returns()[env.player])
        assert terminated == state.is_terminal()
        mask = info["action_mask"]
        assert mask.dtype == np.int8 and mask.shape == (env.action_space.n,)
        if terminated:
            assert not mask.any()
        else:
            assert state.current_player() == env.player
            assert mask.tolist() == state.legal_actions_mask(env.player)
        assert obs in env.observation_space
        np.testing.assert_array_equal(obs.ravel(), tensor(game, state, env.player))
        masks.append((mask, mask.copy()))
    assert set(seats) == set(range(game.num_players()))
    assert all(np.array_equal(mask, copy) for mask, copy in masks)  # nobody has written on them


def trace(env, num_steps=300, seed=0):
    return [
        (action, obs.tolist(), reward, terminated, info["action_mask"].tolist())
        for action, obs, reward, terminated, info in play(env, num_steps, seed)
    ]


WITHIN = "misere(game=negotiation())"  # which draws for itself, and is what gets the seed
WITHIN_TWICE = f"zerosum(game={WITHIN})"


@pytest.mark.parametrize(
    "name", ["connect_four", "leduc_poker", "2048", "negotiation", WITHIN, WITHIN_TWICE]
)
def test_the_seed_decides_everything(name):
    env = OpenSpielEnv(name)
    first = trace(env)
    assert trace(OpenSpielEnv(name)) == first
    assert trace(env) == first  # whatever was played before
    assert trace(env, seed=1) != first


@pytest.mark.parametrize("name", ["negotiation", WITHIN, WITHIN_TWICE])
def test_a_game_that_draws_for_itself_draws_anew(name):
    env = OpenSpielEnv(name, seat=0)  # what is to be shared, and what it is worth
    starts = [env.reset(seed=0 if episode == 0 else None)[0] for episode in range(5)]
    assert len({start.tobytes() for start in starts}) > 1
    np.testing.assert_array_equal(env.reset(seed=0)[0], starts[0])
    plain = OpenSpielEnv("negotiation", seat=0)
    np.testing.assert_array_equal(plain.reset(seed=0)[0], starts[0])


def test_yaml_reads_a_name_of_digits_as_a_number():
    env = OpenSpielEnv(2048)
    assert trace(env, 20) == trace(OpenSpielEnv("2048"), 20)


@pytest.mark.parametrize("seat", [0, 1])
def test_a_seat_can_be_chosen(seat):
    env = OpenSpielEnv("tic_tac_toe", seat=seat)
    for action, *_ in play(env, 100):
        assert env.player == seat
        if action is None:
            assert len(env.state.history()) == seat  # crosses begin


def test_random_against_random_is_worth_what_theory_says():
    # Kuhn poker, both players bet or fold at random: see the tree of Kuhn (1950). The first player
    # bets (1/2): the other folds (1/2, +1) or calls (1/2, +-2 by cards: 0 on average): 1/2.
    # Passes (1/2): the other passes (1/2: 0 on average) or bets (1/2): the first folds (1/2, -1)
    # or calls (0 on average): -1/4. In all 1/2 * 1/2 - 1/2 * 1/4 = 1/8.
    env, returns, total = OpenSpielEnv("kuhn_poker", seat=0), [], 0.0
    for _, _, reward, terminated, _ in play(env, 8000):
        total += reward
        if terminated:
            returns.append(total)
            total = 0.0
    error = np.std(returns) / len(returns) ** 0.5
    assert abs(np.mean(returns) - 1 / 8) < 4 * error


def test_random_is_the_random_opponent():
    by_function = OpenSpielEnv("backgammon", opponent=partial(random_action))
    assert trace(by_function) == trace(OpenSpielEnv("backgammon"))


@pytest.mark.parametrize(
    ("name", "num_steps"), [("backgammon", 800), ("leduc_poker", 800), ("hearts", 200)]
)
def test_an_opponent_is_shown_its_own_side(name, num_steps):
    game, asked = pyspiel.load_game(name), Counter()

    def opponent(obs, mask, rng):
        state = env.state
        player = state.current_player()
        assert player >= 0 and player != env.player
        assert rng is env.np_random
        assert mask.dtype == np.int8 and mask.tolist() == state.legal_actions_mask(player)
        assert obs in env.observation_space
        np.testing.assert_array_equal(obs.ravel(), tensor(game, state, player))
        asked[player] += 1
        action = random_action(obs, mask, rng)
        mask[:] = 1  # it may do with its mask what it likes
        return np.int64(action)

    env = OpenSpielEnv(name, opponent=opponent)
    for _ in play(env, num_steps):
        pass
    assert set(asked) == set(range(game.num_players()))


def test_an_opponent_may_be_named():
    env = OpenSpielEnv("tic_tac_toe", seat=0, opponent=f"{__name__}:first_valid")
    env.reset(seed=0)
    env.step(4)
    env.step(8)
    assert env.state.history() == [4, 0, 8, 1]


def self_righteous(obs, mask, rng):
    action = int(mask.argmin())
    mask[:] = 1
    return action


@pytest.mark.parametrize(
    ("opponent", "name"),
    [
        (self_righteous, "self_righteous"),
        (invalid_action, f"{__name__}:invalid_action"),
        (f"{__name__}:invalid_action", f"{__name__}:invalid_action"),
        (lambda obs, mask, rng: None, "<lambda>"),
        (lambda obs, mask, rng: -1, "<lambda>"),
        (partial(invalid_action), "functools.partial"),
    ],
)
def test_an_opponent_that_breaks_the_rules_is_named(opponent, name):
    env = OpenSpielEnv("tic_tac_toe", seat=0, opponent=opponent)
    env.reset(seed=0)
    with pytest.raises(OpponentError, match=name) as error:
        env.step(4)
    assert isinstance(error.value, gym.error.Error)  # which rlmask says in one line
    assert "for player 1 of tic_tac_toe" in str(error.value)
    assert "valid: 0, 1, 2, 3, 5, 6, 7, 8" in str(error.value)
    with pytest.raises(gym.error.ResetNeeded):  # the game cannot go on
        env.step(0)


@pytest.mark.parametrize("action", [FOLD, 3, -1, -2, -9, 1.0, None, "1", [1]])
def test_an_invalid_action_changes_nothing(action):
    env = OpenSpielEnv("leduc_poker", seat=0)
    env.reset(seed=0)  # nobody has raised, so that there is nothing to fold against
    before = env.state.history()
    with pytest.raises(InvalidActionError, match=r"leduc_poker: action .* is invalid; valid: 1, 2"):
        env.step(action)
    assert env.state.history() == before
    env.step(np.int64(CALL))


def test_the_mask_of_the_user_is_not_the_envs():
    env = OpenSpielEnv("leduc_poker", seat=0)
    _, info = env.reset(seed=0)
    info["action_mask"][:] = 1
    with pytest.raises(InvalidActionError):
        env.step(FOLD)


def test_an_ended_episode_needs_a_reset():
    env = OpenSpielEnv("kuhn_poker", render_mode="ansi")
    for use in (partial(env.step, 0), env.render):
        with pytest.raises(gym.error.ResetNeeded):
            use()
    for *_, terminated, _ in play(env, 10):
        if terminated:
            break
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)


def fold_often(obs, mask, rng):
    return FOLD if mask[FOLD] and rng.random() < 0.8 else CALL


def test_a_game_without_a_turn_is_left_out():
    env = OpenSpielEnv(WITH_BLINDS, seat=1, opponent=fold_often)
    for seed in range(20):
        _, info = env.reset(seed=seed)
        assert info["action_mask"].any() and env.state.current_player() == 1
        moves = [(move.player, move.action) for move in env.state.full_history()]
        assert [move for move in moves if move[0] >= 0] == [(0, CALL)]


def test_a_seat_that_never_has_a_turn_is_an_error():
    env = OpenSpielEnv(WITH_BLINDS, seat=1, opponent=first_valid)  # always folds
    message = r"universal_poker.*: seat 1 had no turn in 1,000 games"
    with pytest.raises(gym.error.Error, match=message):
        env.reset(seed=0)


def test_points_from_before_the_first_turn_count():
    # Hanabi: play cards at once, the first of which scores for both if it is a 1.
    play_first = 5  # discards are 0 to 4
    env = OpenSpielEnv("hanabi", seat=1, opponent=lambda obs, mask, rng: play_first)
    early = 0
    for seed in range(50):
        env.reset(seed=seed)
        before = env.state.returns()[1]
        _, reward, *_ = env.step(play_first)
        assert reward == env.state.returns()[1]
        early += before > 0
    assert early > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"game": "connect_fuor"}, "no game 'connect_fuor'; did you mean connect_four"),
        ({"game": "backgamon(x=1)"}, "did you mean backgammon"),
        ({"game": "zzz"}, "no game 'zzz'; it has 2048, .*\\.\\.\\."),
        ({"game": "misere(game=go_()"}, "cannot load 'misere.game=go_..': [^\n]*$"),
        ({"game": "go(board_siz=5)"}, "cannot load .*Unknown parameter 'board_siz'"),
        ({"game": "mfg_garnet"}, "mean_field dynamics"),
        ({"game": "morpion_solitaire"}, "no tensor to observe, only text"),
        ({"game": "crossword"}, "no tensor to observe"),
        ({"game": "restricted_nash_response(game=negotiation())"}, "takes no seed: Unknown.*'$"),
        ({"seat": 2}, "seat is 2; connect_four has 2 of them, the integers 0 to 1, and None"),
        ({"seat": -1}, "seat is -1"),
        ({"seat": 0.5}, "seat is 0.5; .* the integers 0 to 1"),
        ({"seat": 1.0}, "seat is 1.0"),
        ({"seat": True}, "seat is True"),
        ({"seat": "0"}, "seat is '0'"),
        ({"render_mode": "nonsense"}, "render_mode is 'nonsense'; it takes rgb_array or ansi"),
        ({"opponent": "best"}, "opponent is 'best'; it takes 'random', 'module:function'"),
        ({"opponent": None}, "opponent is None"),
        (
            {"opponent": "no_such_module:play"},
            "'no_such_module:play' cannot be loaded: No module named 'no_such_module'; its module "
            "has to be installed or on PYTHONPATH",
        ),
        ({"opponent": "math:no_such_function"}, "'math:no_such_function' cannot be loaded"),
        ({"opponent": "math:pi"}, "'math:pi' is not a function"),
        ({"opponent": ":play"}, "':play' cannot be loaded"),
        ({"opponent": ".near:play"}, "'.near:play' cannot be loaded"),
        ({"opponent": "math:"}, "'math:' cannot be loaded"),
    ],
)
def test_a_wrong_setting_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        OpenSpielEnv(**settings)


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyspiel", None)
    with pytest.raises(gym.error.DependencyNotInstalled):
        OpenSpielEnv()
    with pytest.raises(EnvError) as error:
        make_env(ENV_ID, {})
    assert str(error.value) == (
        f"{ENV_ID} needs a package that is not installed: no module named 'pyspiel'; "
        "pip install 'rlmask[games]'"
    )


def test_a_package_that_does_not_load_says_why(monkeypatch):
    """A module that is there is not said to be missing."""

    class Broken(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name == "pyspiel":
                raise ImportError("libfoo.so.1: cannot open shared object file", name=name)

    monkeypatch.delitem(sys.modules, "pyspiel")
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(gym.error.DependencyNotInstalled) as error:
        OpenSpielEnv()
    assert str(error.value) == (
        "libfoo.so.1: cannot open shared object file; pip install 'rlmask[games]'"
    )


def test_chance_follows_its_probabilities():
    class Fixed:
        def __init__(self, value):
            self.value = value

        def random(self):
            return self.value

    outcomes = [(7, 0.0), (3, 0.25), (5, 0.5), (1, 0.25 - 1e-12)]
    for value, outcome in [(0.0, 3), (0.2, 3), (0.26, 5), (0.74, 5), (0.76, 1)]:
        assert draw(outcomes, Fixed(value)) == outcome
    assert draw(outcomes, Fixed(1 - 1e-16)) == 5  # rounding: one that can be


def test_text_and_picture():
    env = OpenSpielEnv("connect_four", seat=0, opponent=first_valid, render_mode="ansi")
    env.reset(seed=0)
    env.step(3)
    assert env.render() == str(env.state)
    assert env.render().split() == [*["......."] * 5, "o..x..."]
    picture = OpenSpielEnv("connect_four", render_mode="rgb_array")
    picture.reset(seed=0)
    frame = picture.render()
    assert frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3
    assert OpenSpielEnv().render() is None


def test_a_picture_shows_every_letter():
    plain, unknown = text_picture("  "), text_picture("? ")
    for letter in "aZ0.|_#*=,()[]<>'~♠🂠":
        assert (text_picture(letter + " ") != plain).any()
        assert (text_picture(letter + " ") != unknown).any()
    assert (text_picture("§ ") == unknown).all() and (unknown != plain).any()
    assert (text_picture("x") != text_picture("o")).any()
    assert text_picture("").size and text_picture("a\n\nb").shape[0] > text_picture("a").shape[0]


def test_backgammon_keeps_the_mask_contract():
    game = Game(env_id=ENV_ID, env_kwargs={"game": "backgammon"})
    findings = check_env(game, 500, 0)
    assert findings
    assert not [finding for finding in findings if finding.level != "ok"]


def test_several_games_play_side_by_side():
    game = Game(env_id=ENV_ID, env_kwargs={"game": "leduc_poker"})
    vector = make_vector((game,), 3, 0, vectorization="sync")
    _, mask = vector.reset()
    episodes = []
    for _ in range(50):
        step = vector.step(mask.int().argmax(-1))
        mask = step.action_mask
        episodes += step.episodes
    assert len(episodes) > 20
    vector.close()
