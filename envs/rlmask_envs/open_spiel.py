"""Games of OpenSpiel for one agent; the other players, if any, are opponents in the env.

## Description
Any game of OpenSpiel in which players move in turn, by its name there and with its parameters:
`backgammon`, `go(board_size=9)`, `universal_poker`, or for one player `2048` or `solitaire`. Games
of simultaneous moves are played in turn, where nobody sees what the others chose. Dice and cards
are drawn, and opponents asked, until it is the agent's turn again.

## Action Space
`Discrete(n)`, the actions of all states and players; what they mean is up to the game.

## Action mask
The legal actions. Some games of OpenSpiel take an illegal one without a word; here it always is an
`InvalidActionError`, and the state stays as it was. All zeros when the game is over.

## Observation Space
`Box(-inf, inf, shape, float32)`; what OpenSpiel calls the observation tensor of the player, or its
information state tensor where the game has no other. It may or may not tell whose seat it is.

## Rewards
What the agent's returns in the game have changed by since its last turn; they add up to its returns
at the end.

## Starting State
The agent's first turn. A game that ends before it is left out, and another one begun.

## Episode End
Terminated: the game is over. Never truncated.

## Arguments
`game`; `seat`, from 0, or None to draw one for each episode; `opponent`: `random`, or a
`module:function` or function `(obs, mask, rng) -> action` that is asked for all other players; the
module has to be installed or on PYTHONPATH.

## Reference
M. Lanctot et al., OpenSpiel: A framework for reinforcement learning in games, 2019,
https://arxiv.org/abs/1908.09453.
"""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from rlmask_envs.actions import check_action
from rlmask_envs.drawing import check_render_mode
from rlmask_envs.envs import RENDER_MODES, check_begun, check_running
from rlmask_envs.opponents import (
    MAX_TRIES,
    Opponent,
    ask,
    check_seat,
    make_opponent,
    no_turn,
    random_action,
    require,
    unknown_game,
)
from rlmask_envs.text_picture import text_picture


class OpenSpielEnv(gym.Env):
    """A game of OpenSpiel from the seat of one player.

    Args:
        game: its name there, with parameters if any.
        seat: of the agent, from 0; None: drawn for each episode.
        opponent: plays all other seats; see `rlmask_envs.opponents`.
        render_mode: `ansi`, or `rgb_array` for a picture of the same text.

    Attributes:
        game: as OpenSpiel has it.
        state: of the game, likewise.
        player: the seat of the agent in this episode.

    Raises:
        DependencyNotInstalled: without OpenSpiel.
        ValueError: for an unknown game, seat, opponent or render mode, or a game that has no tensor
            to observe, or draws for itself and takes no seed.
    """

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": 2}  # noqa: RUF012

    def __init__(
        self,
        game: str = "connect_four",
        *,
        seat: int | None = None,
        opponent: str | Opponent = "random",
        render_mode: str | None = None,
    ) -> None:
        check_render_mode(render_mode, RENDER_MODES)
        game = str(game)  # 2048 is a number in YAML
        self.game = load_game(game)
        check_seat(seat, self.game.num_players(), game)
        self.render_mode = render_mode
        self._name = game
        self._seat = seat
        self._opponent = make_opponent(opponent)
        self._draws_itself = "SAMPLED" in self.game.get_type().chance_mode.name
        if self._draws_itself:
            self.game = with_seed(self.game, 0)  # or it fails here, and not at the first reset
        self._tensor, shape = find_tensor(self.game, game)
        self.observation_space = spaces.Box(-np.inf, np.inf, tuple(shape), np.float32)
        self._num_actions = self.game.num_distinct_actions()
        self.action_space = spaces.Discrete(self._num_actions)
        self.state: Any = None
        self.player = seat or 0
        self._mask = np.zeros(self._num_actions, np.int8)
        self._returned = 0.0  # to the agent so far
        self._is_running = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start a game, and play it up to the agent's first turn.

        Raises:
            OpponentError: if an opponent's action is invalid.
            GameError: if the agent never has a turn.
        """
        super().reset(seed=seed)
        self._is_running = False
        if self._seat is None:
            self.player = int(self.np_random.integers(self.game.num_players()))
        for _ in range(MAX_TRIES):
            self._begin()
            self._play_others()
            if not self.state.is_terminal():
                break
        else:
            raise no_turn(self._name, self.player)
        self._returned = 0.0
        self._is_running = True
        return self._observe(self.player), self._info()

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take an action, and play up to the agent's next turn or the end.

        Raises:
            InvalidActionError: if it is invalid; the state is then as it was.
            OpponentError: if an opponent's is; the game cannot go on then.
        """
        check_running(self._is_running)
        index = check_action(action, self._mask, self._name)
        self._is_running = False  # unless all goes well
        self.state.apply_action(index)
        self._play_others()
        terminated = self.state.is_terminal()
        self._is_running = not terminated
        returned = self.state.returns()[self.player]
        reward, self._returned = returned - self._returned, returned
        return self._observe(self.player), reward, terminated, False, self._info()

    def render(self) -> Any:
        """Return the state as OpenSpiel writes it, hidden cards and all."""
        if self.render_mode is None:
            return None
        check_begun(self.state is not None)
        text = str(self.state)
        return text if self.render_mode == "ansi" else text_picture(text)

    def _begin(self) -> None:
        if self._draws_itself:
            self.game = with_seed(self.game, int(self.np_random.integers(2**31)))
        self.state = self.game.new_initial_state()

    def _play_others(self) -> None:
        state = self.state
        while not state.is_terminal() and (player := state.current_player()) != self.player:
            if player < 0:
                action = draw(state.chance_outcomes(), self.np_random)
            elif self._opponent is random_action:  # the same choice without its mask
                actions = state.legal_actions()
                action = actions[self.np_random.integers(len(actions))]
            else:
                obs, mask = self._observe(player), self._valid()
                action = ask(
                    self._opponent, obs, mask, self.np_random, f"player {player} of {self._name}"
                )
            state.apply_action(action)

    def _observe(self, player: int) -> np.ndarray:
        obs = np.array(self._tensor(self.state, player), np.float32)
        return obs.reshape(self.observation_space.shape)

    def _valid(self) -> np.ndarray:
        mask = np.zeros(self._num_actions, np.int8)
        if not self.state.is_terminal():
            mask[self.state.legal_actions()] = 1
        return mask

    def _info(self) -> dict[str, Any]:
        self._mask = self._valid()
        return {"action_mask": self._mask.copy()}


