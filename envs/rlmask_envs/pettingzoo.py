"""Games of PettingZoo for one agent; the other players are opponents in the env.

## Description
Any game of PettingZoo in which agents act in turn (AEC) and are given masks, by its name among the
classic ones, such as `connect_four_v3` or `leduc_holdem_v4`, or as `module:function` that makes
one. Opponents are asked until it is the agent's turn again.

## Action Space
`Discrete(n)`; what the actions mean is up to the game.

## Action mask
The agent's `action_mask`, of its observation or else of its info. An invalid action never reaches
the game, which would end there: it is an `InvalidActionError`, and the state stays as it was. All
zeros when the game is over.

## Observation Space
The agent's, without the mask: a `Box` of the same bounds and shape as float32, or as it is where it
holds bytes up to 255.

## Rewards
What the agent was given since its last turn, also what came before its first.

## Starting State
The agent's first turn. A game that ends before it is left out, and another one begun.

## Episode End
Terminated or truncated where the game says so of the agent.

## Arguments
`game`; `env_kwargs` for it; `seat`, from 0, or None to draw one for each episode; `opponent`:
`random`, or a `module:function` or function `(obs, mask, rng) -> action` that is asked for all
other agents.

## Reference
J. K. Terry et al., PettingZoo: Gym for multi-agent reinforcement learning, 2021,
https://arxiv.org/abs/2009.14471.
"""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from rlmask_envs.opponents import (
    MAX_TRIES,
    Opponent,
    ask,
    check_action,
    check_seat,
    load_function,
    make_opponent,
    no_turn,
    not_installed,
    require,
    unknown_game,
)


class PettingZooEnv(gym.Env):
    """A game of PettingZoo from the seat of one agent.

    Args:
        game: its name among the classic ones, or a `module:function` that returns an AEC env.
        seat: of the agent, an index into `possible_agents`; None: drawn for each episode.
        opponent: plays all other seats; see `rlmask_envs.opponents`.
        env_kwargs: for the game.
        render_mode: one that the game has.

    Attributes:
        game: as PettingZoo has it, without the wrappers that check what is checked here.
        agent: the name of the agent in this episode.

    Raises:
        DependencyNotInstalled: without PettingZoo, or what the game needs.
        ValueError: for an unknown game, seat, opponent or render mode, or spaces that do not fit.
    """

    metadata = {"render_modes": ["rgb_array", "ansi"]}  # noqa: RUF012

    def __init__(
        self,
        game: str = "connect_four_v3",
        *,
        seat: int | None = None,
        opponent: str | Opponent = "random",
        env_kwargs: Mapping[str, Any] | None = None,
        render_mode: str | None = None,
    ) -> None:
        kwargs = dict(env_kwargs or {})
        if render_mode is not None:
            kwargs["render_mode"] = render_mode
        self.game = make_game(game, kwargs)
        self.metadata = {**self.game.metadata, "render_modes": find_modes(self.game)}
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            modes = " or ".join(self.metadata["render_modes"]) or "none"
            raise ValueError(f"render_mode is {render_mode!r}; {game} has {modes}")
        self.render_mode = render_mode
        self._agents = list(self.game.possible_agents)
        check_seat(seat, len(self._agents), game)
        self._name = game
        self._seat = seat
        self._opponent = make_opponent(opponent)
        found = {name: find_space(self.game, name) for name in self._agents}
        self._dtypes = {agent: space.dtype for agent, space in found.items()}
        own = self._agents if seat is None else [self._agents[seat]]
        actions = [self.game.action_space(agent) for agent in own]
        if any(found[agent] != found[own[0]] for agent in own) or len(set(map(str, actions))) > 1:
            raise ValueError(f"the seats of {game} have different spaces: choose one with `seat`")
        if not isinstance(actions[0], spaces.Discrete) or actions[0].start != 0:
            raise ValueError(f"the actions of {game} are {actions[0]}; a Discrete from 0 is needed")
        self.observation_space, self.action_space = found[own[0]], actions[0]
        self.agent = own[0]
        self._mask = np.zeros(int(self.action_space.n), np.int8)
        self._early_reward = 0.0  # from before the agent's first turn
        self._is_running = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start a game, and play it up to the agent's first turn."""
        super().reset(seed=seed)
        self._is_running = False
        seat = self._seat
        if seat is None:
            seat = int(self.np_random.integers(len(self._agents)))
        self.agent = self._agents[seat]
        for _ in range(MAX_TRIES):
            self.game.reset(seed=int(self.np_random.integers(2**31)))
            obs, self._early_reward, terminated, truncated, info = self._play_others()
            if not (terminated or truncated):
                break
        else:
            raise no_turn(self._name, seat)
        self._is_running = True
        return obs, info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take an action, and play up to the agent's next turn or the end.

        Raises:
            InvalidActionError: if it is invalid; the state is then as it was.
            OpponentError: if an opponent's is; the game cannot go on then.
        """
        if not self._is_running:
            raise gym.error.ResetNeeded("the episode has ended or not begun: call reset()")
        index = check_action(action, self._mask, self._name)
        self._is_running = False  # unless all goes well
        self.game.step(index)
        obs, reward, terminated, truncated, info = self._play_others()
        reward, self._early_reward = reward + self._early_reward, 0.0
        self._is_running = not (terminated or truncated)
        return obs, reward, terminated, truncated, info

    def render(self) -> Any:
        """Return what the game renders."""
        return None if self.render_mode is None else self.game.render()

    def close(self) -> None:
        """Close the game."""
        self.game.close()

    def _play_others(self) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Play up to the agent's turn, and return what it is told."""
        game = self.game
        while (agent := game.agent_selection) != self.agent:
            if self.agent not in game.agents:
                raise RuntimeError(f"{self._name} ended without a last turn of {self.agent}")
            if game.terminations[agent] or game.truncations[agent]:
                game.step(None)  # takes it out
                continue
            raw = game.observe(agent)
            obs, mask = self._observation(raw, agent), self._valid(raw, agent)
            player = f"{agent} of {self._name}"
            game.step(ask(self._opponent, obs, mask, self.np_random, player))
        raw, reward, terminated, truncated, _ = game.last()
        self._mask = np.zeros_like(self._mask) if terminated else self._valid(raw, self.agent)
        info = {"action_mask": self._mask.copy()}
        obs = self._observation(raw, self.agent)
        return obs, float(reward), bool(terminated), bool(truncated), info

    def _observation(self, raw: Any, agent: str) -> np.ndarray:
        if isinstance(raw, Mapping):
            (raw,) = (value for key, value in raw.items() if key != "action_mask")
        return np.array(raw, self._dtypes[agent])

    def _valid(self, raw: Any, agent: str) -> np.ndarray:
        mask = raw.get("action_mask") if isinstance(raw, Mapping) else None
        if mask is None:
            mask = self.game.infos[agent].get("action_mask")
        if mask is None:
            raise ValueError(
                f"{self._name} gives {agent} no action_mask, neither with its observation nor in "
                "its info"
            )
        mask = np.array(mask, np.int8)
        if not mask.any():
            raise ValueError(
                f"{self._name} leaves {agent} no valid action, though it has not terminated"
            )
        return mask


