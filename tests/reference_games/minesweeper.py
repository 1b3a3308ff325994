"""Minesweeper's valid actions: what the rules leave closed, mines counted anew."""


def valid(state, options):
    """Return for each cell whether it is closed; next to an open 0 none may be."""
    cells = [(y, x) for y in range(options.height) for x in range(options.width)]
    mines = {cell for cell in cells if state.mines[cell]}
    is_open = {cell for cell in cells if state.shown[cell]}
    empty = [cell for cell in is_open - mines if not mines & around(cell)]
    revealed = set().union(*(around(cell) for cell in empty))
    return [cell not in is_open | revealed for cell in cells]


def around(cell):
    """Return the eight places around a cell, on the board or not."""
    y, x = cell
    places = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)}
    return places - {cell}
