"""Tetris on sets of cells, with a picture of every piece in every orientation."""

# Next to each other, in the order of turns to the right; all are in squares of four cells
PICTURES = [
    ["####  ..#.", "....  ..#.", "....  ..#.", "....  ..#."],
    ["##..", "##..", "....", "...."],
    [".#..  .#..  ....  .#..", "###.  .##.  ###.  ##..", "....  .#..  .#..  .#..", "....  " * 4],
    [".##.  .#..", "##..  .##.", "....  ..#.", "....  ...."],
    ["##..  ..#.", ".##.  .##.", "....  .#..", "....  ...."],
    ["#...  .##.  ....  .#..", "###.  .#..  ###.  .#..", "....  .#..  ..#.  ##..", "....  " * 4],
    ["..#.  .#..  ....  ##..", "###.  .#..  ###.  .#..", "....  .##.  #...  .#..", "....  " * 4],
]


def cells_of(piece, turns, y=0, x=0):
    """Return the cells of a piece whose square begins at row y and column x."""
    rows = [row.split() for row in PICTURES[piece]]
    orientation = turns % len(rows[0])
    return {
        (y + dy, x + dx) for dy in range(4) for dx in range(4) if rows[dy][orientation][dx] == "#"
    }


def filled_of(state):
    return {
        (y, x) for y, row in enumerate(state.cells) for x, value in enumerate(row) if value != 0
    }


def fits(cells, filled, options):
    return not cells & filled and all(
        0 <= y < options.height and 0 <= x < options.width for y, x in cells
    )


def targets(state):
    """Return the cells that turn, right, down and left lead to, without falling."""
    turns, y, x = int(state.turns), int(state.y), int(state.x)
    return [
        cells_of(state.piece, turns + 1, y, x),
        cells_of(state.piece, turns, y, x + 1),
        cells_of(state.piece, turns, y + 1, x),
        cells_of(state.piece, turns, y, x - 1),
    ]


def valid(state, options):
    """Return for each action whether the rules allow it."""
    filled = filled_of(state)
    now = cells_of(state.piece, state.turns, int(state.y), int(state.x))
    moves = [cells != now and fits(cells, filled, options) for cells in targets(state)]
    return [*moves, True, False]


def after(state, action, options):
    """Return what an action leads to: the cells of the piece, or None once it has locked; the
    filled cells; the reward."""
    filled = filled_of(state)
    if action == 4:
        cells = cells_of(state.piece, state.turns, int(state.y), int(state.x))
    else:
        cells = targets(state)[action]
    while True:
        below = {(y + 1, x) for y, x in cells}
        if action == 2:
            return cells, filled, 0
        if not fits(below, filled, options):
            break
        cells = below
        if action != 4:
            return cells, filled, 0
    filled |= cells
    full = [y for y in range(options.height) if {(y, x) for x in range(options.width)} <= filled]
    left = {(y + sum(row > y for row in full), x) for y, x in filled if y not in full}
    return None, left, sum(range(len(full) + 1))
