"""Gantt charts of job-shop schedules: a row a machine, a colour a job."""

import colorsys
from collections.abc import Sequence

import numpy as np

from rlmask_envs import drawing

MARGIN, TITLE_HEIGHT, ROW_HEIGHT, CHIP_HEIGHT = 1.5, 1.4, 0.8, 1.1
WIDTH, CHIPS = 21, 20  # of the time axis; chips of jobs in a row
TRACK = (236, 233, 224)  # colour of a machine that does nothing


def chart(
    bars: Sequence[tuple[int, int, int, int]],
    num_machines: int,
    shares: Sequence[float],
    makespan: int,
    reach: float,
) -> np.ndarray:
    """Return a picture of a schedule.

    Args:
        bars: (job, machine, start, end).
        num_machines: m.
        shares: how much of each job is scheduled, 0 to 1.
        makespan: where to draw a line.
        reach: the axis goes at least that far.
    """
    foot = TITLE_HEIGHT + num_machines * ROW_HEIGHT
    height = foot + 1.5 + CHIP_HEIGHT * -(-len(shares) // CHIPS)
    picture = drawing.blank(height, WIDTH + 2 * MARGIN)
    drawing.write(picture, TITLE_HEIGHT / 2, MARGIN + WIDTH / 2, f"makespan {makespan}", height=0.5)
    for machine in range(num_machines):
        y = TITLE_HEIGHT + machine * ROW_HEIGHT
        drawing.rectangle(picture, y + 0.06, MARGIN, ROW_HEIGHT - 0.12, WIDTH, TRACK)
        drawing.write(picture, y + ROW_HEIGHT / 2, MARGIN / 2, f"M{machine}", height=0.35)
    tick = tick_for(reach)
    horizon = tick * -(-int(reach) // tick)
    scale = WIDTH / horizon
    for time in range(0, horizon + 1, tick):
        x = MARGIN + time * scale
        drawing.line(picture, (TITLE_HEIGHT, x), (foot + 0.15, x), drawing.GRID)
        drawing.write(picture, foot + 0.45, x, str(time), height=0.35)
    for job, machine, start, end in bars:
        y, x = TITLE_HEIGHT + machine * ROW_HEIGHT, MARGIN + start * scale
        width, color = (end - start) * scale, job_color(job)
        drawing.rectangle(picture, y + 0.06, x, ROW_HEIGHT - 0.12, max(width - 0.04, 0.04), color)
        if width > 0.3 * len(str(job)):
            drawing.write(picture, y + ROW_HEIGHT / 2, x + width / 2, str(job), ink_on(color), 0.35)
    x = MARGIN + makespan * scale
    drawing.line(picture, (TITLE_HEIGHT - 0.1, x), (foot + 0.15, x), drawing.INK, 0.06)
    for job, share in enumerate(shares):
        y, x = foot + 1.2 + CHIP_HEIGHT * (job // CHIPS), MARGIN + WIDTH / CHIPS * (job % CHIPS)
        draw_chip(picture, y, x + 0.05, job, share)
    return picture


def draw_chip(picture: np.ndarray, y: float, x: float, job: int, share: float) -> None:
    """Draw the number and colour of a job, and below them how much of it is scheduled."""
    color = job_color(job)
    drawing.rectangle(picture, y, x, 0.7, 0.95, color)
    drawing.write(picture, y + 0.35, x + 0.475, str(job), ink_on(color), 0.35)
    drawing.rectangle(picture, y + 0.76, x, 0.14, 0.95, drawing.GRID)
    drawing.rectangle(picture, y + 0.76, x, 0.14, 0.95 * share, color)


def tick_for(reach: float) -> int:
    """Return the least of 1, 2, 5, 10, 20, ... of which fewer than 12 reach that far."""
    ticks = (digit * 10**power for power in range(9) for digit in (1, 2, 5))
    return next(tick for tick in ticks if 12 * tick > reach)


def job_color(job: int) -> drawing.Color:
    """Return a colour that is far from those of the jobs before it."""
    hue = job * 0.618034 % 1  # the golden ratio
    light = (0.52, 0.36, 0.70)[job % 3]
    return tuple(round(255 * value) for value in colorsys.hls_to_rgb(hue, light, 0.55))


def ink_on(color: drawing.Color) -> drawing.Color:
    """Return a colour for what is written on another."""
    return drawing.WHITE if np.dot(color, (0.3, 0.59, 0.11)) < 140 else drawing.BLACK
