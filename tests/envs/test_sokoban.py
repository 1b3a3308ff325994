from collections import deque

import gymnasium as gym
import numpy as np
import pytest
from playing import draw, make_vec, play

from rlmask_envs import sokoban

UP, RIGHT, DOWN, LEFT = range(4)
STEPS = ((-1, 0), (0, 1), (1, 0), (0, -1))


def put(envs, level, copy=0):
    """Set a copy to a level in the signs of `text`; return its valid actions."""
    signs = "".join(row.ljust(10, "#") for row in level).ljust(100, "#")
    state = envs.states[copy]
    state.walls = [sign == "#" for sign in signs]
    state.goals = [sign in ".*+" for sign in signs]
    state.boxes = [sign in "$*" for sign in signs]
    state.worker = [sign in "@+" for sign in signs].index(True)
    state.off_goals = signs.count("$")
    _, info = envs.restore_state(envs.capture_state())
    return np.flatnonzero(info["action_mask"][copy]).tolist()


def show(envs, copy=0):
    return sokoban.text(envs.states[copy], envs.options).split("\n")


def levels_of(envs, num_resets):
    for seed in range(num_resets):
        envs.reset(seed=seed)
        for copy in range(envs.num_envs):
            yield show(envs, copy)


def shortest_solution(level):
    """Return the moves of the shortest solution; None: there is none. Breadth first."""
    cells = {(y, x): sign for y, row in enumerate(level) for x, sign in enumerate(row)}
    walls = {cell for cell, sign in cells.items() if sign == "#"}
    goals = frozenset(cell for cell, sign in cells.items() if sign in ".*+")
    boxes = frozenset(cell for cell, sign in cells.items() if sign in "$*")
    (worker,) = (cell for cell, sign in cells.items() if sign in "@+")
    moves = {(worker, boxes): 0}
    queue = deque(moves)
    while queue:
        node = worker, boxes = queue.popleft()
        if boxes == goals:
            return moves[node]
        for down, right in STEPS:
            there = worker[0] + down, worker[1] + right
            after = boxes
            if there in boxes:
                behind = there[0] + down, there[1] + right
                if behind in walls or behind in boxes:
                    continue
                after = boxes - {there} | {behind}
            if there not in walls and (there, after) not in moves:
                moves[there, after] = moves[node] + 1
                queue.append((there, after))
    return None


def small(level, **sizes):
    """Return one copy in a level of 5 x 6, and its valid actions."""
    envs = make_vec("Sokoban", 1, height=5, width=6, num_boxes=2, **sizes)
    envs.reset(seed=0)
    return envs, put(envs, level)


def test_a_box_moves_only_where_the_cell_behind_it_is_free():
    # up: a wall behind the box; right: a box behind the box; down: a wall; left: free
    envs, valid = small(["######", "#.$ .#", "# @$$#", "######", "######"])
    assert valid == [LEFT]
    # up: free; right: a free cell behind the box; down: a wall; left: a wall
    envs, valid = small(["######", "#   .#", "#@$ $#", "##. ##", "######"])
    assert valid == [UP, RIGHT]
    # right: a goal behind the box
    envs, valid = small(["######", "# #..#", "##@$.#", "##$  #", "######"])
    assert valid == [RIGHT]
    with pytest.raises(ValueError, match=r"action 4 is invalid; valid: 1$"):
        envs.step([4])


def test_walking_and_pushing_move_what_they_should():
    envs, _ = small(["######", "# $ .#", "# @. #", "#   $#", "######"])
    _, reward, terminated, _, _ = envs.step([RIGHT])
    assert (reward[0], terminated[0]) == (-0.1, False)
    assert show(envs) == ["######", "# $ .#", "#  + #", "#   $#", "######"]
    envs.step([UP])
    _, reward, _, _, _ = envs.step([LEFT])
    assert reward[0] == -0.1
    assert show(envs) == ["######", "#$@ .#", "#  . #", "#   $#", "######"]
    for action in (DOWN, DOWN, RIGHT):
        envs.step([action])
    assert show(envs) == ["######", "#$  .#", "#  . #", "#  @$#", "######"]


def test_rewards_tell_boxes_that_come_to_goals_and_leave_them():
    envs, _ = small(["######", "#@$..#", "#    #", "#$   #", "######"])
    rewards, texts = [], []
    for _ in range(2):  # onto the first goal; from that one onto the second
        _, reward, terminated, _, _ = envs.step([RIGHT])
        assert not terminated[0]
        rewards.append(reward[0])
        texts.append(show(envs)[1])
    assert texts == ["# @*.#", "#  +*#"]
    np.testing.assert_allclose(rewards, [-0.1 + 1, -0.1], rtol=1e-12)
    envs, _ = small(["######", "#@* .#", "#    #", "#$   #", "######"])
    _, reward, _, _, _ = envs.step([RIGHT])
    np.testing.assert_allclose(reward, [-0.1 - 1], rtol=1e-12)
    assert show(envs)[1] == "# +$.#"


