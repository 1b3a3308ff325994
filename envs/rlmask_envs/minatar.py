"""MinAtar: five Atari games in small, on 10 x 10 cells.

Needs the package MinAtar, which is under the GPL-3: `pip install 'rlmask[minatar]'`.

## Description
Asterix, Breakout, Freeway, Seaquest and Space Invaders, with the rules of the package unchanged.
With probability `sticky_action_prob` a step repeats the last step's action instead of the chosen
one; at the start of an episode that is action 0.

## Action Space
`Discrete(6)` in every game: 0 nothing, 1 left, 2 up, 3 right, 4 down, 5 fire.

## Action mask
The game's minimal action set, the same in every state. It says what is redundant, not what is
against the rules: in this game the other actions do the same as 0. They are refused all the same,
so that nothing learns from them. Ids mean the same in every game, and are never numbered anew.

| game | valid |
|---|---|
| asterix | 0, 1, 2, 3, 4 |
| breakout | 0, 1, 3 |
| freeway | 0, 2, 4 |
| seaquest | all |
| space_invaders | 0, 1, 3, 5 |

## Observation Space
`Box(0, 255, (10, 10, C), uint8)`: a plane for each kind of thing, 255 where one is and 0 elsewhere.
C is 4 in asterix and breakout, 7 in freeway, 10 in seaquest, 6 in space_invaders.

## Rewards
The points of the game, mostly 1 each; never clipped.

## Starting State
That of the game. The seed of `reset` says all that happens in the episode.

## Episode End
Terminated: the game is lost, or 2,500 steps of freeway are over. Truncated: as registered, after
5,000 steps, twice freeway's own limit; the other games have none, and a good player may never lose.

## Arguments
`game`; `sticky_action_prob` (0.1); `difficulty_ramping` (True: the game becomes faster in time).

## Reference
K. Young and T. Tian, MinAtar: An Atari-inspired testbed for thorough and reproducible reinforcement
learning experiments, 2019, https://arxiv.org/abs/1903.03176.
"""

import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from rlmask_envs import drawing
from rlmask_envs.actions import check_action
from rlmask_envs.envs import RENDER_MODES, check_begun, check_running

GAMES = ("asterix", "breakout", "freeway", "seaquest", "space_invaders")
NUM_ACTIONS = 6

# Letter, colour and margin in its cell of each kind of thing; what is further down is on top.
LOOKS = {
    "trail": (",", drawing.GRID, 0.2),
    "speed1": ("1", drawing.GREY, 0.2),
    "speed2": ("2", drawing.GREY, 0.25),
    "speed3": ("3", drawing.GREY, 0.3),
    "speed4": ("4", drawing.GREY, 0.35),
    "speed5": ("5", drawing.GREY, 0.4),
    "oxygen_guage": ("=", drawing.TEAL, 0.08),
    "diver_guage": ("+", drawing.YELLOW, 0.08),
    "brick": ("#", drawing.ORANGE, 0.04),
    "car": ("C", drawing.RED, 0.08),
    "alien": ("A", drawing.PURPLE, 0.08),
    "alien_left": ("<", drawing.PINK, 0.35),
    "alien_right": (">", drawing.YELLOW, 0.35),
    "gold": ("*", drawing.YELLOW, 0.2),
    "enemy": ("E", drawing.RED, 0.08),
    "enemy_fish": ("F", drawing.ORANGE, 0.08),
    "enemy_sub": ("E", drawing.RED, 0.08),
    "diver": ("D", drawing.YELLOW, 0.2),
    "paddle": ("P", drawing.GREEN, 0.08),
    "cannon": ("P", drawing.GREEN, 0.08),
    "chicken": ("P", drawing.GREEN, 0.08),
    "player": ("P", drawing.GREEN, 0.08),
    "sub_back": ("p", drawing.GREEN, 0.2),
    "sub_front": ("P", drawing.GREEN, 0.08),
    "friendly_bullet": ("o", drawing.BLUE, 0.3),
    "enemy_bullet": ("x", drawing.RED, 0.3),
    "ball": ("O", drawing.BLUE, 0.2),
}