def make_game(game: str, kwargs: dict[str, Any]) -> Any:
    """Return an AEC env.

    Raises:
        DependencyNotInstalled: without PettingZoo, or what the game needs.
        ValueError: if there is none of that name.
    """
    pettingzoo = require("pettingzoo")
    if ":" in game:
        env = load_function(game)(**kwargs)
    else:
        ids = pettingzoo.aec_registry
        known = {
            key.removeprefix("classic/").replace("-v", "_v"): key
            for key in ids
            if key.startswith("classic/")
        }
        if game not in known:
            raise unknown_game("PettingZoo", game, known)
        try:
            env = ids[known[game]].make(**kwargs)
        except ImportError as error:
            raise not_installed(error, "pettingzoo[classic]") from error
    if not isinstance(env, pettingzoo.AECEnv):
        raise ValueError(f"{game} made {env}, which is not an AEC env of PettingZoo")
    wrappers = require("pettingzoo.utils.wrappers")
    checks = (
        wrappers.OrderEnforcingWrapper,
        wrappers.AssertOutOfBoundsWrapper,
        wrappers.TerminateIllegalWrapper,
    )
    while isinstance(env, checks):  # what they check is checked here, and they take half the time
        env = env.env
    return env


def find_space(game: Any, agent: str) -> spaces.Box:
    """Return the space of an agent's observation without its mask.

    Raises:
        ValueError: if that is not a Box.
    """
    space = game.observation_space(agent)
    if isinstance(space, spaces.Dict):
        others = [part for key, part in space.spaces.items() if key != "action_mask"]
        if len(others) == 1:
            (space,) = others
    if not isinstance(space, spaces.Box):
        raise ValueError(f"{game} shows {agent} {space}; a Box, and perhaps a mask, is needed")
    if space.dtype == np.uint8 and space.high.max() == 255:
        return space
    return spaces.Box(space.low.astype(np.float32), space.high.astype(np.float32), dtype=np.float32)


def find_modes(game: Any) -> list[str]:
    """Return the render modes of a game that need no window."""
    modes = game.metadata.get("render_modes", ())
    return [mode for mode in modes if mode in PettingZooEnv.metadata["render_modes"]]
