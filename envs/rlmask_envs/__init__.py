"""Fast games with real action masks: `gymnasium.make("rlmask_envs:rlmask/Snake-v0")`.

Each game is one module of rules; see `rlmask_envs.rules` for what that is, and its docstring for
what the game is. Registered are a single env and a vector env that steps N copies in one call.
"""

import gymnasium

from rlmask_envs.actions import InvalidActionError
from rlmask_envs.envs import GameEnv, GameVectorEnv
from rlmask_envs.rules import Setup


def register(env_id: str, game: str, max_episode_steps: int | None = None) -> None:
    """Make a game known to Gymnasium.

    Args:
        env_id: such as `rlmask/Snake-v0`.
        game: name of the module with its rules, such as `rlmask_envs.snake`; imported when made.
        max_episode_steps: an episode is truncated there; None: never.
    """
    gymnasium.register(
        env_id,
        entry_point="rlmask_envs.envs:GameEnv",
        vector_entry_point="rlmask_envs.envs:GameVectorEnv",
        max_episode_steps=max_episode_steps,
        kwargs={"game": game},
    )


register("rlmask/Snake-v0", "rlmask_envs.snake", 1000)
register("rlmask/Game2048-v0", "rlmask_envs.game2048")
register("rlmask/Sokoban-v0", "rlmask_envs.sokoban", 120)
register("rlmask/Tetris-v0", "rlmask_envs.tetris", 5000)
register("rlmask/Courier-v0", "rlmask_envs.courier", 200)
register("rlmask/Minesweeper-v0", "rlmask_envs.minesweeper")
register("rlmask/ConnectFour-v0", "rlmask_envs.connect_four")
register("rlmask/Othello-v0", "rlmask_envs.othello")
register("rlmask/CVRP-v0", "rlmask_envs.cvrp")
register("rlmask/JobShop-v0", "rlmask_envs.job_shop")
register("rlmask/TMaze-v0", "rlmask_envs.tmaze", 200)
register("rlmask/Adventure-v0", "rlmask_envs.adventure", 50)

# hides the mask of another env; the limit counts invalid actions too
gymnasium.register("rlmask/Unmasked-v0", "rlmask_envs.unmasked:UnmaskedEnv", max_episode_steps=200)

# games of other packages, which are imported when one is made
for _name in ("Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders"):
    gymnasium.register(
        f"rlmask/MinAtar{_name}-v0",
        entry_point="rlmask_envs.minatar:MinAtarEnv",
        max_episode_steps=5000,  # Freeway lasts 2,500; the others may go on for ever
        kwargs={"game": "space_invaders" if _name == "SpaceInvaders" else _name.lower()},
    )
gymnasium.register(
    "rlmask/Atari-v0",
    entry_point="rlmask_envs.atari:AtariEnv",
    vector_entry_point="rlmask_envs.atari:AtariVectorEnv",
    max_episode_steps=27_000,  # 108,000 frames
    kwargs={"game": "pong"},
)
gymnasium.register("rlmask/OpenSpiel-v0", "rlmask_envs.open_spiel:OpenSpielEnv")
gymnasium.register("rlmask/PettingZoo-v0", "rlmask_envs.pettingzoo:PettingZooEnv")

__all__ = ["GameEnv", "GameVectorEnv", "InvalidActionError", "Setup", "register"]
