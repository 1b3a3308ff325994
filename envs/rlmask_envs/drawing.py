"""Pictures of games with NumPy alone: cells, discs, lines, text. Places are in cells.

A picture is an array [height, width, 3] of uint8; what is drawn is blended in at its edges.
"""

from collections.abc import Callable, Sequence

import numpy as np

CELL = 32  # pixels

Color = Sequence[int]  # red, green, blue, 0 to 255
WHITE, BLACK = (255, 255, 255), (24, 24, 27)
PAPER, GRID, INK = (246, 244, 238), (222, 218, 208), (58, 56, 52)
RED, ORANGE, YELLOW = (214, 69, 65), (235, 142, 62), (240, 200, 66)
GREEN, TEAL, BLUE = (82, 160, 90), (56, 150, 152), (66, 110, 190)
PURPLE, PINK, GREY = (140, 94, 180), (222, 128, 168), (150, 148, 142)

# 3 x 5 pixels each, a row an octal digit
GLYPHS = {
    " ": "00000", "-": "00700", "+": "02720", ".": "00002", ":": "02020", "/": "11244",
    "?": "71302",
    "0": "75557", "1": "26227", "2": "71747", "3": "71317", "4": "55711",
    "5": "74717", "6": "74757", "7": "71122", "8": "75757", "9": "75717",
    "A": "25755", "B": "65656", "C": "34443", "D": "65556", "E": "74647", "F": "74644",
    "G": "34553", "H": "55755", "I": "72227", "J": "11152", "K": "55655", "L": "44447",
    "M": "57755", "N": "65555", "O": "25552", "P": "65644", "Q": "25563", "R": "65655",
    "S": "34216", "T": "72222", "U": "55557", "V": "55552", "W": "55775", "X": "55255",
    "Y": "55222", "Z": "71247",
}  # fmt: skip


def blank(height: float, width: float, color: Color = PAPER) -> np.ndarray:
    """Return an empty picture of so many cells."""
    picture = np.empty((round(height * CELL), round(width * CELL), 3), np.uint8)
    picture[:] = color
    return picture


def board(height: int, width: int, color: Color = PAPER, lines: Color = GRID) -> np.ndarray:
    """Return an empty board with a line around every cell."""
    picture = blank(height, width, lines)
    for y in range(height):
        for x in range(width):
            rectangle(picture, y + 0.03, x + 0.03, 0.94, 0.94, color)
    return picture


def rectangle(
    picture: np.ndarray, y: float, x: float, height: float, width: float, color: Color
) -> None:
    """Fill a rectangle; y and x are those of its upper left corner."""
    top, left = round(y * CELL), round(x * CELL)
    picture[top : round((y + height) * CELL), left : round((x + width) * CELL)] = color


def cell(picture: np.ndarray, y: float, x: float, color: Color, margin: float = 0.08) -> None:
    """Fill the cell in row y and column x but for a margin."""
    rectangle(picture, y + margin, x + margin, 1 - 2 * margin, 1 - 2 * margin, color)


def disc(picture: np.ndarray, y: float, x: float, color: Color, radius: float = 0.38) -> None:
    """Draw a disc around the middle of the cell in row y and column x."""
    dot(picture, y + 0.5, x + 0.5, color, radius)


def dot(picture: np.ndarray, y: float, x: float, color: Color, radius: float) -> None:
    """Draw a disc around a point."""
    _blend(picture, y, x, y, x, color, radius)


def line(
    picture: np.ndarray,
    start: tuple[float, float],
    end: tuple[float, float],
    color: Color,
    width: float = 0.08,
) -> None:
    """Draw a line between two points (y, x)."""
    _blend(picture, *start, *end, color, width / 2)


def write(
    picture: np.ndarray, y: float, x: float, text: str, color: Color = INK, height: float = 0.4
) -> None:
    """Write text around a point; it is in capitals, and shrinks to the picture's width."""
    glyphs = [GLYPHS.get(letter, GLYPHS["?"]) for letter in text.upper()]
    rows = np.zeros((5, 4 * len(glyphs) - 1), bool)
    for index, glyph in enumerate(glyphs):
        for row, bits in enumerate(glyph):
            rows[row, 4 * index : 4 * index + 3] = [int(bits) & bit for bit in (4, 2, 1)]
    scale = max(1, min(round(height * CELL / 5), picture.shape[1] // max(1, rows.shape[1])))
    shape = np.kron(rows, np.ones((scale, scale), bool))
    top, left = round(y * CELL - shape.shape[0] / 2), round(x * CELL - shape.shape[1] / 2)
    top, left = max(0, top), max(0, left)
    window = picture[top : top + shape.shape[0], left : left + shape.shape[1]]
    window[shape[: window.shape[0], : window.shape[1]]] = color


def beside(pictures: list[np.ndarray], gap: int = 8, color: Color = PAPER) -> np.ndarray:
    """Return pictures side by side, their upper edges in line."""
    height = max(picture.shape[0] for picture in pictures)
    width = sum(picture.shape[1] for picture in pictures) + gap * (len(pictures) - 1)
    whole = np.empty((height, width, 3), np.uint8)
    whole[:] = color
    left = 0
    for picture in pictures:
        whole[: picture.shape[0], left : left + picture.shape[1]] = picture
        left += picture.shape[1] + gap
    return whole


def _blend(
    picture: np.ndarray, y0: float, x0: float, y1: float, x1: float, color: Color, radius: float
) -> None:
    """Paint all that is within `radius` of the line from (y0, x0) to (y1, x1)."""
    reach = radius + 1 / CELL
    top = max(0, int((min(y0, y1) - reach) * CELL))
    left = max(0, int((min(x0, x1) - reach) * CELL))
    window = picture[
        top : int((max(y0, y1) + reach) * CELL) + 1, left : int((max(x0, x1) + reach) * CELL) + 1
    ]
    y = (np.arange(top, top + window.shape[0])[:, None] + 0.5) / CELL
    x = (np.arange(left, left + window.shape[1])[None, :] + 0.5) / CELL
    dy, dx = y1 - y0, x1 - x0
    length = dy * dy + dx * dx
    t = np.clip(((y - y0) * dy + (x - x0) * dx) / length, 0, 1) if length else 0.0
    distance = np.hypot(y - y0 - t * dy, x - x0 - t * dx)
    opacity = np.clip((radius - distance) * CELL + 0.5, 0, 1)[..., None]
    window[:] = np.round(window * (1 - opacity) + np.array(color) * opacity).astype(np.uint8)


def letters(height: int, width: int, letter_at: Callable[[int, int], str]) -> str:
    """Return a board as lines of text, one letter for the cell in row y and column x."""
    rows = ("".join(letter_at(y, x) for x in range(width)) for y in range(height))
    return "\n".join(rows)


def check_render_mode(render_mode: str | None, modes: Sequence[str]) -> None:
    """Raise `ValueError` unless the mode is None or one of these."""
    if render_mode is not None and render_mode not in modes:
        raise ValueError(f"render_mode is {render_mode!r}; it takes {' or '.join(modes) or 'none'}")