def test_the_last_box_on_a_goal_ends_the_episode():
    envs, _ = small(["######", "#@$. #", "#    #", "#*   #", "######"])
    _, reward, terminated, truncated, info = envs.step([RIGHT])
    np.testing.assert_allclose(reward, [-0.1 + 1 + 10], rtol=1e-12)
    assert (terminated[0], truncated[0]) == (True, False)
    worker, boxes = info["final_obs"][0, ..., 3], info["final_obs"][0, ..., 2]
    assert np.argwhere(worker).tolist() == [[1, 2]]
    assert np.argwhere(boxes).tolist() == [[1, 3], [3, 1]]
    assert "$" in "".join(show(envs))  # a new level


def test_a_lost_box_does_not_end_the_episode():
    envs, _ = small(["######", "#$@..#", "#$   #", "#    #", "######"])
    for action in (RIGHT, LEFT, DOWN, UP):
        _, _, terminated, _, info = envs.step([action])
        assert not terminated[0]
        assert info["action_mask"][0].any()


def test_planes_show_the_level():
    level = ["#######", "#.@ *##", "#  $  #", "#+    #", "#######"]
    level[3] = "#.    #"
    envs = make_vec("Sokoban", 1, height=5, width=7, num_boxes=2)
    envs.reset(seed=0)
    put(envs, level)
    obs, _ = envs.restore_state(envs.capture_state())
    signs = np.array([list(row) for row in level])
    expected = np.zeros((10, 10, 16), np.uint8)
    for plane, kinds in enumerate(("#", ".*+", "$*", "@+")):
        expected[:5, :7, plane] = 255 * np.isin(signs, list(kinds))
    expected[:5, :7, 4] = 255
    np.testing.assert_array_equal(obs[0], expected)


def test_text_and_picture_show_the_level():
    level = ["######", "#.$ +#", "# * ##", "#    #", "######"]
    envs, _ = small(level)
    assert show(envs) == level
    picture = sokoban.image(envs.states[0], envs.options)
    assert (picture.shape, picture.dtype) == ((160, 192, 3), np.uint8)
    cells = picture.reshape(5, 32, 6, 32, 3).transpose(0, 2, 1, 3, 4).reshape(30, -1)
    shown = {sign: {cells[i].tobytes() for i, s in enumerate("".join(level)) if s == sign}
             for sign in "#.$+* "}  # fmt: skip
    assert [len(kind) for kind in shown.values()] == [1] * 6  # each sign looks one way,
    assert len(set.union(*shown.values())) == 6  # and another than the others
    put(envs, [row.replace("+", "@") for row in level])
    assert (sokoban.image(envs.states[0], envs.options) != picture)[32:64, 128:160].any()


@pytest.mark.parametrize(
    ("sizes", "num_resets"),
    [
        ({"height": 6, "width": 6, "num_boxes": 2}, 8),
        ({"height": 5, "width": 5, "num_boxes": 3}, 4),
        ({"height": 5, "width": 9, "num_boxes": 1, "num_pulls": 1}, 2),
        ({"height": 7, "width": 7, "num_boxes": 3, "num_pulls": 30}, 1),
    ],
    ids=str,
)
def test_every_level_can_be_solved(sizes, num_resets):
    envs = make_vec("Sokoban", 16, **sizes)
    for level in levels_of(envs, num_resets):
        moves = shortest_solution(level)
        assert moves is not None, level
        assert 0 < moves <= 120


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"num_boxes": 6, "num_pulls": 30},
        {"height": 5, "width": 5, "num_boxes": 3},
        {"height": 6, "width": 10, "num_boxes": 1, "num_pulls": 1},
    ],
    ids=str,
)
def test_playing_in_reverse_gives_a_solution(sizes):
    num_envs = 256
    envs = make_vec("Sokoban", num_envs, **sizes)
    _, info = envs.reset(seed=1)
    mask = info["action_mask"]
    start = envs.states.copy()
    assert (start["first"] < 120).all()
    is_done = np.zeros(num_envs, bool)
    for move in range(120):
        actions = draw(mask, np.random.default_rng(move))
        index = start["first"] + move
        goes_on = ~is_done & (index < 120)
        actions[goes_on] = start["solution"][goes_on, index[goes_on]]
        _, _, terminated, _, info = envs.step(actions)  # an invalid one would raise
        is_done |= goes_on & terminated
        mask = info["action_mask"]
    assert is_done.all()


