"""The figures in the pictures of Courier and Sokoban; `y` and `x` are those of a cell."""

from rlmask_envs import drawing

STONE, BRICK, MORTAR = (92, 92, 100), (128, 118, 112), (104, 95, 90)
FLOOR = (236, 230, 216)
BOX, TAPE = (205, 150, 84), (240, 214, 160)


def door(picture, y, x, color):
    """Draw a door with a keyhole, in the wall."""
    drawing.cell(picture, y, x, STONE, 0)
    drawing.cell(picture, y, x, color, 0.1)
    drawing.dot(picture, y + 0.42, x + 0.5, drawing.INK, 0.12)
    drawing.line(picture, (y + 0.45, x + 0.5), (y + 0.7, x + 0.5), drawing.INK, 0.1)


def key(picture, y, x, color):
    """Draw a key: bow, shaft and bit."""
    drawing.line(picture, (y + 0.5, x + 0.3), (y + 0.5, x + 0.84), color, 0.12)
    drawing.line(picture, (y + 0.5, x + 0.66), (y + 0.68, x + 0.66), color, 0.1)
    drawing.line(picture, (y + 0.5, x + 0.82), (y + 0.68, x + 0.82), color, 0.1)
    drawing.dot(picture, y + 0.5, x + 0.3, color, 0.2)
    drawing.dot(picture, y + 0.5, x + 0.3, drawing.WHITE, 0.09)


def flag(picture, y, x):
    """Draw a flag on a pole."""
    for line in range(8):
        top = y + 0.14 + 0.04 * line
        end = x + 0.74 - 0.06 * abs(line - 3.5)
        drawing.line(picture, (top, x + 0.3), (top, end), drawing.GREEN, 0.06)
    drawing.line(picture, (y + 0.12, x + 0.28), (y + 0.86, x + 0.28), drawing.INK, 0.08)


def parcel(picture, y, x, reach):
    """Draw a parcel around a point."""
    drawing.rectangle(picture, y - reach, x - reach, 2 * reach, 2 * reach, drawing.INK)
    inner = reach - 0.04
    drawing.rectangle(picture, y - inner, x - inner, 2 * inner, 2 * inner, BOX)
    drawing.rectangle(picture, y - inner, x - 0.05, 2 * inner, 0.1, TAPE)


def courier(picture, y, x):
    """Draw a head with a cap."""
    drawing.disc(picture, y, x, drawing.INK, 0.36)
    drawing.disc(picture, y, x, drawing.YELLOW, 0.32)
    drawing.line(picture, (y + 0.3, x + 0.3), (y + 0.3, x + 0.7), drawing.TEAL, 0.24)
    drawing.disc(picture, y + 0.04, x - 0.12, drawing.INK, 0.05)
    drawing.disc(picture, y + 0.04, x + 0.12, drawing.INK, 0.05)


def wall(picture, y, x):
    """Draw two courses of bricks."""
    drawing.cell(picture, y, x, MORTAR, 0)
    for course, left, width in ((0, 0, 0.47), (0, 0.53, 0.47), (1, 0, 0.22), (1, 0.28, 0.72)):
        drawing.rectangle(picture, y + 0.5 * course, x + left, 0.44, width, BRICK)


def goal(picture, y, x):
    """Draw a ring around a dot."""
    drawing.disc(picture, y, x, drawing.RED, 0.28)
    drawing.disc(picture, y, x, FLOOR, 0.2)
    drawing.disc(picture, y, x, drawing.RED, 0.1)


def crate(picture, y, x, color, edge):
    """Draw a box with a frame and a cross."""
    drawing.cell(picture, y, x, edge, 0.06)
    drawing.cell(picture, y, x, color, 0.16)
    drawing.line(picture, (y + 0.22, x + 0.22), (y + 0.78, x + 0.78), edge, 0.1)
    drawing.line(picture, (y + 0.22, x + 0.78), (y + 0.78, x + 0.22), edge, 0.1)


def worker(picture, y, x, edge):
    """Draw a head with eyes."""
    drawing.disc(picture, y, x, edge, 0.42)
    drawing.disc(picture, y, x, drawing.BLUE, 0.36)
    drawing.disc(picture, y - 0.04, x - 0.14, drawing.WHITE, 0.1)
    drawing.disc(picture, y - 0.04, x + 0.14, drawing.WHITE, 0.1)
    drawing.disc(picture, y - 0.04, x - 0.14, drawing.INK, 0.05)
    drawing.disc(picture, y - 0.04, x + 0.14, drawing.INK, 0.05)
