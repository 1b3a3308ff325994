from collections import deque

import numpy as np
import pytest
from playing import make_vec, play

from rlmask_envs import courier

UP, RIGHT, DOWN, LEFT, PICK_UP, PUT_DOWN = range(6)
STEPS = ((-1, 0), (0, 1), (1, 0), (0, -1))
PLAIN = [
    "...#...",
    "...#...",
    "...#...",
    ".......",
    "...#...",
    "...#...",
    "...#...",
]


def small(rows, courier=(0, 0), parcel=(6, 6), destination=(0, 6), carries=0, held=(), touched=0):
    """Return one copy on a map of 7 x 7, and its valid actions."""
    envs = make_vec("Courier", 1, height=7, width=7, num_doors=3)
    envs.reset(seed=0)
    (state,) = envs.states
    for y, row in enumerate(rows):
        state.tiles[y, :7] = [".#oabcABC".index(sign) for sign in row]
    state.y, state.x = courier
    state.parcel_y, state.parcel_x = parcel
    state.destination_y, state.destination_x = destination
    state.carries, state.touched = carries, touched
    state.held[:] = [key in held for key in "abc"]
    _, info = envs.restore_state(envs.capture_state())
    return envs, np.flatnonzero(info["action_mask"][0]).tolist()


def step(envs, action):
    """Return reward, whether the episode terminated and the valid actions."""
    _, reward, terminated, _, info = envs.step([action])
    return round(reward[0], 9), bool(terminated[0]), np.flatnonzero(info["action_mask"][0]).tolist()


def changed(rows, y, x, sign):
    return [row[:x] + sign + row[x + 1 :] if y == at else row for at, row in enumerate(rows)]


def show(envs, copy=0):
    return courier.text(envs.states[copy], envs.options).split("\n")


def test_the_courier_stays_on_the_map_and_out_of_walls():
    assert small(PLAIN, (0, 0))[1] == [RIGHT, DOWN]
    assert small(PLAIN, (6, 6))[1] == [UP, LEFT, PICK_UP]  # with the parcel
    assert small(PLAIN, (0, 2))[1] == [DOWN, LEFT]
    assert small(PLAIN, (3, 3))[1] == [RIGHT, LEFT]
    assert small(PLAIN, (4, 4))[1] == [UP, RIGHT, DOWN]
    envs, _ = small(PLAIN, (3, 3))
    with pytest.raises(ValueError, match=r"action 0 is invalid; valid: 1, 3$"):
        envs.step([UP])
    assert step(envs, LEFT) == (-0.01, False, [UP, RIGHT, DOWN, LEFT])
    assert show(envs)[3] == "..@...."


@pytest.mark.parametrize(("key", "door", "others"), [("a", "A", "bc"), ("b", "B", "ca")])
def test_a_door_opens_with_its_key_alone_and_for_good(key, door, others):
    rows = changed(PLAIN, 3, 3, door)
    assert small(rows, (3, 2))[1] == [UP, DOWN, LEFT]
    assert small(rows, (3, 2), held=others)[1] == [UP, DOWN, LEFT]
    envs, valid = small(rows, (3, 2), held=key)
    assert valid == [UP, RIGHT, DOWN, LEFT]
    assert show(envs)[3] == f"..@{door}..."
    assert step(envs, RIGHT) == (-0.01, False, [RIGHT, LEFT])
    step(envs, RIGHT)
    assert show(envs)[3:] == ["....@..", "...#...", "...#...", "...#..p", f"has: {key}"]
    envs.states[0].held[:] = 0  # it is open now, whoever has a key
    _, info = envs.restore_state(envs.capture_state())
    assert info["action_mask"][0, LEFT]


def test_a_key_is_picked_up_where_it_lies():
    rows = changed(changed(PLAIN, 1, 1, "c"), 3, 3, "C")
    envs, valid = small(rows, (1, 0))
    assert valid == [UP, RIGHT, DOWN]
    assert step(envs, RIGHT)[2] == [UP, RIGHT, DOWN, LEFT, PICK_UP]
    assert step(envs, PICK_UP) == (0.09, False, [UP, RIGHT, DOWN, LEFT])  # 0.1 - 0.01
    assert envs.states[0].held.tolist() == [0, 0, 1]
    assert show(envs)[-1] == "has: c"
    step(envs, LEFT)
    assert show(envs)[1] == "@..#..."


def test_a_key_can_be_picked_up_with_the_parcel_in_hand():
    envs, valid = small(changed(PLAIN, 0, 0, "a"), (0, 0), carries=1, touched=1)
    assert valid == [RIGHT, DOWN, PICK_UP]
    assert step(envs, PICK_UP) == (0.09, False, [RIGHT, DOWN])
    assert show(envs)[-1] == "has: p a"


