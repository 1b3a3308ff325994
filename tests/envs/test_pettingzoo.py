import subprocess
import sys
import types
from collections import Counter

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from rlmask.vector import EnvError, Game, MaskError, check_env, make_vector
from rlmask.vector.spaces import make_env
from rlmask_envs.actions import InvalidActionError
from rlmask_envs.opponents import GameError, OpponentError, random_action
from rlmask_envs.pettingzoo import PettingZooEnv

pettingzoo = pytest.importorskip("pettingzoo", reason="needs the extra `games`")
pytest.importorskip("rlcard", reason="needs the extra `games`")
pytest.importorskip("pygame", reason="needs the extra `games`")

ENV_ID = "rlmask-tests/PettingZoo-v0"
if ENV_ID not in gym.registry:
    gym.register(ENV_ID, "rlmask_envs.pettingzoo:PettingZooEnv")

WAYS = ((0, 1), (1, 0), (1, 1), (1, -1))  # that a row of marks can go


class Round(pettingzoo.AECEnv):
    """Three agents take two turns each, 0, 1, 2, 0, 1, 2; then it is over for all of them.

    After turn t (from 0) agent i is given 10 ** t * (i + 1). The action t % 3 is invalid. All
    observations and masks are the same arrays, written over. With `drop` the last agent ends after
    its first turn, the others go on. `mask` is given to `whose` in place of its own.
    """

    def __init__(
        self,
        mask_in="obs",
        end="terminations",
        dtype=np.int8,
        high=6,
        start=0,
        drop=False,
        odd_seat=False,
        mask=None,
        whose=None,
        render_mode=None,
    ):
        self.metadata = {"render_modes": ["human", "ansi"], "name": "round"}
        self.render_mode = render_mode
        self.possible_agents = ["a", "b", "c"]
        self.mask_in, self.end, self.drop = mask_in, end, drop
        self.start, self.odd_seat = start, odd_seat
        self.wrong, self.whose = mask, whose
        self.obs, self.mask = np.zeros(2, dtype), np.zeros(3, np.int8)
        self.box = spaces.Box(0, high, (2,), dtype)

    def observation_space(self, agent):
        if self.mask_in != "obs":
            return self.box
        mask = spaces.Box(0, 1, (3,), np.int8)
        return spaces.Dict({"observation": self.box, "action_mask": mask})

    def action_space(self, agent):
        return spaces.Discrete(4 if self.odd_seat and agent == "b" else 3, start=self.start)

    def reset(self, seed=None, options=None):
        self.seed, self.turn, self.actions = seed, 0, []
        self.agents = self.possible_agents[:]
        self.rewards = dict.fromkeys(self.agents, 0)
        self._cumulative_rewards = dict.fromkeys(self.agents, 0)
        self.terminations = dict.fromkeys(self.agents, False)
        self.truncations = dict.fromkeys(self.agents, False)
        self.infos = {agent: {} for agent in self.agents}
        self.agent_selection = "a"
        self.write_mask()

    def write_mask(self):
        self.mask[:] = 0 if self.mask_in == "empty" else 1
        self.mask[self.turn % 3] = 0
        if self.mask_in in ("info", "empty"):
            for info in self.infos.values():
                info["action_mask"] = self.mask

    def observe(self, agent):
        self.obs[:] = self.possible_agents.index(agent), self.turn
        mask = self.wrong if agent == self.whose else self.mask
        return {"observation": self.obs, "action_mask": mask} if self.mask_in == "obs" else self.obs

    def step(self, action):
        agent = self.agent_selection
        if self.terminations[agent] or self.truncations[agent]:
            self._was_dead_step(action)
            return
        assert action in range(3) and self.mask[action]
        self.actions.append(action)
        self._cumulative_rewards[agent] = 0
        for index, name in enumerate(self.possible_agents):
            if name in self.rewards:
                self.rewards[name] = 10**self.turn * (index + 1)
        self.turn += 1
        if self.turn == 6 or (self.drop and self.turn == 5):
            for name in self.agents:
                getattr(self, self.end)[name] = True
        elif self.drop and self.turn == 3:
            self.terminations["c"] = True
        self.agent_selection = self.agents[(self.agents.index(agent) + 1) % len(self.agents)]
        self._accumulate_rewards()
        self.write_mask()
        self._deads_step_first()

    def render(self):
        return f"turn {self.turn}"


