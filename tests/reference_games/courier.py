"""Courier's valid actions, read off the map as text."""

MAP = ".#sabcABC"  # floor, wall, station, keys, doors


def valid(state, options):
    """Return for each action whether the rules allow it."""
    # a frame of walls stands for what is off the map
    rows = ["#" + "".join(MAP[tile] for tile in row) + "#" for row in state.tiles]
    frame = "#" * (options.width + 2)
    rows = [frame, *rows, frame]
    y, x = state.y + 1, state.x + 1
    here = rows[y][x]
    closed = "#" + "".join("ABC"[door] for door in range(3) if not state.held[door])
    ahead = [rows[y - 1][x], rows[y][x + 1], rows[y + 1][x], rows[y][x - 1]]
    parcel_here = not state.carries and (state.parcel_y, state.parcel_x) == (state.y, state.x)
    may_pick_up = here in "abc" or parcel_here
    may_put_down = bool(state.carries) and here == "s"
    return [tile not in closed for tile in ahead] + [may_pick_up, may_put_down]