def test_the_parcel_pays_when_first_picked_up_and_travels_along():
    rows = changed(changed(changed(PLAIN, 6, 6, "o"), 6, 0, "o"), 0, 6, "o")
    envs, valid = small(rows, (6, 6))
    assert valid == [UP, LEFT, PICK_UP]
    assert step(envs, PICK_UP) == (0.09, False, [UP, LEFT, PUT_DOWN])
    assert show(envs)[-1] == "has: p"
    assert step(envs, PUT_DOWN) == (-0.01, False, [UP, LEFT, PICK_UP])
    assert step(envs, PICK_UP) == (-0.01, False, [UP, LEFT, PUT_DOWN])
    for action, valid in ((UP, [UP, DOWN, LEFT]), (DOWN, [UP, LEFT, PUT_DOWN])):
        assert step(envs, action) == (-0.01, False, valid)  # no putting down beside a station
    for action in (UP, UP, UP, LEFT, LEFT, LEFT, LEFT, DOWN, DOWN, DOWN, LEFT, LEFT):
        assert step(envs, action)[:2] == (-0.01, False)
    assert step(envs, PUT_DOWN) == (-0.01, False, [UP, RIGHT, PICK_UP])
    step(envs, UP)
    assert show(envs)[5:] == ["@..#...", "p..#..o", "has: -"]


def test_the_delivery_ends_the_episode():
    rows = changed(PLAIN, 0, 6, "o")
    envs, valid = small(rows, (1, 6), carries=1, touched=1)
    assert valid == [UP, DOWN, LEFT]
    assert step(envs, UP) == (-0.01, False, [DOWN, LEFT, PUT_DOWN])
    _, reward, terminated, truncated, info = envs.step([PUT_DOWN])
    np.testing.assert_allclose(reward, [1 - 0.01], rtol=1e-12)
    assert (terminated[0], truncated[0]) == (True, False)
    final = info["final_obs"][0]
    assert np.argwhere(final[..., 10]).tolist() == [[0, 6]]
    assert not final[..., 12].any()
    assert not envs.states[0].carries
    assert show(envs)[-1] == "has: -"


def test_planes_show_the_map():
    rows = ["o.a#..o", "...#.b.", "...B...", "#.##.##", "..#c.A.", "..C....", "o.#...o"]
    envs, _ = small(rows, (1, 1), (6, 0), (0, 6), held="b")
    obs, _ = envs.restore_state(envs.capture_state())
    signs = np.array([list(row) for row in rows])
    expected = np.zeros((10, 10, 16), np.uint8)
    expected[:7, :7, 0] = 255
    for plane, sign in enumerate("#oabcABC", 1):
        expected[:7, :7, plane] = 255 * (signs == sign)
    expected[1, 1, 9] = 255
    expected[6, 0, 10] = 255
    expected[0, 6, 11] = 255
    expected[:7, :7, 14] = 255
    np.testing.assert_array_equal(obs[0], expected)
    (state,) = envs.states
    state.touched, state.held[:] = 1, [1, 0, 1]
    obs, _ = envs.restore_state(envs.capture_state())
    expected[6, 0, 10] = 128
    expected[:7, :7, 13:] = [255, 0, 255]
    np.testing.assert_array_equal(obs[0], expected)
    state.carries = 1
    obs, _ = envs.restore_state(envs.capture_state())
    expected[6, 0, 10] = 0
    expected[:7, :7, 12] = 255
    np.testing.assert_array_equal(obs[0], expected)


def test_text_and_picture_show_the_map():
    rows = ["o.a#..o", "...#.b.", "...B...", "#.##.##", "..#c.A.", "..C....", "o.#...o"]
    envs, _ = small(rows, (1, 1), (6, 0), (0, 6), held="b")
    shown = ["o.a#..!", ".@.#.b.", "...B...", "#.##.##", "..#c.A.", "..C....", "p.#...o"]
    assert show(envs) == [*shown, "has: b"]
    picture = courier.image(envs.states[0], envs.options)
    assert (picture.shape, picture.dtype) == ((256, 224, 3), np.uint8)
    cells = picture[:224].reshape(7, 32, 7, 32, 3).transpose(0, 2, 1, 3, 4).reshape(49, -1)
    looks = {}
    for cell, sign in zip(cells, "".join(shown), strict=True):
        looks.setdefault(sign, set()).add(cell.tobytes())
    assert all(len(look) == 1 for look in looks.values())  # each sign looks one way,
    assert len(set.union(*looks.values())) == len(looks) == 12  # and another than the others
    (state,) = envs.states
    state.carries = 1
    after = courier.image(state, envs.options) != picture
    cells = after.reshape(8, 32, 7, 32, 3).any((1, 3, 4))
    # the parcel: no longer there; with the courier; and below the map
    assert np.argwhere(cells).tolist() == [[1, 1], [6, 0], [7, 0]]