@pytest.mark.parametrize(
    "sizes", [{}, {"height": 5, "width": 5, "num_boxes": 3}, {"num_boxes": 6}], ids=str
)
def test_levels_are_rooms_with_boxes_and_goals(sizes):
    envs = make_vec("Sokoban", 64, **sizes)
    num_boxes, off_goals, seen = envs.options.num_boxes, [], set()
    for level in levels_of(envs, 4):
        signs = "".join(level)
        count = {sign: signs.count(sign) for sign in "#.$*@+"}
        assert count["@"] + count["+"] == 1
        assert count["$"] + count["*"] == num_boxes
        assert count["."] + count["*"] + count["+"] == num_boxes
        assert count["$"] > 0
        edge = level[0] + level[-1] + "".join(row[0] + row[-1] for row in level)
        assert set(edge) == {"#"}
        assert is_connected(level)
        off_goals.append(count["$"])
        seen.add(signs)
    if not sizes:
        assert len(seen) == 256
        assert np.mean(off_goals) > 2.4  # of 3: most boxes have been moved away


def is_connected(level):
    floor = {(y, x) for y, row in enumerate(level) for x, sign in enumerate(row) if sign != "#"}
    reached, queue = set(), [next(iter(floor))]
    while queue:
        y, x = queue.pop()
        if (y, x) in floor and (y, x) not in reached:
            reached.add((y, x))
            queue += [(y + down, x + right) for down, right in STEPS]
    return reached == floor


def test_more_pulls_make_longer_solutions():
    lengths = []
    for num_pulls in (1, 5, 20):
        envs = make_vec("Sokoban", 256, num_pulls=num_pulls)
        envs.reset(seed=0)
        lengths.append((120 - envs.states["first"]).mean())
    assert lengths[0] < lengths[1] < lengths[2]


@pytest.mark.parametrize("sizes", [{}, {"height": 5, "width": 5, "num_boxes": 3}], ids=str)
def test_play_keeps_boxes_and_counts_them_right(sizes):
    envs = make_vec("Sokoban", 64, **sizes)
    states, num_boxes, solved, seen = envs.states, envs.options.num_boxes, 0, set()
    for _, _, reward, terminated, truncated, info in play(envs, 400):
        assert info["action_mask"].any(1).all()
        assert not info["action_mask"][:, 4:].any()
        assert (states["boxes"].sum(1) == num_boxes).all()
        assert (states["goals"].sum(1) == num_boxes).all()
        assert not (states["boxes"] & states["walls"]).any()
        off_goals = ((states["boxes"] == 1) & (states["goals"] == 0)).sum(1)
        np.testing.assert_array_equal(states["off_goals"], off_goals)
        assert (off_goals > 0).all()
        assert (terminated == (reward > 5)).all()
        assert not (terminated & truncated).any()
        solved += terminated.sum()
        seen |= {mask.tobytes() for mask in info["action_mask"]}
    assert solved > 0
    assert len(seen) == 15  # every subset of four directions but the empty one


def test_every_solution_fits_into_the_time_limit():
    limit = gym.spec("rlmask/Sokoban-v0").max_episode_steps
    assert limit == sokoban.MOST_MOVES == 120
    assert f"after {limit} steps" in sokoban.__doc__ and f"of {limit} moves" in sokoban.__doc__


def test_an_episode_ends_after_120_steps():
    envs = make_vec("Sokoban", 16)
    lengths = np.zeros(16, int)
    for _, _, _, terminated, truncated, _ in play(envs, 130):
        lengths += 1
        assert (lengths[truncated] == 120).all()
        assert (lengths[~(terminated | truncated)] < 120).all()
        lengths[terminated | truncated] = 0


def test_a_level_does_not_depend_on_the_one_before():
    envs = make_vec("Sokoban", 8)
    envs.reset(seed=5)
    first = envs.capture_state()["states"]
    envs.states.view(np.uint8)[:] = 255
    envs.reset(seed=5)
    for name in envs.states.dtype.names:
        expected = first.view(envs.states.dtype)[:, 0][name]
        np.testing.assert_array_equal(envs.states[name], expected)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"height": 4}, "height is 4; it takes an integer of 5 to 10"),
        ({"width": 11}, "width is 11; it takes an integer of 5 to 10"),
        ({"width": 8.0}, "width is 8.0; it takes an integer of 5 to 10"),
        ({"num_boxes": 0}, "num_boxes is 0; it takes an integer of 1 to 6"),
        ({"num_boxes": 7}, "num_boxes is 7; it takes an integer of 1 to 6"),
        ({"height": 5, "num_boxes": 7}, "num_boxes is 7; it takes an integer of 1 to 6"),
        ({"height": 5, "width": 6, "num_boxes": 5}, "num_boxes is 5; .* 1 to 4"),
        ({"num_pulls": 0}, "num_pulls is 0; it takes an integer of 1 to 30"),
    ],
    ids=str,
)
def test_sizes_that_cannot_be_played_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        sokoban.setup(**sizes)
