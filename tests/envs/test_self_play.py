"""Connect Four and Othello without an opponent: a step is one move of whose turn it is."""

from collections import Counter

import numpy as np
import pytest
from playing import draw, make_vec, play
from reference_games import othello as reference

from rlmask_envs import connect_four, othello
from rlmask_envs.othello import PASS

LINES = ((0, 1), (1, 0), (1, 1), (1, -1))


class ConnectFour:
    """The rules in ordinary Python; `own` are the stones of the player whose turn it is."""

    def __init__(self, height, width):
        self.height, self.width, self.own, self.other = height, width, set(), set()

    def move(self, column):
        """Return the reward of the player who moves, and whether it is the end."""
        filled = sum(x == column for _, x in self.own | self.other)
        self.own.add((self.height - 1 - filled, int(column)))
        wins = any(
            all((y + i * dy, x + i * dx) in self.own for i in range(4))
            for y, x in self.own
            for dy, dx in LINES
        )
        self.own, self.other = self.other, self.own
        return float(wins), wins or len(self.own | self.other) == self.height * self.width

    def mask(self):
        return [(0, x) not in self.own | self.other for x in range(self.width)]

    def planes(self):
        planes = np.zeros((self.height, self.width, 2), np.uint8)
        for plane, stones in enumerate((self.own, self.other)):
            for y, x in stones:
                planes[y, x, plane] = 255
        return planes


class Othello:
    """The same for Othello; Black begins."""

    def __init__(self):
        self.own, self.other = {(3, 4), (4, 3)}, {(3, 3), (4, 4)}

    def move(self, action):
        if action != PASS:
            place = divmod(int(action), 8)
            turned = reference.captured(self.own, self.other, place)
            assert turned
            self.own, self.other = self.own | turned | {place}, self.other - turned
        lead = len(self.own) - len(self.other)
        self.own, self.other = self.other, self.own
        is_over = not any(self.mask())
        return float(np.sign(lead)) if is_over else 0.0, is_over

    def mask(self):
        places = reference.moves(self.own, self.other)
        return [*places, not any(places) and any(reference.moves(self.other, self.own))]

    def planes(self):
        valid = {divmod(i, 8) for i, is_valid in enumerate(self.mask()[:64]) if is_valid}
        planes = np.zeros((8, 8, 3), np.uint8)
        for plane, squares in enumerate((self.own, self.other, valid)):
            for y, x in squares:
                planes[y, x, plane] = 255
        return planes


def check_against(new, envs, num_steps):
    """Play at random along with models; count what has happened."""
    models, moves = [new() for _ in range(envs.num_envs)], np.zeros(envs.num_envs, int)
    seen = Counter()
    for actions, obs, reward, terminated, truncated, info in play(envs, num_steps):
        assert not truncated.any()
        for i, model in enumerate(models):
            expected, is_over = model.move(actions[i])
            assert (reward[i], terminated[i]) == (expected, is_over)
            seen["passes"] += actions[i] == PASS
            if is_over:
                # to the one who has moved last, who is the first player or the second
                seen[reward[i], "first" if moves[i] % 2 == 0 else "second"] += 1
                assert (info["final_obs"][i] == model.planes()).all()
                final_mask = info["final_info"]["action_mask"][i]
                assert final_mask.tolist() == model.mask()
                models[i], moves[i] = new(), 0
            else:
                moves[i] += 1
            assert (obs[i] == models[i].planes()).all()
            assert info["action_mask"][i].tolist() == models[i].mask()
    return seen


@pytest.mark.parametrize(("height", "width"), [(6, 7), (4, 5)])
def test_connect_four(height, width):
    envs = make_vec("ConnectFour", 16, height=height, width=width, opponent="none")
    seen = check_against(lambda: ConnectFour(height, width), envs, 200)
    assert seen[1.0, "first"] > 0 and seen[1.0, "second"] > 0
    assert not seen[-1.0, "first"] and not seen[-1.0, "second"]  # nobody loses by a move
    if height == 4:
        assert seen[0.0, "second"] > 0  # 20 cells: the second player's stone is the last


def test_othello():
    seen = check_against(Othello, make_vec("Othello", 8, opponent="none"), 320)
    assert seen["passes"] > 0
    for result in (1.0, -1.0):
        assert seen[result, "first"] + seen[result, "second"] > 0


def position(game, state, options):
    """Return observation and mask of a state."""
    setup = game.setup()
    obs = np.zeros(setup.observation_space.shape, np.uint8)
    mask = np.zeros(setup.num_actions, np.int8)
    game.observe(state, obs, options)
    game.valid_actions(state, mask, options)
    return obs, mask


@pytest.mark.parametrize("opponent", ["random", "heuristic"])
@pytest.mark.parametrize("seat", ["first", "second"])
@pytest.mark.parametrize("game", [connect_four, othello], ids=lambda game: game.__name__)
def test_ply_by_ply_it_is_the_same_game(game, seat, opponent):
    """Without an opponent, but with the moves that one has made: the same positions and ends."""
    name = "Othello" if game is othello else "ConnectFour"
    envs, plain = (
        make_vec(name, 1, seat=seat, opponent=opponent),
        make_vec(name, 1, opponent="none"),
    )
    (state,), (twin,) = envs.states, plain.states
    options, no_options = envs.options, plain.options
    rng, draws = np.array([3, 0], np.uint64), np.random.default_rng(0)
    seen = set()
    for _ in range(20):
        game.reset(state, rng, options)
        game.reset(twin, rng, no_options)
        if seat == "second":
            assert game.step(twin, state.last, rng, no_options) == (0.0, False)
        is_over = False
        while not is_over:
            obs, mask = position(game, state, options)
            twin_obs, twin_mask = position(game, twin, no_options)
            assert (obs == twin_obs).all() and (mask == twin_mask).all()
            action = draw(mask, draws)
            reward, is_over = game.step(state, action, rng, options)
            mine, has_ended = game.step(twin, action, rng, no_options)
            if not has_ended:
                assert mine == 0
                theirs, has_ended = game.step(twin, state.last, rng, no_options)
                mine = -theirs
            assert (mine, has_ended) == (reward, is_over)
        seen.add(reward)
    assert len(seen) > 1 or opponent == "heuristic"


def test_no_move_is_drawn_without_an_opponent():
    for name in ("ConnectFour", "Othello"):
        envs = make_vec(name, 4, opponent="none")
        for _ in play(envs, 100):
            pass
        assert (envs._batch.rngs[:, 1] == 0).all()


def test_pictures_keep_the_players_apart():
    envs = make_vec("ConnectFour", 1, opponent="none", render_mode="ansi")
    envs.reset(seed=0)
    for column in (0, 0, 1):
        envs.step(np.array([column]))
    assert envs.render()[0].split("\n")[-3:] == ["O......", "XX.....", "0123456"]
    envs = make_vec("Othello", 1, opponent="none", render_mode="ansi")
    envs.reset(seed=0)
    for square, expected in [(19, "black x 4, white o 1"), (18, "black x 3, white o 3")]:
        envs.step(np.array([square]))
        assert envs.render()[0].split("\n")[-1] == expected
    state, options = envs.states[0], envs.options
    assert othello.image(state, options).shape == (9 * 32, 8 * 32, 3)
