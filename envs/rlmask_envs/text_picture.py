"""Text as a picture, for games that draw themselves in letters only."""

import numpy as np

from rlmask_envs import drawing

WIDTH, HEIGHT = 4, 7  # of a letter with the space around it, in dots
SIZE = 480  # pixels that a picture is wide, or so

GLYPHS = {
    **drawing.GLYPHS,
    "|": "22222", "_": "00007", "#": "77777", "*": "05250", "=": "07070", ",": "00024",
    "(": "12221", ")": "42224", "[": "32223", "]": "62226", "<": "12421", ">": "42124",
    "'": "22000", "~": "00360",
}  # fmt: skip
COLORS = {"x": drawing.BLUE, "X": drawing.BLUE, "o": drawing.RED, "O": drawing.RED}
IN_LETTERS = str.maketrans("♠♥♦♣🂠", "SHDC#")


def text_picture(text: str) -> np.ndarray:
    """Return text as a picture, [height, width, 3] uint8; letters are capitals."""
    lines = text.translate(IN_LETTERS).splitlines() or [""]
    columns = max(1, *map(len, lines))
    picture = np.empty((HEIGHT * len(lines) + 2, WIDTH * columns + 1, 3), np.uint8)
    picture[:] = drawing.PAPER
    for y, line in enumerate(lines):
        is_board = set(filter(str.isalpha, line)) <= COLORS.keys()  # not words
        for x, letter in enumerate(line):
            glyph = GLYPHS.get(letter.upper(), GLYPHS["?"])
            dots = [[int(row) & bit for bit in (4, 2, 1)] for row in glyph]
            top, left = HEIGHT * y + 2, WIDTH * x + 1
            window = picture[top : top + len(dots), left : left + 3]
            color = COLORS.get(letter, drawing.INK) if is_board else drawing.INK
            window[np.array(dots) > 0] = color
    scale = min(12, max(3, SIZE // picture.shape[1]))
    return picture.repeat(scale, 0).repeat(scale, 1)
