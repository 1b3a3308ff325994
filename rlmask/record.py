"""Videos of a policy at play."""

import math
import os
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rlmask.types import Policy, forget
from rlmask.vector import Game, MaskedEnv, game_names, join, short_names
from rlmask.vector.spaces import explain_make
from rlmask.vector.vectorize import mask_tensor, obs_tensor

MAX_FRAMES = 2000
FRAMES_PER_SECOND = 8  # where an env does not say
TILE, CAPTION, GAP = 220, 30, 8  # pixels of a game's place in a grid
BACKGROUND, INK = (22, 24, 29), (230, 232, 236)


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
    """Play one episode of each game, all at the same time, and write a picture a step.

    Several games are tiles of one picture, each with its name and the return so far.

    Args:
        games: to be played.
        num_actions: size of their union, see `rlmask.vector.join`.
        policy: gets a row of each game at every step.
        path: ends in .gif, or in .mp4 (needs the extra `video`).
        seed: of the episodes.

    Raises:
        VideoError: see `check_video_path`; or if an env renders no images.
        OSError: if the file cannot be written; one of that name stays as it was.
    """
    check_video_path(path)
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame draws without a screen
    spec = join(games, num_actions)
    envs: list[MaskedEnv] = []
    try:
        for index, game in enumerate(spec.games):
            with warnings.catch_warnings(), explain_make(game.env_id):
                warnings.simplefilter("ignore")  # what Gymnasium says of render modes, we say below
                env = MaskedEnv(spec, index, seed, stream=1, render_mode="rgb_array")
            envs.append(env)
            if "rgb_array" not in env.env.metadata.get("render_modes", ()):
                raise VideoError(f"{game.env_id} has no render_mode `rgb_array`")
        rates = [env.env.metadata.get("render_fps", FRAMES_PER_SECOND) for env in envs]
        returns = play(envs, policy)
        tiles = [env.frames()[: len(sums)] for env, sums in zip(envs, returns, strict=True)]
    finally:
        for env in envs:
            env.close()
    frames = tiles[0]
    if len(games) > 1:
        frames = grid(tiles, short_names(game_names(spec.games)), returns)
    write_video(path, pad(frames), int(min(rates)))


def play(envs: list[MaskedEnv], policy: Policy) -> list[list[float]]:
    """Play an episode in every env; return what was gained before each of its frames.

    An env that is done keeps its last row, of which the policy's action is not taken.
    """
    seen = [env.reset() for env in envs]
    forget(policy)
    returns = [[0.0] for _ in envs]
    running = set(range(len(envs)))
    for _ in range(MAX_FRAMES - 1):
        obs = obs_tensor(envs[0].spec, [obs for obs, _ in seen])
        masks = mask_tensor(envs[0].spec, [mask for _, mask in seen])
        actions = policy(obs, masks).tolist()
        for index in sorted(running):
            env = envs[index]
            obs, mask, reward, *_, ended = env.step(actions[index])
            returns[index].append(returns[index][-1] + float(reward))
            if ended is None:
                seen[index] = obs, mask
            else:
                running.remove(index)
        if not running:
            break
    return returns


def grid(
    tiles: list[list[np.ndarray]], names: list[str], returns: list[list[float]]
) -> list[np.ndarray]:
    """Return pictures of all games side by side; one that is over stays, dimmed."""
    columns = math.ceil(math.sqrt(len(tiles)))
    rows = -(-len(tiles) // columns)
    font = ImageFont.load_default(size=15)
    frames = []
    for step in range(max(map(len, tiles))):
        canvas = Image.new("RGB", (columns * TILE, rows * (TILE + CAPTION)), BACKGROUND)
        draw = ImageDraw.Draw(canvas)
        for index, (own, name) in enumerate(zip(tiles, names, strict=True)):
            at = min(step, len(own) - 1)
            is_over = step >= len(own)
            left, top = index % columns * TILE, index // columns * (TILE + CAPTION)
            tile = Image.fromarray(own[at][..., :3])
            scale = (TILE - 2 * GAP) / max(tile.size)
            size = [max(1, round(side * scale)) for side in tile.size]
            tile = tile.resize((size[0], size[1]), Image.Resampling.LANCZOS)
            if is_over:
                tile = Image.blend(tile, Image.new("RGB", tile.size, BACKGROUND), 0.6)
            place = left + (TILE - size[0]) // 2, top + CAPTION + (TILE - size[1]) // 2
            canvas.paste(tile, place)
            said = (
                f"{returns[index][at]:,.4g}"
                if abs(returns[index][at]) < 1000
                else f"{returns[index][at]:,.0f}"
            )
            draw.text((left + GAP, top + 7), name, fill=INK, font=font)
            text = f"{said}, done" if is_over else said
            draw.text((left + TILE - GAP, top + 7), text, fill=INK, font=font, anchor="ra")
        frames.append(np.asarray(canvas))
    return frames


def write_video(path: Path, frames: list[np.ndarray], frames_per_second: int) -> None:
    """Write frames of one size as a GIF or an MP4, under another name until it is whole.

    Raises:
        OSError: if it cannot be written.
    """
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        if path.suffix == ".mp4":
            write_mp4(partial, frames, frames_per_second)
        else:
            some = frames[:: max(1, len(frames) // 8)]  # their colours are those of all
            colors = Image.fromarray(np.concatenate(some)).quantize(255)
            first, *others = [
                Image.fromarray(f).quantize(palette=colors, dither=Image.Dither.NONE)
                for f in frames
            ]
            milliseconds = 1000 // frames_per_second
            first.save(partial, save_all=True, append_images=others, duration=milliseconds, loop=0)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


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
