"""Atari 2600: about a hundred games of the Arcade Learning Environment, with masks.

Needs the package ale-py, which is under the GPL-2 and ships the games: `pip install
'rlmask[atari]'`. One env is `AtariEnv`; `AtariVectorEnv` steps N of them in C++ threads.

## Description
`game` is the name of a game as ale-py spells it, such as `pong` or `space_invaders`. A step holds
an action for `frame_skip` frames. With probability `repeat_action_probability` a frame repeats the
last frame's action instead; 0.25 is what Machado et al. recommend.

## Action Space
`Discrete(18)` in every game, the actions of the console: 0 nothing, 1 fire, 2 up, 3 right, 4 left,
5 down, 6 up right, 7 up left, 8 down right, 9 down left, and 10 to 17 those from 2 on, with fire.

## Action mask
The game's minimal action set, the same in every state; in Pong 0, 1, 3, 4, 11 and 12. It says what
is redundant, not what is against the rules: in almost every state an action outside it does the
same as one inside. They are refused all the same, so that nothing learns from them. Ids mean the
same in every game, and are never numbered anew as in ale-py's smaller action spaces.

## Observation Space
`Box(0, 255, (4, 84, 84), uint8)`: the last four steps, the newest last, in shades of grey. Each is
the brighter of the step's last two frames. Before the first step there is black.

## Rewards
The points of the game as they are. With `reward_clipping` -1, 0 or 1.

## Starting State
That of the game after 0 to `noop_max` - 1 frames of action 0, with `use_fire_reset` also one of
fire, even where fire is not in the mask.

## Episode End
Terminated: the game is over, or with `episodic_life` a life is lost; the next episode is a new game
then too. Truncated: as registered, after 27,000 steps, half an hour of play at a frame skip of 4.

## Arguments
`game`, and those of `make_ale`. For scores that compare with others', say which were used.

## Reference
M. C. Machado et al., Revisiting the Arcade Learning Environment: evaluation protocols and open
problems for general agents, 2018, https://arxiv.org/abs/1709.06009.
"""

import difflib
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from rlmask_envs.actions import check_action, check_integers, refusal
from rlmask_envs.drawing import check_render_mode
from rlmask_envs.envs import check_begun, check_running, time_limit
from rlmask_envs.opponents import require, too_old

EXTRA = "rlmask[atari]"
OLDEST = (0, 12, 1)  # before that, resetting some copies of a vector env hangs
NUM_ACTIONS = 18
FOUR_STEPS = {"stack_num": 4, "img_height": 84, "img_width": 84, "grayscale": True}
SCREEN = {"stack_num": 1, "img_height": 210, "img_width": 160, "grayscale": False}
NO_LIMIT = 2**30  # frames


