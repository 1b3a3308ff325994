"""2048 against OpenSpiel's: legal moves, boards, rewards and ends, over random games.

OpenSpiel 2.0 plays by the rules, but leaves moves out of `legal_actions`: there it takes a tile
that the last move has made for one that cannot merge (`is_merged` is only reset by the next move).
So a move counts as legal here if OpenSpiel's own board changes when it is played. That is also what
`legal_actions` says wherever the last move has merged nothing.
"""

import random

import numpy as np
import pytest
from playing import make_vec

from rlmask_envs import game2048

pyspiel = pytest.importorskip("pyspiel")

NUM_GAMES = 1000
MAX_TILE = 256  # so that some random games reach it
EXPONENTS = {0: 0, **{2**exponent: exponent for exponent in range(1, 9)}}


def tiles_of(spiel):
    """Return OpenSpiel's board as a list of 16 numbers."""
    return spiel.observation_tensor(0)


def add_tile(spiel, chance):
    """Let OpenSpiel's chance add a tile."""
    outcomes, probabilities = zip(*spiel.chance_outcomes(), strict=True)
    spiel.apply_action(chance.choices(outcomes, probabilities)[0])


def test_random_games_are_those_of_open_spiel():
    envs = make_vec("Game2048", 1, max_tile=MAX_TILE)
    (state,), options = envs.states, envs.options
    board = state.board[:4, :4]
    game = pyspiel.load_game("2048", {"max_tile": MAX_TILE})
    chance = random.Random(0)
    num_moves, num_won = 0, 0
    for _ in range(NUM_GAMES):
        spiel = game.new_initial_state()
        add_tile(spiel, chance)
        add_tile(spiel, chance)
        has_merged = False
        while not spiel.is_terminal():
            tiles = tiles_of(spiel)
            board.flat[:] = [EXPONENTS[tile] for tile in tiles]
            mask = np.zeros(6, np.int8)
            game2048.valid_actions(state, mask, options)
            legal = [action for action in range(4) if tiles_of(spiel.child(action)) != tiles]
            assert np.flatnonzero(mask).tolist() == legal
            assert set(spiel.legal_actions()) <= set(legal)
            assert has_merged or spiel.legal_actions() == legal
            action = chance.choice(legal)
            spiel.apply_action(action)
            reward = spiel.rewards()[0]
            has_merged = reward > 0
            assert game2048.slide(state, action, options) == reward
            assert board.flatten().tolist() == [EXPONENTS[tile] for tile in tiles_of(spiel)]
            assert game2048.has_goal(state, options) == spiel.is_terminal()
            if not spiel.is_terminal():
                add_tile(spiel, chance)
                board.flat[:] = [EXPONENTS[tile] for tile in tiles_of(spiel)]
                assert game2048.can_move(state, options) != spiel.is_terminal()
            num_moves += 1
        num_won += int(game2048.has_goal(state, options))
    assert num_moves > 80 * NUM_GAMES and 0 < num_won < NUM_GAMES