def maps_of(envs, num_resets):
    for seed in range(num_resets):
        envs.reset(seed=seed)
        yield from envs.states


def to_signs(state, options):
    return [
        "".join(".#oabcABC"[tile] for tile in row[: options.width])
        for row in state.tiles[: options.height]
    ]


def shortest_delivery(state, options):
    """Return the number of steps of the shortest delivery; None: there is none. Breadth first."""
    signs = to_signs(state, options)
    cells = {(y, x): sign for y, row in enumerate(signs) for x, sign in enumerate(row)}
    parcel = state.parcel_y, state.parcel_x
    destination = state.destination_y, state.destination_x
    start = (int(state.y), int(state.x)), frozenset(), False
    steps = {start: 0}
    queue = deque([start])
    while queue:
        node = place, keys, carries = queue.popleft()
        if carries and place == destination:
            return steps[node] + 1
        following = []
        for down, right in STEPS:
            there = place[0] + down, place[1] + right
            sign = cells.get(there, "#")
            if sign != "#" and (sign not in "ABC" or sign.lower() in keys):
                following.append((there, keys, carries))
        if cells[place] in "abc":
            following.append((place, keys | {cells[place]}, carries))
        if place == parcel:
            following.append((place, keys, True))
        for after in following:
            if after not in steps:
                steps[after] = steps[node] + 1
                queue.append(after)
    return None


SIZES = [
    {},
    {"num_doors": 3},
    {"height": 7, "width": 7, "num_doors": 3},
    {"height": 7, "width": 10, "num_doors": 1},
    {"height": 9, "width": 8, "num_doors": 0},
]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_every_map_can_be_solved(sizes):
    envs = make_vec("Courier", 64, **sizes)
    lengths = [shortest_delivery(state, envs.options) for state in maps_of(envs, 4)]
    assert None not in lengths
    assert max(lengths) < 150  # of 200


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_every_key_lies_before_its_door_and_the_later_ones(sizes):
    envs = make_vec("Courier", 64, **sizes)
    options = envs.options
    for state in maps_of(envs, 2):
        signs = to_signs(state, options)
        for door in range(options.num_doors):
            reached, queue = set(), [(int(state.y), int(state.x))]
            while queue:
                y, x = queue.pop()
                is_inside = 0 <= y < options.height and 0 <= x < options.width
                closed = "#" + "ABC"[door:]
                if is_inside and (y, x) not in reached and signs[y][x] not in closed:
                    reached.add((y, x))
                    queue += [(y + down, x + right) for down, right in STEPS]
            assert "abc"[door] in {signs[y][x] for y, x in reached}


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_maps_are_four_rooms_with_a_station_each(sizes):
    envs = make_vec("Courier", 64, **sizes)
    options, seen, num_gaps = envs.options, set(), []
    for state in maps_of(envs, 4):
        signs = to_signs(state, options)
        whole = "".join(signs)
        for door in range(3):
            num = int(door < options.num_doors)
            assert (whole.count("abc"[door]), whole.count("ABC"[door])) == (num, num)
        wall_y, wall_x = int(state.wall_y), int(state.wall_x)
        rooms = [
            [row[columns] for row in signs[rows]]
            for rows in (slice(0, wall_y), slice(wall_y + 1, None))
            for columns in (slice(0, wall_x), slice(wall_x + 1, None))
        ]
        for room in rooms:
            assert len(room) >= 2
            assert len(room[0]) >= 2
            assert "".join(room).count("o") == 1
            assert not set("".join(room)) & set("#ABC")
        assert signs[wall_y][wall_x] == "#"
        walls = [
            signs[wall_y][:wall_x],
            signs[wall_y][wall_x + 1 :],
            "".join(row[wall_x] for row in signs[:wall_y]),
            "".join(row[wall_x] for row in signs[wall_y + 1 :]),
        ]
        gaps = [len(wall) - wall.count("#") for wall in walls]
        assert set(gaps) <= {0, 1}
        num_gaps.append(sum(gaps))
        assert signs[state.parcel_y][state.parcel_x] == "o"
        assert signs[state.destination_y][state.destination_x] == "o"
        destination = state.destination_y, state.destination_x
        assert (state.parcel_y, state.parcel_x) != destination
        assert signs[state.y][state.x] not in "#oABC"
        assert (state.carries, state.touched, state.held.sum()) == (0, 0, 0)
        seen.add(whole)
    # half of the maps have a fourth gap: 128 +- 5 standard deviations, of 8
    assert set(num_gaps) == {3, 4}
    assert 88 < num_gaps.count(3) < 168
    assert len(seen) > 250


