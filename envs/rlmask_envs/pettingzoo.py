"""Games of PettingZoo for one agent; the other players are opponents in the env.

## Description
Any game of PettingZoo in which agents act in turn (AEC) and are given masks, by its name among the
classic ones, such as `connect_four_v3` or `leduc_holdem_v4`. One of your own is named by its class,
`my_game:MyGame`, or by a module in a package, `my_package.my_game`, that has a `raw_env` and maybe
an `env` as PettingZoo's have. Opponents are asked until it is the agent's turn again.

## Action Space
`Discrete(n)`; what the actions mean is up to the game.

## Action mask
The agent's `action_mask`, of its observation or else of its info: one 0 or 1 for each action. An
invalid action never reaches the game, which would end there: it is an `InvalidActionError`, and the
state stays as it was. All zeros when the game is over.

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
`game`; `game_kwargs` for it; `seat`, from 0, or None to draw one for each episode; `opponent`:
`random`, or a `module:function` or function `(obs, mask, rng) -> action` that is asked for all
other agents. Modules have to be installed or on PYTHONPATH.

## Reference
J. K. Terry et al., PettingZoo: Gym for multi-agent reinforcement learning, 2021,
https://arxiv.org/abs/2009.14471.
"""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from rlmask_envs.actions import check_action
from rlmask_envs.drawing import check_render_mode
from rlmask_envs.envs import check_begun, check_running
from rlmask_envs.opponents import (
    EXTRA,
    MAX_TRIES,
    GameError,
    Opponent,
    ask,
    check_seat,
    load_named,
    make_opponent,
    no_turn,
    not_installed,
    require,
    too_old,
    unknown_game,
)

OLDEST = "1.27"  # before that, no registry


class PettingZooEnv(gym.Env):
    """A game of PettingZoo from the seat of one agent.

    Args:
        game: its name among the classic ones, its module, or `module:Class` of an `AECEnv`.
        seat: of the agent, an index into `possible_agents`; None: drawn for each episode.
        opponent: plays all other seats; see `rlmask_envs.opponents`.
        game_kwargs: for the game.
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
        game_kwargs: Mapping[str, Any] | None = None,
        render_mode: str | None = None,
    ) -> None:
        kwargs = dict(game_kwargs or {})
        if render_mode is not None:
            kwargs["render_mode"] = render_mode
        self.game = make_game(game, kwargs)
        self.metadata = {**self.game.metadata, "render_modes": find_modes(self.game)}
        check_render_mode(render_mode, self.metadata["render_modes"])
        self.render_mode = render_mode
        self._agents = list(self.game.possible_agents)
        check_seat(seat, len(self._agents), game)
        self._name = game
        self._seat = seat
        self._opponent = make_opponent(opponent)
        found = {name: find_space(self.game, name) for name in self._agents}
        self._dtypes = {agent: space.dtype for agent, space in found.items()}
        own = self._agents if seat is None else [self._agents[seat]]
        self._num_actions = {agent: count_actions(self.game, agent) for agent in self._agents}
        looks = [(found[agent], self._num_actions[agent]) for agent in own]
        if any(look != looks[0] for look in looks):
            raise ValueError(f"the seats of {game} have different spaces: choose one with `seat`")
        self.agent = own[0]
        self.observation_space = found[self.agent]
        self.action_space = spaces.Discrete(self._num_actions[self.agent])
        self._mask = np.zeros(int(self.action_space.n), np.int8)
        self._early_reward = 0.0  # from before the agent's first turn
        self._has_begun = self._is_running = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start a game, and play it up to the agent's first turn.

        Raises:
            OpponentError: if an opponent's action is invalid.
            GameError: if the agent never has a turn, or a mask is not what it has to be.
        """
        super().reset(seed=seed)
        self._is_running = False
        seat = self._seat
        if seat is None:
            seat = int(self.np_random.integers(len(self._agents)))
        self.agent = self._agents[seat]
        for _ in range(MAX_TRIES):
            self.game.reset(seed=int(self.np_random.integers(2**31)))
            self._has_begun = True
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
            GameError: if a mask is not what it has to be; likewise.
        """
        check_running(self._is_running)
        index = check_action(action, self._mask, self._name)
        self._is_running = False  # unless all goes well
        self.game.step(index)
        obs, reward, terminated, truncated, info = self._play_others()
        reward, self._early_reward = reward + self._early_reward, 0.0
        self._is_running = not (terminated or truncated)
        return obs, reward, terminated, truncated, info

    def render(self) -> Any:
        """Return what the game renders."""
        if self.render_mode is None:
            return None
        check_begun(self._has_begun)
        return self.game.render()

    def close(self) -> None:
        """Close the game."""
        self.game.close()

    def _play_others(self) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Play up to the agent's turn, and return what it is told."""
        game = self.game
        while (agent := game.agent_selection) != self.agent:
            if self.agent not in game.agents:
                raise GameError(f"{self._name} ended without a last turn of {self.agent}")
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
            mask = self.game.infos.get(agent, {}).get("action_mask")
        if mask is None:
            raise GameError(
                f"{self._name} gives {agent} no action_mask, neither with its observation nor in "
                "its info"
            )
        return as_mask(mask, self._num_actions[agent], f"{agent} of {self._name}")