def load_game(name: str) -> Any:
    """Return a game of OpenSpiel in which players move in turn.

    Raises:
        DependencyNotInstalled: without OpenSpiel.
        ValueError: if there is none of that name.
    """
    pyspiel = require("pyspiel")
    names = pyspiel.registered_names()
    if name.partition("(")[0] not in names:
        raise unknown_game("OpenSpiel", name, names)
    try:
        game = pyspiel.load_game(name)
    except (RuntimeError, IndexError) as error:
        raise ValueError(f"OpenSpiel cannot load {name!r}: {brief(error)}") from error
    dynamics = game.get_type().dynamics.name
    if dynamics == "SIMULTANEOUS":
        return pyspiel.convert_to_turn_based(game)
    if dynamics != "SEQUENTIAL":
        raise ValueError(f"{name} is a game of {dynamics.lower()} dynamics, not one of turns")
    return game


def with_seed(game: Any, seed: int) -> Any:
    """Return a game that draws for itself, or the game that it is made of, with another seed.

    Raises:
        ValueError: if it takes none.
    """
    parameters = inner = game.get_parameters()
    while isinstance(inner.get("game"), dict):
        inner = inner["game"]
    inner["rng_seed"] = seed
    try:
        return require("pyspiel").load_game(game.get_type().short_name, parameters)
    except (RuntimeError, IndexError) as error:
        text = brief(error)
        raise ValueError(f"{game} draws for itself, and takes no seed: {text}") from error


def brief(error: Exception) -> str:
    """Return what OpenSpiel says without its list of all games."""
    return str(error).partition(". Available games")[0]


def find_tensor(
    game: Any, name: str
) -> tuple[Callable[[Any, int], Sequence[float]], Sequence[int]]:
    """Return the function from a state and a player to what it observes, and the shape of that.

    Raises:
        ValueError: if the game gives nothing of that kind.
    """
    state = require("pyspiel").State
    try:
        if game.get_type().provides_observation_tensor:
            return state.observation_tensor, game.observation_tensor_shape()
        if game.get_type().provides_information_state_tensor:
            return state.information_state_tensor, game.information_state_tensor_shape()
    except RuntimeError as error:
        raise ValueError(f"{name} has no tensor to observe: {error}") from error
    raise ValueError(f"{name} has no tensor to observe, only text; rlmask needs numbers")


def draw(outcomes: Sequence[tuple[int, float]], rng: np.random.Generator) -> int:
    """Return one of the outcomes of chance, each with its probability."""
    left = rng.random()
    for outcome, probability in outcomes:
        left -= probability
        if left < 0:
            return outcome
    return max(outcomes, key=lambda pair: pair[1])[0]  # they added up to a little less than 1