class Short(Round):
    """Is over after one turn if its seed is odd."""

    def step(self, action):
        super().step(action)
        if self.turn == 1 and self.seed % 2:
            self.terminations = dict.fromkeys(self.agents, True)


class Never(Round):
    """Is over after one turn."""

    def step(self, action):
        super().step(action)
        self.terminations = dict.fromkeys(self.agents, True)


class Windowed(Round):
    """Shows itself in a window only."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.metadata = {"render_modes": ["human"]}


class Forgets(Round):
    """Drops an agent before it is told so."""

    def step(self, action):
        super().step(action)
        if self.turn == 2:
            self.agents.remove("b")


def first_valid(obs, mask, rng):
    return int(mask.argmax())


def invalid_action(obs, mask, rng):
    return int(mask.argmin())


def make_round(seat=None, opponent=first_valid, render_mode=None, **kwargs):
    return PettingZooEnv(
        f"{__name__}:Round",
        seat=seat,
        opponent=opponent,
        game_kwargs=kwargs,
        render_mode=render_mode,
    )


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


def rows(marks, length):
    """Return whether a plane of marks has that many in a row."""
    places = set(zip(*np.nonzero(marks), strict=True))
    return any(
        all((y + step * dy, x + step * dx) in places for step in range(length))
        for y, x in places
        for dy, dx in WAYS
    )


@pytest.mark.parametrize(
    ("name", "length", "valid"),
    [
        ("tictactoe_v3", 3, lambda board: board.ravel() == 0),
        ("connect_four_v3", 4, lambda board: board[0] == 0),
    ],
)
@pytest.mark.parametrize("seat", [0, 1])
def test_board_games_are_won_and_lost(name, length, valid, seat):
    env, outcomes = PettingZooEnv(name, seat=seat), Counter()
    total, stones = 0.0, 0
    for action, obs, reward, terminated, info in play(env, 800):
        assert obs in env.observation_space and obs.dtype == np.float32
        mine, theirs = np.moveaxis(obs, -1, 0)
        total = 0.0 if action is None else total + reward
        if action is None:
            assert (mine.sum(), theirs.sum()) == (0, seat)
        else:
            assert mine.sum() == stones + 1
        stones = mine.sum()
        won, lost = rows(mine, length), rows(theirs, length)
        assert terminated == (won or lost or (mine + theirs).all())
        assert total == won - lost
        if terminated:
            assert not info["action_mask"].any()
            outcomes[total] += 1
        else:
            np.testing.assert_array_equal(info["action_mask"], valid(mine + theirs))
    assert outcomes[1] > 10 and outcomes[-1] > 10


@pytest.mark.parametrize("name", ["leduc_holdem_v4", "texas_holdem_v4"])
def test_poker_pays(name):
    env, seats, outcomes, total = PettingZooEnv(name), Counter(), Counter(), 0.0
    for action, obs, reward, terminated, info in play(env, 300):
        total = 0.0 if action is None else total + reward
        seat = env.game.possible_agents.index(env.agent)
        assert obs in env.observation_space
        if terminated:
            assert total == env.game.env.get_payoffs()[seat]
            outcomes[np.sign(total)] += 1
            assert not info["action_mask"].any()
        else:
            assert info["action_mask"].nonzero()[0].tolist() == sorted(env.game.next_legal_moves)
            seats[seat] += action is None
    assert min(seats[0], seats[1], outcomes[1], outcomes[-1]) > 20


def trace(env, num_steps=150, seed=0):
    return [
        (action, obs.tolist(), reward, terminated, info["action_mask"].tolist())
        for action, obs, reward, terminated, info in play(env, num_steps, seed)
    ]


@pytest.mark.parametrize("name", ["connect_four_v3", "leduc_holdem_v4"])
def test_the_seed_decides_everything(name):
    env = PettingZooEnv(name)
    first = trace(env)
    assert trace(PettingZooEnv(name)) == first
    assert trace(env) == first  # whatever was played before
    assert trace(env, seed=1) != first


def test_the_game_is_seeded_anew_for_each_episode():
    env, seeds = make_round(), set()
    for seed in (0, 0, None, None):
        env.reset(seed=seed)
        seeds.add(env.game.seed)
    assert len(seeds) == 3 and None not in seeds


@pytest.mark.parametrize("seat", [0, 1, 2])
@pytest.mark.parametrize("mask_in", ["obs", "info"])
@pytest.mark.parametrize("end", ["terminations", "truncations"])
def test_rewards_of_all_turns_count_once(seat, mask_in, end):
    env = make_round(seat, mask_in=mask_in, end=end, dtype=np.uint8, high=255)
    obs, info = env.reset(seed=0)
    kept = [obs, info["action_mask"]]
    assert obs.tolist() == [seat, seat]
    assert info["action_mask"].tolist() == [int(action != seat) for action in range(3)]
    assert info["action_mask"].dtype == np.int8
    after, first, terminated, truncated, info = env.step(info["action_mask"].argmax())
    assert (terminated, truncated) == (False, False)
    assert after.tolist() == [seat, seat + 3]
    assert first == (seat + 1) * sum(10**turn for turn in range(seat + 3))  # from the very start
    after, second, terminated, truncated, info = env.step(info["action_mask"].argmax())
    assert first + second == (seat + 1) * 111_111
    assert (terminated, truncated) == (end == "terminations", end == "truncations")
    assert after.tolist() == [seat, 6]
    assert info["action_mask"].tolist() == ([0, 0, 0] if terminated else [0, 1, 1])
    with pytest.raises(gym.error.ResetNeeded):
        env.step(1)
    assert kept[0].tolist() == [seat, seat]  # what the game writes over was copied
    assert kept[1].tolist() == [int(action != seat) for action in range(3)]


def test_an_agent_that_is_out_ends_its_episode_and_others_play_on():
    env = make_round(2, drop=True)
    env.reset(seed=0)
    _, reward, terminated, truncated, _ = env.step(0)
    assert (reward, terminated, truncated) == (3 * 111, True, False)
    env = make_round(0, drop=True)
    env.reset(seed=0)
    _, first, *_ = env.step(1)
    assert env.game.agents == ["a", "b"]
    _, second, terminated, truncated, _ = env.step(1)
    assert (first + second, terminated) == (11_111, True)


def test_a_game_without_a_turn_is_left_out():
    env = PettingZooEnv(f"{__name__}:Short", seat=1, opponent=first_valid)
    for seed in range(20):
        obs, info = env.reset(seed=seed)
        assert env.game.seed % 2 == 0
        assert obs.tolist() == [1, 1] and info["action_mask"].tolist() == [1, 0, 1]
        _, reward, *_ = env.step(0)
        assert reward == 2 * 1111  # nothing of the games that were left out


def test_a_seat_that_never_has_a_turn_is_an_error():
    env = PettingZooEnv(f"{__name__}:Never", seat=1, opponent=first_valid)
    with pytest.raises(gym.error.Error, match=r"Never: seat 1 had no turn in 1,000 games"):
        env.reset(seed=0)


def test_a_game_that_forgets_the_agent_is_an_error():
    env = PettingZooEnv(f"{__name__}:Forgets", seat=1, opponent=first_valid)
    env.reset(seed=0)
    with pytest.raises(gym.error.Error, match=r"Forgets ended without a last turn of b"):
        env.step(0)


def test_an_opponent_is_shown_its_own_side():
    asked = []

    def opponent(obs, mask, rng):
        assert rng is env.np_random
        assert obs.dtype == np.float32 and mask.dtype == np.int8
        asked.append((*map(int, obs), mask.tolist()))
        action = int(mask.argmax())
        mask[:] = 1  # it may do with its mask what it likes
        return np.int64(action)

    env = make_round(1, opponent)
    env.reset(seed=0)
    env.step(0)
    env.step(0)
    assert asked == [
        (0, 0, [0, 1, 1]),
        (2, 2, [1, 1, 0]),
        (0, 3, [0, 1, 1]),
        (2, 5, [1, 1, 0]),
    ]
    assert env.game.actions == [1, 0, 0, 1, 0, 0]


def test_an_opponent_of_connect_four_sees_the_board_from_its_side():
    def opponent(obs, mask, rng):
        mine, theirs = np.moveaxis(obs, -1, 0)
        assert (mine.sum(), theirs.sum()) in {(0, 1), (1, 2)}
        return int(theirs[5].argmax())  # on top of the agent's first stone

    env = PettingZooEnv(seat=0, opponent=opponent)
    env.reset(seed=0)
    obs, *_ = env.step(3)
    assert obs[:, 3].tolist() == [*[[0, 0]] * 4, [0, 1], [1, 0]]


def test_an_opponent_may_be_named():
    env = PettingZooEnv("tictactoe_v3", seat=0, opponent=f"{__name__}:first_valid")
    env.reset(seed=0)
    obs, *_ = env.step(0)
    assert obs[..., 1].ravel().tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("opponent", [invalid_action, lambda obs, mask, rng: None])
def test_an_opponent_that_breaks_the_rules_is_named(opponent):
    env = PettingZooEnv("tictactoe_v3", seat=0, opponent=opponent)
    env.reset(seed=0)
    with pytest.raises(OpponentError, match=opponent.__name__) as error:
        env.step(4)
    assert isinstance(error.value, gym.error.Error)  # which rlmask says in one line
    assert "for player_2 of tictactoe_v3" in str(error.value)
    assert "valid: 0, 1, 2, 3, 5, 6, 7, 8" in str(error.value)
    with pytest.raises(gym.error.ResetNeeded):  # the game cannot go on
        env.step(0)


@pytest.mark.parametrize("action", [4, 9, -1, 1.0, None, [1]])
def test_an_invalid_action_changes_nothing(action):
    env = PettingZooEnv("tictactoe_v3", seat=0, opponent=first_valid)
    env.reset(seed=0)
    env.step(4)
    message = r"tictactoe_v3: action .* is invalid; valid: 1, 2, 3, 5, 6, 7, 8"
    with pytest.raises(InvalidActionError, match=message):
        env.step(action)
    assert env.game.board.squares == [2, 0, 0, 0, 1, 0, 0, 0, 0]
    obs, *_ = env.step(np.int64(8))
    assert obs[..., 0].ravel().tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 1]


def test_the_mask_of_the_user_is_not_the_envs():
    env = make_round(0)
    _, info = env.reset(seed=0)
    info["action_mask"][:] = 1
    with pytest.raises(InvalidActionError):
        env.step(0)


@pytest.mark.parametrize(
    ("dtype", "high", "expected"),
    [
        (np.int8, 6, np.float32),
        (np.uint8, 6, np.float32),
        (np.uint8, 255, np.uint8),
        (np.float64, np.inf, np.float32),
        (bool, 1, np.float32),
    ],
)
@pytest.mark.parametrize("mask_in", ["obs", "info"])
def test_observations_are_floats_unless_they_are_bytes(dtype, high, expected, mask_in):
    env = make_round(dtype=dtype, high=high, mask_in=mask_in)
    assert env.observation_space == spaces.Box(0, high, (2,), expected)
    obs, _ = env.reset(seed=0)
    assert obs.dtype == expected and obs in env.observation_space


@pytest.mark.parametrize("seat", [0, 1])
def test_a_game_must_have_masks(seat):
    message = "Round gives a no action_mask, neither with its obs"
    with pytest.raises(gym.error.Error, match=message):
        make_round(seat, mask_in="none").reset(seed=0)


WRONG = {  # each would be a mask if it was cast to int8
    "has 0.5 at 1, which is neither 0 nor 1": np.array([1, 0.5, 1]),
    "has 256 at 2, which is neither 0 nor 1": np.array([1, 1, 256]),
    "has -1 at 0, which is neither 0 nor 1": np.array([-1, 1, 1]),
    "has nan at 1, which is neither 0 nor 1": np.array([1, np.nan, 1]),
    r"has shape \(2,\), not \(3,\)": np.ones(2, np.int8),
    r"has shape \(1, 3\), not \(3,\)": np.ones((1, 3), np.int8),
    r"has shape \(\), not \(3,\)": np.int8(1),
    "is of <U1, not 0 and 1": np.array(["1", "0", "1"]),
    "is of object, not 0 and 1": np.array([1, None, 1]),
}


@pytest.mark.parametrize("whose", ["a", "b"])
@pytest.mark.parametrize("problem", WRONG)
def test_a_mask_is_not_cast_before_it_is_checked(whose, problem):
    env = make_round(1, mask=WRONG[problem], whose=whose)  # `a` is an opponent, `b` the agent
    with pytest.raises(GameError, match=f"^the action_mask of {whose} of .*Round {problem}$"):
        env.reset(seed=0)


@pytest.mark.parametrize("mask", [[1, 0, 1], np.array([True, False, True]), np.array([1.0, 0, 1])])
def test_a_mask_of_other_numbers_is_int8_and_a_copy(mask):
    _, info = make_round(0, mask=mask, whose="a").reset(seed=0)
    assert info["action_mask"].tolist() == [1, 0, 1] and info["action_mask"].dtype == np.int8
    info["action_mask"][:] = 0
    assert np.array_equal(mask, [1, 0, 1])


def test_an_opponent_is_held_to_the_actions_of_its_own():
    env = make_round(0, odd_seat=True)  # `b` has four actions, but a mask for three
    env.reset(seed=0)
    with pytest.raises(GameError, match=r"action_mask of b .*has shape \(3,\), not \(4,\)"):
        env.step(1)


def test_an_opponent_needs_a_valid_action():
    for opponent in (first_valid, "random"):
        env = make_round(1, opponent, mask_in="empty")
        with pytest.raises(GameError, match=r"^a of .*Round has no valid action, though"):
            env.reset(seed=0)


def test_whether_the_agent_has_a_valid_action_is_for_rlmask_to_say():
    _, info = make_round(0, mask_in="empty").reset(seed=0)
    assert info["action_mask"].tolist() == [0, 0, 0]
    kwargs = {"game": f"{__name__}:Round", "seat": 0, "game_kwargs": {"mask_in": "empty"}}
    with pytest.raises(MaskError, match="env 0, episode 1, step 0: no action is valid"):
        make_vector((Game(env_id=ENV_ID, env_kwargs=kwargs),), 1, 0, vectorization="sync").reset()


def not_aec(**kwargs):
    raise AssertionError("was called")


class NotAEC:
    def __init__(self, **kwargs):
        raise AssertionError("was called")


def test_a_config_calls_nothing_but_games(tmp_path):
    """Whatever a YAML names is looked at before it is called."""
    file = tmp_path / "made"
    for args in (["touch", str(file)], f"touch {file}"):
        kwargs = {"args": args, "shell": isinstance(args, str), "check": True}
        for game in ("subprocess:run", "subprocess:Popen", "subprocess:check_call"):
            with pytest.raises(EnvError, match=f"{game} is not a class of AEC envs of PettingZoo"):
                make_env(ENV_ID, {"game": game, "game_kwargs": kwargs})
    assert not file.exists()
    subprocess.run(**kwargs)  # as it would have done
    assert file.exists()


@pytest.mark.parametrize("names", [("env", "raw_env"), ("raw_env",)])
def test_a_game_may_be_named_by_its_module(monkeypatch, names):
    made = []

    def env(**kwargs):
        made.append(kwargs)
        return Round(**kwargs)

    module = types.ModuleType("my_package.my_game")
    for name in names:
        setattr(module, name, env if name == names[0] else not_aec)
    monkeypatch.setitem(sys.modules, "my_package", types.ModuleType("my_package"))
    monkeypatch.setitem(sys.modules, "my_package.my_game", module)
    played = PettingZooEnv("my_package.my_game", seat=0, game_kwargs={"drop": True})
    assert made == [{"drop": True}] and played.game.drop
    played.reset(seed=0)


def test_a_module_of_pettingzoo_is_the_game_of_its_name():
    own = PettingZooEnv("pettingzoo.classic.tictactoe.tictactoe")
    assert trace(own) == trace(PettingZooEnv("tictactoe_v3"))
    assert type(own.game).__name__ == "raw_env"


def test_a_module_of_something_else_is_not_called(monkeypatch):
    module = types.ModuleType("my_package.my_game")
    module.env = not_aec
    monkeypatch.setitem(sys.modules, "my_package", types.ModuleType("my_package"))
    monkeypatch.setitem(sys.modules, "my_package.my_game", module)
    with pytest.raises(ValueError, match=r"my_package\.my_game has no `raw_env`, as PettingZoo's"):
        PettingZooEnv("my_package.my_game")
    module.raw_env = lambda **kwargs: gym.Env()
    module.env = module.raw_env
    with pytest.raises(ValueError, match="which is not an AEC env"):
        PettingZooEnv("my_package.my_game")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"game": "connect_four"}, "no game 'connect_four'; did you mean connect_four_v3"),
        ({"game": "connect_four_v2"}, "did you mean connect_four_v3"),
        ({"game": "gin_rummy_v4"}, "PettingZoo has no game 'gin_rummy_v4'; it has chess_v6, "),
        ({"game": "rps_v2"}, "rps_v2 shows player_0 Discrete.*; a Box, and perhaps a mask"),
        ({"game": f"{__name__}:not_aec"}, "not_aec is not a class of AEC envs"),
        ({"game": f"{__name__}:NotAEC"}, "NotAEC is not a class of AEC envs"),
        ({"game": f"{__name__}:nothing"}, "nothing' cannot be loaded"),
        ({"game": "no_such.module"}, "cannot be loaded: No module.*installed or on PYTHONPATH"),
        ({"game": "os.path"}, r"the module os\.path has no `raw_env`"),
        ({"game": "subprocess"}, "PettingZoo has no game 'subprocess'"),
        ({"seat": 2}, "seat is 2; connect_four_v3 has 2 of them, the integers 0 to 1"),
        ({"seat": -1}, "seat is -1"),
        ({"seat": 0.5}, "seat is 0.5"),
        ({"seat": True}, "seat is True"),
        ({"opponent": "best"}, "opponent is 'best'"),
        ({"render_mode": "ansi"}, "render_mode is 'ansi'; it takes rgb_array$"),
        ({"game": f"{__name__}:Windowed", "render_mode": "ansi"}, "is 'ansi'; it takes none$"),
        ({"game": f"{__name__}:Round", "game_kwargs": {"start": 1}}, "a Discrete from 0 is needed"),
        (
            {"game": f"{__name__}:Round", "game_kwargs": {"odd_seat": True}},
            "choose one with `seat`",
        ),
    ],
)
def test_a_wrong_setting_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        PettingZooEnv(**settings)


def test_a_wrong_keyword_for_the_game_is_one_line():
    with pytest.raises(EnvError, match=r"does not take these env_kwargs: .*'bord_size'"):
        make_env(ENV_ID, {"game_kwargs": {"bord_size": 5}})


@pytest.mark.parametrize(
    ("module", "game", "command"),
    [
        ("pettingzoo", "connect_four_v3", "pip install 'rlmask[games]'"),
        ("pettingzoo.classic.go.go", "go_v5", "pip install 'pettingzoo[classic]'"),
        ("pygame", "go_v5", "pip install 'rlmask[games]'"),
        ("rlcard", "texas_holdem_no_limit_v6", "pip install 'rlmask[games]'"),
    ],
)
def test_a_missing_package_is_one_line(monkeypatch, module, game, command):
    loaded = [name for name in sys.modules if name.startswith("pettingzoo.classic")]
    for name in loaded:  # so that it is imported anew
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(gym.error.DependencyNotInstalled):
        PettingZooEnv(game)
    with pytest.raises(EnvError) as error:
        make_env(ENV_ID, {"game": game})
    assert str(error.value) == (
        f"{ENV_ID} needs a package that is not installed: no module named '{module}'; {command}"
    )


def test_an_old_version_is_refused(monkeypatch):
    """It has no registry."""
    monkeypatch.delattr(pettingzoo, "aec_registry")
    monkeypatch.setattr(pettingzoo, "__version__", "1.24.3")
    with pytest.raises(EnvError) as error:
        make_env(ENV_ID, {})
    assert str(error.value) == (
        f"{ENV_ID} needs a package that is not installed: pettingzoo is 1.24.3; it has to be 1.27 "
        "or later; pip install 'rlmask[games]'"
    )


def test_what_the_game_renders():
    env = make_round(0, render_mode="ansi")
    with pytest.raises(gym.error.ResetNeeded, match="nothing to see yet"):
        env.render()
    env.reset(seed=0)
    assert env.render() == "turn 0" and env.metadata["render_modes"] == ["ansi"]
    assert make_round(0).render() is None
    env = PettingZooEnv("tictactoe_v3", game_kwargs={"screen_height": 60}, render_mode="rgb_array")
    env.reset(seed=0)
    assert env.render().shape == (60, 60, 3)
    env.close()


def test_connect_four_keeps_the_mask_contract():
    findings = check_env(Game(env_id=ENV_ID), 500, 0)
    assert findings
    assert not [finding for finding in findings if finding.level != "ok"]


def test_several_games_play_side_by_side():
    game = Game(env_id=ENV_ID, env_kwargs={"game": "leduc_holdem_v4"})
    vector = make_vector((game,), 3, 0, vectorization="sync")
    _, mask = vector.reset()
    episodes = []
    for _ in range(50):
        step = vector.step(mask.int().argmax(-1))
        mask = step.action_mask
        episodes += step.episodes
    assert len(episodes) > 20
    vector.close()