def test_everything_can_be_in_every_room():
    envs = make_vec("Courier", 64, num_doors=1)
    rooms = {"courier": set(), "parcel": set(), "destination": set(), "key": set(), "walls": set()}
    for state in maps_of(envs, 4):
        wall = np.array([state.wall_y, state.wall_x])
        key = np.argwhere(state.tiles == courier.KEY)[0]
        places = {
            "courier": (state.y, state.x),
            "parcel": (state.parcel_y, state.parcel_x),
            "destination": (state.destination_y, state.destination_x),
            "key": key,
        }
        for name, place in places.items():
            rooms[name].add(tuple((np.array(place) > wall).tolist()))
        rooms["walls"].add((int(state.wall_y), int(state.wall_x)))
    assert all(len(rooms[name]) == 4 for name in places)
    assert rooms["walls"] == {(y, x) for y in range(2, 8) for x in range(2, 8)}


def test_play_conserves_what_there_is():
    envs = make_vec("Courier", 128, height=7, width=7, num_doors=3)
    states, delivered, seen = envs.states, 0, set()
    envs.reset(seed=0)  # as `play` does
    before = states.copy()
    for actions, obs, reward, terminated, truncated, info in play(envs, 500):
        goes_on = ~(terminated | truncated)
        mask = info["action_mask"]
        assert mask[:, :4].any(1).all()
        assert not (mask[:, PICK_UP] & mask[:, PUT_DOWN] & (states["carries"] == 0)).any()
        for key in range(3):
            lying = (states["tiles"] == courier.KEY + key).sum((1, 2))
            np.testing.assert_array_equal(lying + states["held"][:, key], 1)
            closed = (states["tiles"] == courier.DOOR + key).sum((1, 2))
            assert ((closed == 1) | (states["held"][:, key] == 1)).all()
        assert (states["tiles"] == courier.STATION).sum((1, 2)).tolist() == [4] * 128
        new_keys = states["held"].astype(int).sum(1) - before["held"].sum(1)
        new_parcel = states["touched"].astype(int) - before["touched"]
        expected = -0.01 + 0.1 * (new_keys + new_parcel)
        np.testing.assert_allclose(reward[goes_on], expected[goes_on], rtol=1e-9)
        np.testing.assert_allclose(reward[terminated], 0.99, rtol=1e-12)
        assert (actions[terminated] == PUT_DOWN).all()
        moved = abs(states["y"] - before["y"]) + abs(states["x"] - before["x"])
        np.testing.assert_array_equal(moved[goes_on], (actions < 4)[goes_on])
        assert (obs[..., 9].sum((1, 2)) == 255).all()
        before = states.copy()
        delivered += terminated.sum()
        seen |= {row.tobytes() for row in mask}
    assert delivered > 10
    # in rooms all four directions, all but one, or those of a corner, and nothing else, picking up
    # or putting down; in gaps two opposite directions
    assert len(seen) == (1 + 4 + 4) * 3 + 2


def test_an_episode_ends_after_200_steps():
    envs = make_vec("Courier", 16)
    lengths = np.zeros(16, int)
    for _, _, _, terminated, truncated, _ in play(envs, 210):
        lengths += 1
        assert (lengths[truncated] == 200).all()
        assert (lengths[~(terminated | truncated)] < 200).all()
        lengths[terminated | truncated] = 0


def test_a_map_does_not_depend_on_the_one_before():
    envs = make_vec("Courier", 8)
    envs.reset(seed=5)
    first = envs.states.copy()
    envs.states.view(np.uint8)[:] = 255
    envs.reset(seed=5)
    for name in first.dtype.names:
        np.testing.assert_array_equal(envs.states[name], first[name])


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"height": 6}, "height is 6; it takes an integer of 7 to 10"),
        ({"width": 11}, "width is 11; it takes an integer of 7 to 10"),
        ({"width": "8"}, "width is '8'; it takes an integer of 7 to 10"),
        ({"num_doors": -1}, "num_doors is -1; it takes an integer of 0 to 3"),
        ({"num_doors": 4}, "num_doors is 4; it takes an integer of 0 to 3"),
    ],
    ids=str,
)
def test_sizes_that_cannot_be_played_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        courier.setup(**sizes)
