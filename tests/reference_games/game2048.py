"""2048's valid actions: play each move with lists, and see whether the board is another one."""


def squeeze(line):
    """Return a line whose tiles, powers of two, have moved and merged towards its start."""
    tiles, merged = [tile for tile in line if tile], []
    while tiles:
        tile = tiles.pop(0)
        if tiles and tiles[0] == tile:
            tile += tiles.pop(0)
        merged.append(tile)
    return merged + [0] * (len(line) - len(merged))


def transpose(rows):
    return [list(column) for column in zip(*rows, strict=True)]


def mirror(rows):
    return [row[::-1] for row in rows]


def moved(rows, action):
    """Return the rows after up, right, down or left (0 to 3), without a new tile."""
    if action == 0:
        return transpose(moved(transpose(rows), 3))
    if action == 1:
        return mirror(moved(mirror(rows), 3))
    if action == 2:
        return transpose(moved(transpose(rows), 1))
    return [squeeze(row) for row in rows]


def tiles(state, options):
    """Return the rows of a state as numbers of the tiles, 0 where there is none."""
    board = state.board[: options.side, : options.side]
    return [[2 ** int(exponent) if exponent else 0 for exponent in row] for row in board]


def valid(state, options):
    """Return for each action whether the rules allow it."""
    rows = tiles(state, options)
    return [moved(rows, action) != rows for action in range(4)] + [False, False]
