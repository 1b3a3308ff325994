"""Random games in which OpenSpiel and the rules here have to agree at every move."""

import random

import numpy as np
import pytest
from playing import make_vec

from rlmask_envs import connect_four, othello

pyspiel = pytest.importorskip("pyspiel")

NUM_GAMES = 1000


def new(name):
    """Return an empty state of a game, and its options."""
    envs = make_vec(name, 1)
    (state,) = envs.states
    return state, envs.options


def test_connect_four():
    rng, game = random.Random(0), pyspiel.load_game("connect_four")
    state, options = new("ConnectFour")
    results = []
    for _ in range(NUM_GAMES):
        theirs = game.new_initial_state()
        connect_four.clear(state, options)
        result = [0.0, 0.0]
        while not theirs.is_terminal():
            columns = [x for x in range(7) if connect_four.is_open(state, x, options)]
            assert columns == theirs.legal_actions()
            assert result == [0.0, 0.0]  # nobody has four yet
            column, player = rng.choice(columns), theirs.current_player()
            theirs.apply_action(column)
            if connect_four.place(state, column, player, options):
                result[player], result[1 - player] = 1.0, -1.0
        assert any(result) or connect_four.is_full(state, options)
        assert result == theirs.returns()
        results.append(result[0])
    assert set(results) == {1.0, 0.0, -1.0}


def test_othello():
    rng, game = random.Random(0), pyspiel.load_game("othello")
    state, _ = new("Othello")
    results, passes = [], 0
    for _ in range(NUM_GAMES):
        theirs = game.new_initial_state()
        othello.start(state, 0)
        while not theirs.is_terminal():
            player = theirs.current_player()
            moves = int(othello.moves_of(state, player))
            actions = [square for square in range(64) if moves >> square & 1] or [othello.PASS]
            assert actions == theirs.legal_actions()
            action = rng.choice(actions)
            theirs.apply_action(action)
            if action == othello.PASS:
                passes += 1
            else:
                othello.place(state, action, player)
        assert othello.moves_of(state, 0) == othello.moves_of(state, 1) == 0
        result = float(np.sign(othello.lead(state, 0)))
        assert [result, -result] == theirs.returns()
        results.append(result)
    assert set(results) == {1.0, 0.0, -1.0}
    assert passes > 0