class AtariVectorEnv(VectorEnv):
    """N copies of an Atari game; `info["action_mask"]` is the minimal action set, [N, 18] int8.

    An episode that ends is followed by the next one within the same step (autoreset mode SameStep):
    `obs` is then the new one's, the end of the old one is in `info["final_obs"]` and
    `info["final_info"]["action_mask"]`, in the rows that `info["_final_obs"]` marks. What happens
    in copy i depends on the seed, i and the actions alone. The state cannot be saved: ale-py has no
    way into its vector env.

    Args:
        game: as ale-py spells it.
        num_envs: N.
        max_episode_steps: an episode is truncated there; None: never.
        **settings: see `make_ale`.

    Raises:
        gymnasium.error.DependencyNotInstalled: if ale-py is not installed.
        ValueError: for a game that there is not, or a setting out of its range.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(
        self,
        game: str,
        num_envs: int = 1,
        *,
        max_episode_steps: int | None = None,
        **settings: Any,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs is {num_envs}; it has to be at least 1")
        mode = AutoresetMode.SAME_STEP
        self._ale: Any = make_ale(game, num_envs, mode, FOUR_STEPS, **settings)
        self.game, self.num_envs = game, num_envs
        self.single_observation_space = self._ale.single_observation_space
        self.single_action_space = spaces.Discrete(NUM_ACTIONS)
        self.observation_space = self._ale.observation_space
        self.action_space = self._ale.action_space
        self._mask = minimal_mask(game)
        self._max_steps = time_limit(max_episode_steps)
        self._lengths = np.zeros(num_envs, np.int64)
        self._is_seeded = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode in every copy; without a seed, go on drawing from the streams."""
        if self._ale is None:
            raise gym.error.ClosedEnvironmentError("the env has been closed")
        seeds = None
        if seed is not None or not self._is_seeded:
            # not seed + i, as ale-py has it: neighbouring seeds would share their copies
            seeds = np.random.SeedSequence(seed).generate_state(self.num_envs).astype(np.int64) >> 1
            self._is_seeded = True
        self._lengths[:] = 0
        obs, info = self._ale.reset(seed=seeds)
        return obs, {"lives": info["lives"], "action_mask": self._masks()}

    def step(
        self, actions: Any
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Take an action [N] in every copy.

        Raises:
            InvalidActionError: if the mask rules one out; then no copy has moved.
            ValueError: if there is not one integer a copy.
        """
        actions = check_integers(actions, self.num_envs)
        check_running(self._is_seeded)
        is_valid = np.isin(actions, self._mask.nonzero()[0])
        if not is_valid.all():  # ale-py waits forever for a copy that was given what is no action
            index = int(is_valid.argmin())
            raise refusal(self.game, index, actions[index], self._mask)
        obs, rewards, terminated, _, ale_info = self._ale.step(actions.astype(np.int64))
        self._lengths += 1
        truncated = ~terminated & (self._lengths >= self._max_steps)
        ended = terminated | truncated
        info: dict[str, Any] = {}
        if ended.any():
            final_obs = np.zeros_like(obs)
            if terminated.any():
                final_obs[terminated] = ale_info["final_obs"][terminated]
            if truncated.any():
                # ale-py's own limit would not do: its last observation lacks the newest frame
                final_obs[truncated] = obs[truncated]
                obs, ale_info = self._ale.reset(options={"reset_mask": truncated})
            self._lengths[ended] = 0
            info = {"final_obs": final_obs, "final_info": {"action_mask": self._masks()}}
            info["_final_obs"] = info["_final_info"] = ended
        info |= {"lives": ale_info["lives"], "action_mask": self._masks()}
        return obs, rewards.astype(np.float64), terminated, truncated, info

    def close_extras(self, **kwargs: Any) -> None:
        """End the emulators and their threads."""
        self._ale, self._is_seeded = None, False

    def _masks(self) -> np.ndarray:
        return np.tile(self._mask, (self.num_envs, 1))


class AtariEnv(gym.Env):
    """An Atari game as an ordinary Gymnasium env; `info["action_mask"]` is its mask, int8.

    The time limit is Gymnasium's wrapper, as `gymnasium.make` puts it on. A reset with a seed makes
    ale-py build its emulator anew, which takes 70 ms, as long as 200 steps; rlmask seeds every
    episode. Its `vectorization: native`, which takes `AtariVectorEnv`, is the fast way.

    Args:
        game: as ale-py spells it.
        render_mode: `rgb_array`, the screen in colour; that plays the game twice over.
        **settings: see `make_ale`.

    Raises:
        gymnasium.error.DependencyNotInstalled: if ale-py is not installed.
        ValueError: for a game that there is not, or a setting out of its range.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012

    def __init__(self, game: str, *, render_mode: str | None = None, **settings: Any) -> None:
        check_render_mode(render_mode, self.metadata["render_modes"])
        # of two that are seeded alike, one is looked at by the agent, one by people
        pictures = (FOUR_STEPS,) if render_mode is None else (FOUR_STEPS, SCREEN)
        mode = AutoresetMode.NEXT_STEP  # which leaves an ended episode alone until it is reset
        self._ales = [make_ale(game, 1, mode, picture, **settings) for picture in pictures]
        self.render_mode = render_mode
        self.game = game
        self.observation_space = self._ales[0].single_observation_space
        self.action_space = spaces.Discrete(NUM_ACTIONS)
        self._mask = minimal_mask(game)
        self._screen = np.empty(0, np.uint8)
        self._is_seeded = self._is_running = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode; without a seed, go on drawing from the stream."""
        if not self._ales:
            raise gym.error.ClosedEnvironmentError("the env has been closed")
        super().reset(seed=seed)
        seeds = None
        if seed is not None or not self._is_seeded:
            seeds = self.np_random.integers(2**31, size=1)
        self._is_seeded = self._is_running = True
        (obs, info), *others = [ale.reset(seed=seeds) for ale in self._ales]
        self._screen = others[0][0] if others else self._screen
        return obs[0], self._info(info)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take an action.

        Raises:
            InvalidActionError: if the mask rules it out; the state is then as it was.
        """
        check_running(self._is_running)
        actions = np.array([check_action(action, self._mask, self.game)], np.int64)
        (obs, reward, ended, _, info), *others = [ale.step(actions) for ale in self._ales]
        self._screen = others[0][0] if others else self._screen
        terminated = bool(ended[0])
        self._is_running = not terminated
        return obs[0], float(reward[0]), terminated, False, self._info(info)

    def render(self) -> np.ndarray | None:
        """Return the screen, [210, 160, 3]."""
        if self.render_mode is None:
            return None
        check_begun(bool(self._screen.size))
        return self._screen[0, 0].copy()

    def close(self) -> None:
        """End the emulators and their threads."""
        self._ales, self._is_running = [], False

    def _info(self, ale_info: Mapping[str, Any]) -> dict[str, Any]:
        return {"lives": int(ale_info["lives"][0]), "action_mask": self._mask.copy()}


def make_ale(
    game: str,
    num_envs: int,
    autoreset_mode: AutoresetMode,
    picture: Mapping[str, Any],
    *,
    num_threads: int | None = None,
    reward_clipping: bool = False,
    repeat_action_probability: float = 0.25,
    frame_skip: int = 4,
    noop_max: int = 30,
    use_fire_reset: bool = False,
    episodic_life: bool = False,
) -> Any:
    """Return ale-py's vector env with all 18 actions and without a time limit.

    Args:
        picture: size and colour of the observations.
        num_threads: that share the copies, never more than these; None: at most one a core.
        reward_clipping: rewards of -1, 0 and 1 only; ale-py does it unless told otherwise.
        repeat_action_probability: that a frame repeats the action of the last one.
        frame_skip: frames a step.
        noop_max: an episode starts after fewer than so many frames of action 0.
        use_fire_reset: an episode starts with a frame of fire.
        episodic_life: an episode ends with a life, and a new game begins.

    Raises:
        gymnasium.error.DependencyNotInstalled: if ale-py is not installed.
        ValueError: for a game that there is not, or a setting out of its range.
    """
    load_ale()  # or say how to get it
    names = playable_games()
    if game not in names:
        near = " or ".join(difflib.get_close_matches(str(game), names)) or "pong"
        raise ValueError(f"ale-py has no game {game!r} for one player; did you mean {near}?")
    if num_threads is not None and num_threads < 1:
        raise ValueError(f"num_threads is {num_threads}; it has to be at least 1")
    if not 0 <= repeat_action_probability <= 1:
        raise ValueError(
            f"repeat_action_probability is {repeat_action_probability}; it takes 0 to 1"
        )
    if frame_skip < 1 or noop_max < 0:
        text = f"frame_skip is {frame_skip} and noop_max {noop_max}; they take 1 and 0, or more"
        raise ValueError(text)
    return vector_class()(
        game,
        num_envs,
        num_threads=min(num_threads or 0, num_envs),  # 0: ale-py's choice
        max_num_frames_per_episode=NO_LIMIT,
        repeat_action_probability=repeat_action_probability,
        full_action_space=True,
        autoreset_mode=autoreset_mode,
        frameskip=frame_skip,
        noop_max=noop_max,
        episodic_life=episodic_life,
        reward_clipping=reward_clipping,
        use_fire_reset=use_fire_reset,
        **picture,
    )


@cache
def vector_class() -> Any:
    """Return ale-py's vector env with metadata of its own.

    It writes its autoreset mode there, and would do so into what all vector envs share.
    """
    return type("OwnMetadata", (load_ale().AtariVectorEnv,), {"metadata": {}})


@cache
def playable_games() -> tuple[str, ...]:
    """Return the names of all games; ale-py ends the process on the few that need two players."""
    ale_py = load_ale()
    path, is_supported = ale_py.roms.get_rom_path, ale_py.ALEInterface.isSupportedROM
    return tuple(name for name in ale_py.roms.get_all_rom_ids() if is_supported(path(name)))


@cache
def minimal_mask(game: str) -> np.ndarray:
    """Return the minimal action set of a game as a mask over all 18 actions, int8, read-only."""
    ale_py = load_ale()
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    ale = ale_py.ALEInterface()
    ale.loadROM(ale_py.roms.get_rom_path(game))
    mask = np.zeros(NUM_ACTIONS, np.int8)
    mask[[action.value for action in ale.getMinimalActionSet()]] = 1
    mask.setflags(write=False)
    return mask


def load_ale() -> Any:
    """Return ale-py.

    Raises:
        gymnasium.error.DependencyNotInstalled: if it is not installed, or too old.
    """
    ale_py: Any = require("ale_py", EXTRA)
    version = tuple(int(part) for part in re.findall(r"\d+", ale_py.__version__)[:3])
    if version < OLDEST:
        raise too_old("ale-py", ale_py.__version__, ".".join(map(str, OLDEST)), EXTRA)
    return ale_py
