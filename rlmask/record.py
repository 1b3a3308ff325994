"""Videos of a policy at play."""

import os
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from rlmask.types import Policy
from rlmask.vector import Game, MaskedEnv, join
from rlmask.vector.spaces import explain_make
from rlmask.vector.vectorize import mask_tensor, obs_tensor

MAX_FRAMES = 2000


class VideoError(ValueError):
    """A video cannot be made."""


def check_video_path(path: Path) -> None:
    """Check that a video can be written there.

    Raises:
        VideoError: if its ending is unknown, its folder missing, or the extra for it not installed.
    """
    if path.suffix not in (".gif", ".mp4"):
        raise VideoError(f"{path}: a video ends in .gif or .mp4")
    if not path.parent.is_dir():
        raise VideoError(f"{path}: there is no folder {path.parent}")
    if path.suffix == ".mp4" and not (find_spec("imageio") and find_spec("imageio_ffmpeg")):
        raise VideoError("an .mp4 needs the extra: pip install 'rlmask[video]'; a .gif does not")


def record_video(
    games: tuple[Game, ...], num_actions: int | None, policy: Policy, path: Path, seed: int
) -> None:
    """Play one episode of each game and write its frames, one game after the other.

    Args:
        games: to be played.
        num_actions: size of their union, see `rlmask.vector.join`.
        path: ends in .gif, or in .mp4 (needs the extra `video`).
        seed: of the episodes.

    Raises:
        VideoError: see `check_video_path`; or if an env renders no images.
    """
    check_video_path(path)
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame draws without a screen
    spec = join(games, num_actions)
    frames: list[np.ndarray] = []
    frames_per_second = 8
    for index, game in enumerate(spec.games):
        with warnings.catch_warnings(), explain_make(game.env_id):
            warnings.simplefilter("ignore")  # what Gymnasium says of render modes, we say below
            env = MaskedEnv(spec, index, seed, stream=1, render_mode="rgb_array")
            try:
                if "rgb_array" not in env.env.metadata.get("render_modes", ()):
                    raise VideoError(f"{game.env_id} has no render_mode `rgb_array`")
                frames_per_second = int(env.env.metadata.get("render_fps", frames_per_second))
                frames += play(env, policy)
            finally:
                env.close()
    frames = pad(frames)
    if path.suffix == ".mp4":
        write_mp4(path, frames, frames_per_second)
        return
    first, *others = [Image.fromarray(frame) for frame in frames]
    milliseconds = 1000 // frames_per_second
    first.save(path, save_all=True, append_images=others, duration=milliseconds, loop=0)


def play(env: MaskedEnv, policy: Policy) -> list[np.ndarray]:
    """Return the frames of one episode, the final state's among them."""
    obs, mask = env.reset()
    for _ in range(MAX_FRAMES):
        obs, mask = obs_tensor(env.spec, [obs]), mask_tensor(env.spec, [mask])
        (action,) = policy(obs, mask).tolist()
        obs, mask, *_, ended = env.step(action)
        if ended is not None:
            return env.frames()[:-1]  # the last shows the next episode
    return env.frames()


def pad(frames: list[np.ndarray]) -> list[np.ndarray]:
    """Bring frames to the size of the largest, even in both axes as video codecs want it."""
    height = max(frame.shape[0] for frame in frames)
    width = max(frame.shape[1] for frame in frames)
    height, width = height + height % 2, width + width % 2
    padded = []
    for frame in frames:
        canvas = np.zeros((height, width, 3), np.uint8)
        canvas[: frame.shape[0], : frame.shape[1]] = frame[..., :3]
        padded.append(canvas)
    return padded


def write_mp4(path: Path, frames: list[np.ndarray], frames_per_second: int) -> None:
    """Write frames of one size as an MP4; needs the extra `video`."""
    import imageio.v3

    imageio.v3.imwrite(
        path, np.stack(frames), fps=frames_per_second, codec="libx264", macro_block_size=1
    )