def as_mask(mask: Any, num_actions: int, player: str) -> np.ndarray:
    """Return a mask as int8, a copy; nothing is rounded.

    Args:
        player: that it is for, with the game's name; for the message.

    Raises:
        GameError: unless it has one 0 or 1 for each action.
    """
    mask = np.asarray(mask)
    if mask.shape != (num_actions,):
        raise GameError(f"the action_mask of {player} has shape {mask.shape}, not ({num_actions},)")
    if mask.dtype.kind not in "biuf":
        raise GameError(f"the action_mask of {player} is of {mask.dtype}, not 0 and 1")
    is_wrong = (mask != 0) & (mask != 1)
    if is_wrong.any():
        at = int(is_wrong.argmax())
        raise GameError(
            f"the action_mask of {player} has {mask[at]} at {at}, which is neither 0 nor 1"
        )
    return mask.astype(np.int8)


def make_game(game: str, kwargs: dict[str, Any]) -> Any:
    """Return an AEC env.

    Raises:
        DependencyNotInstalled: without PettingZoo, or what the game needs.
        ValueError: if there is none of that name.
    """
    pettingzoo = load_pettingzoo()
    known = {
        key.removeprefix("classic/").replace("-v", "_v"): spec
        for key, spec in pettingzoo.aec_registry.items()
        if key.startswith("classic/")
    }
    if game in known:
        try:
            env = known[game].make(**kwargs)
        except ImportError as error:
            is_ours = (error.name or "").partition(".")[0] in ("pygame", "rlcard")
            raise not_installed(error, EXTRA if is_ours else "pettingzoo[classic]") from error
    elif "." in game or ":" in game:
        env = find_maker(game)(**kwargs)
    else:
        raise unknown_game("PettingZoo", game, known)
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


def load_pettingzoo() -> Any:
    """Return PettingZoo.

    Raises:
        DependencyNotInstalled: if it is not installed, or too old.
    """
    pettingzoo: Any = require("pettingzoo")
    if not hasattr(pettingzoo, "aec_registry"):
        raise too_old("pettingzoo", pettingzoo.__version__, OLDEST, EXTRA)
    return pettingzoo


def find_maker(path: str) -> Callable[..., Any]:
    """Return what makes the game of a module, or the class that `module:Class` names.

    A config may come from anywhere, so what it names has to look like a game before it is called.

    Raises:
        ValueError: if there is none, or it does not.
    """
    found = load_named(path)
    if isinstance(found, ModuleType):
        raw = getattr(found, "raw_env", None)
        maker = getattr(found, "env", raw)
        if not callable(raw) or not callable(maker):
            raise ValueError(f"the module {path} has no `raw_env`, as PettingZoo's games have")
        return maker
    if not isinstance(found, type) or not issubclass(found, load_pettingzoo().AECEnv):
        raise ValueError(f"{path} is not a class of AEC envs of PettingZoo, nor a module of one")
    return found


def count_actions(game: Any, agent: str) -> int:
    """Return how many actions an agent has.

    Raises:
        ValueError: if they are not the integers from 0 on.
    """
    space = game.action_space(agent)
    if not isinstance(space, spaces.Discrete) or space.start != 0:
        raise ValueError(f"{game} lets {agent} choose of {space}; a Discrete from 0 is needed")
    return int(space.n)


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