class MinAtarEnv(gym.Env):
    """A game of MinAtar; `info["action_mask"]` is its minimal action set, int8.

    The time limit is Gymnasium's wrapper, as `gymnasium.make` puts it on.

    Args:
        game: one of `GAMES`.
        sticky_action_prob: probability that a step repeats the action of the last one.
        difficulty_ramping: let the game become faster, where it does.
        render_mode: `rgb_array` or `ansi`.

    Raises:
        gymnasium.error.DependencyNotInstalled: if MinAtar is not installed.
        ValueError: for a game that there is not, or what is no probability.
    """

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": 8}  # noqa: RUF012

    def __init__(
        self,
        game: str,
        *,
        sticky_action_prob: float = 0.1,
        difficulty_ramping: bool = True,
        render_mode: str | None = None,
    ) -> None:
        if game not in GAMES:
            raise ValueError(f"game is {game!r}; it takes {', '.join(GAMES)}")
        if not 0 <= sticky_action_prob <= 1:
            raise ValueError(f"sticky_action_prob is {sticky_action_prob}; it takes 0 to 1")
        drawing.check_render_mode(render_mode, RENDER_MODES)
        self.render_mode = render_mode
        self.game = game
        self._rules = load_rules(game).Env(ramping=difficulty_ramping)
        self._sticky_action_prob = sticky_action_prob
        self._mask = np.zeros(NUM_ACTIONS, np.int8)
        self._mask[self._rules.minimal_action_set()] = 1
        self._last_action = 0
        self._has_begun = self._is_running = False
        shape = tuple(self._rules.state_shape())
        self.observation_space = spaces.Box(0, 255, shape, np.uint8)
        self.action_space = spaces.Discrete(NUM_ACTIONS)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode."""
        super().reset(seed=seed)
        # Each episode has its own stream, and begins with action 0: MinAtar's own wrapper lets the
        # last action of an episode stick into the next one, which a seed could not reproduce.
        self._rules.random = np.random.RandomState(int(self.np_random.integers(2**32)))
        self._last_action = 0
        self._rules.reset()
        self._has_begun = self._is_running = True
        return self._observe()

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take an action.

        Raises:
            InvalidActionError: if the mask rules it out; the state is then as it was.
        """
        check_running(self._is_running)
        action = check_action(action, self._mask, self.game)
        if self._rules.random.rand() < self._sticky_action_prob:
            action = self._last_action
        self._last_action = action
        reward, terminated = self._rules.act(action)
        self._is_running = not terminated
        obs, info = self._observe()
        return obs, float(reward), bool(terminated), False, info

    def render(self) -> Any:
        """Return a picture or a text of the state."""
        if self.render_mode is None:
            return None
        check_begun(self._has_begun)
        state, channels = self._rules.state(), self._rules.channels
        is_picture = self.render_mode == "rgb_array"
        picture = drawing.board(*state.shape[:2]) if is_picture else np.empty(0)
        letters = np.full(state.shape[:2], ".")
        for name, (letter, color, margin) in LOOKS.items():
            if name in channels:
                plane = state[:, :, channels[name]]
                letters[plane] = letter
                for y, x in np.argwhere(plane) if is_picture else ():
                    drawing.cell(picture, y, x, color, margin)
        return picture if is_picture else "\n".join("".join(row) for row in letters)

    def _observe(self) -> tuple[np.ndarray, dict[str, Any]]:
        obs = self._rules.state().astype(np.uint8)
        obs *= 255
        return obs, {"action_mask": self._mask.copy()}


@cache
def load_rules(game: str) -> ModuleType:
    """Return the module of MinAtar with the rules of a game.

    It is loaded by its path: `import minatar` would import pyplot and seaborn first, which takes
    seconds in each process and logs a complaint where they are not installed.

    Raises:
        gymnasium.error.DependencyNotInstalled: if MinAtar is not installed.
    """
    package = importlib.util.find_spec("minatar")
    if package is None or not package.submodule_search_locations:
        raise gym.error.DependencyNotInstalled(
            "no module named 'minatar'; pip install 'rlmask[minatar]'"
        )
    path = Path(package.submodule_search_locations[0], "environments", f"{game}.py")
    spec = importlib.util.spec_from_file_location(f"minatar.environments.{game}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
