"""Snake: positions by hand, and play along with a model whose body is a list of cells."""

from collections import Counter

import gymnasium as gym
import numpy as np
import pytest
from playing import draw, make_vec
from reference_games import snake as reference

from rlmask_envs import snake

UP, RIGHT, DOWN, LEFT = range(4)
STEPS = ((-1, 0), (0, 1), (1, 0), (0, -1))


class Model:
    """The game in ordinary Python; `body` is from the tail to the head."""

    def __init__(self, height, width, body, food):
        self.height, self.width, self.body, self.food = height, width, list(body), food
        self.cells = {(y, x) for y in range(height) for x in range(width)}

    def ahead(self, action):
        (y, x), (dy, dx) = self.body[-1], STEPS[action]
        return y + dy, x + dx

    def mask(self):
        ways = [self.ahead(action) for action in range(4)]
        return [way in self.cells and way != self.body[-2] for way in ways] + [False, False]

    def step(self, action):
        """Move; return the reward, whether it is the end, and whether it has bitten itself."""
        place = self.ahead(action)
        eats = place == self.food
        if eats:
            self.food = None
        else:
            del self.body[0]  # before the head moves, which may so come to where the tail was
        bites = place in self.body
        self.body.append(place)
        return float(eats), bites or set(self.body) == self.cells, bites

    def planes(self):
        planes = np.zeros((10, 10, 16), np.uint8)
        planes[: self.height, : self.width, 4] = 255
        for number, (y, x) in enumerate(self.body, 1):
            planes[y, x, 1] = 255 * number // len(self.body)
        (head_y, head_x), (tail_y, tail_x) = self.body[-1], self.body[0]
        planes[head_y, head_x, 0] = planes[tail_y, tail_x, 2] = 255
        if self.food:
            planes[(*self.food, 3)] = 255
        return planes


def cell_of(plane):
    """Return the only cell (y, x) of a plane that is not 0."""
    ((y, x),) = np.argwhere(plane).tolist()
    return y, x


def food_of(state):
    return int(state.food_y), int(state.food_x)


def begin(obs, height, width):
    """Return a model at the start that an observation shows: three cells in a row, and food."""
    head, tail, food = (cell_of(obs[..., plane]) for plane in (0, 2, 3))
    assert head[0] == tail[0] and abs(head[1] - tail[1]) == 2
    model = Model(height, width, [tail, (head[0], (head[1] + tail[1]) // 2), head], food)
    assert food in model.cells - set(model.body)
    assert (obs == model.planes()).all()
    return model


def lay_out(body, food, height=4, width=4):
    """Return an env with the snake there, from the tail to the head, and food."""
    envs = make_vec("Snake", 1, height=height, width=width)
    envs.reset(seed=0)
    (state,) = envs.states
    put(state, body, food)
    envs.restore_state(envs.capture_state())
    return envs, state


def put(state, body, food):
    state.entered[:] = 0
    for move, cell in enumerate(body, 1):
        state.entered[cell] = move
    state.moves = state.length = len(body)
    state.y, state.x = body[-1]
    state.food_y, state.food_x = food


def mask_of(envs):
    return envs.restore_state(envs.capture_state())[1]["action_mask"][0, :4].tolist()


def step(envs, action):
    """Return reward, end, and the observation of where the step has led to."""
    obs, reward, terminated, _, info = envs.step(np.array([action]))
    return reward[0], terminated[0], (info["final_obs"] if terminated[0] else obs)[0]


def body_of(envs):
    return reference.body(envs.states[0], envs.options)


@pytest.mark.parametrize(("height", "width"), [(10, 10), (4, 5), (2, 4)])
def test_play_along_with_the_model(height, width):
    num_envs, rng, seen = 16, np.random.default_rng(0), Counter()
    envs = make_vec("Snake", num_envs, height=height, width=width)
    obs, info = envs.reset(seed=3)
    models = [begin(one, height, width) for one in obs]
    for _ in range(400):
        mask = info["action_mask"]
        assert mask.tolist() == [model.mask() for model in models]
        actions = draw(mask, rng)
        obs, reward, terminated, truncated, info = envs.step(actions)
        for i, model in enumerate(models):
            tail = model.body[0]
            expected, is_over, bites = model.step(actions[i])
            assert (reward[i], terminated[i]) == (expected, is_over)
            seen["eaten"] += expected == 1
            seen["bitten"] += bites
            seen["full"] += is_over and not bites
            seen["at the tail"] += model.body[-1] == tail
            if is_over:
                end = info["final_obs"][i]
                if not bites:
                    assert (end == model.planes()).all()
                assert cell_of(end[..., 0]) == model.body[-1]
            if is_over or truncated[i]:
                models[i] = begin(obs[i], height, width)
                continue
            if model.food is None:
                model.food = food_of(envs.states[i])
                assert model.food in model.cells - set(model.body)
            assert reference.body(envs.states[i], envs.options) == model.body
            assert (obs[i] == model.planes()).all()
    assert min(seen[name] for name in ("eaten", "bitten", "at the tail")) > 0
    if height * width == 8:
        assert seen["full"] > 0


def test_a_step_without_food():
    envs, _ = lay_out([(1, 0), (1, 1), (1, 2)], (3, 3))
    assert mask_of(envs) == [1, 1, 1, 0]  # not back
    assert step(envs, UP)[:2] == (0.0, False)
    assert body_of(envs) == [(1, 1), (1, 2), (0, 2)]
    assert mask_of(envs) == [0, 1, 0, 1]  # not off the board, nor back
    assert food_of(envs.states[0]) == (3, 3)


def test_masks_at_the_walls():
    for body, expected in [
        ([(0, 2), (0, 1), (0, 0)], [0, 0, 1, 0]),  # the corners
        ([(2, 0), (1, 0), (0, 0)], [0, 1, 0, 0]),
        ([(1, 3), (2, 3), (3, 3)], [0, 0, 0, 1]),
        ([(3, 1), (3, 2), (3, 3)], [1, 0, 0, 0]),
        ([(1, 1), (1, 2), (1, 3)], [1, 0, 1, 0]),  # into a wall
    ]:
        assert mask_of(lay_out(body, (2, 2))[0]) == expected


def test_food_makes_it_longer():
    envs, state = lay_out([(1, 0), (1, 1), (1, 2)], (1, 3))
    reward, terminated, obs = step(envs, RIGHT)
    assert (reward, terminated, state.length) == (1.0, False, 4)
    assert body_of(envs) == [(1, 0), (1, 1), (1, 2), (1, 3)]  # the tail has stayed
    assert [obs[1, x, 1] for x in range(4)] == [63, 127, 191, 255]  # quarters of 255
    assert obs[1, 3, 0] == obs[1, 0, 2] == 255
    assert food_of(state) not in body_of(envs)
    state.food_y, state.food_x = 0, 0  # out of the way
    assert step(envs, DOWN)[0] == 0.0
    assert body_of(envs) == [(1, 1), (1, 2), (1, 3), (2, 3)]


def test_the_head_may_go_where_the_tail_leaves():
    envs, _ = lay_out([(0, 0), (0, 1), (1, 1), (1, 0)], (3, 3))
    assert mask_of(envs) == [1, 0, 1, 0]
    assert step(envs, UP)[:2] == (0.0, False)
    assert body_of(envs) == [(0, 1), (1, 1), (1, 0), (0, 0)]


def test_a_bite_is_valid_and_the_end():
    envs, _ = lay_out([(0, 2), (0, 1), (0, 0), (1, 0), (1, 1)], (3, 3))
    assert mask_of(envs)[UP] == 1
    reward, terminated, obs = step(envs, UP)
    assert (reward, terminated) == (0.0, True)
    assert cell_of(obs[..., 0]) == (0, 1)


def test_a_full_board_is_the_end():
    # up column 0, and back through the rows: next to each other, as are the last and the first
    columns = [(y, 0) for y in (3, 2, 1, 0)]
    rows = [(y, x) for y in range(4) for x in ((1, 2, 3), (3, 2, 1))[y % 2]]
    cycle = columns + rows
    envs, state = lay_out(cycle[:3], (0, 3))
    total, steps = 0.0, 0
    while True:
        y, x = cycle[(cycle.index((int(state.y), int(state.x))) + 1) % 16]
        action = STEPS.index((y - int(state.y), x - int(state.x)))
        reward, terminated, obs = step(envs, action)
        total, steps = total + reward, steps + 1
        if terminated:
            break
    assert total == 16 - 3 and reward == 1.0
    assert steps < 13 * 16  # each round passes the food
    assert (obs[:4, :4, 1] > 0).all()
    assert not obs[..., 3].any()  # no food is left


def test_food_comes_to_all_free_cells_alike():
    # of 2 x 4 cells the snake will fill five
    body, free, counts = [(0, 3), (0, 2), (0, 1), (0, 0)], [(1, 1), (1, 2), (1, 3)], Counter()
    envs, state = lay_out(body, (1, 0), 2, 4)
    rng, num_draws = np.array([7, 0], np.uint64), 900
    for _ in range(num_draws):
        put(state, body, (1, 0))
        assert snake.step(state, DOWN, rng, envs.options) == (1.0, False)
        counts[food_of(state)] += 1
    assert set(counts) == set(free)
    # 300 each are expected; the standard deviation is sqrt(900 * 1/3 * 2/3) = 14.1
    assert max(abs(count - 300) for count in counts.values()) < 70


def test_starts_are_everywhere_and_both_ways():
    obs, _ = make_vec("Snake", 600, height=2, width=5).reset(seed=0)
    starts = Counter((*cell_of(one[..., 2]), *cell_of(one[..., 0])) for one in obs)
    # in each row a left end at 0, 1 or 2, and two ways: 12 starts, of which 50 are expected each
    assert len(starts) == 12 and min(starts.values()) > 15
    food = Counter(cell_of(one[..., 3]) for one in obs)
    assert len(food) == 10


def test_the_time_limit():
    assert gym.spec("rlmask/Snake-v0").max_episode_steps == 1000
    assert "after 1,000 steps" in snake.__doc__


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"height": 1}, "height is 1; it takes an integer of 2 to 10"),
        ({"height": 11}, "height is 11; it takes an integer of 2 to 10"),
        ({"width": 3}, "width is 3; it takes an integer of 4 to 10"),
        ({"width": 5.0}, r"width is 5\.0; it takes an integer of 4 to 10"),
        ({"width": True}, "width is True; it takes an integer of 4 to 10"),
    ],
)
def test_sizes_are_checked(sizes, message):
    with pytest.raises(ValueError, match=message):
        snake.setup(**sizes)


def test_text_and_image():
    envs, state = lay_out([(1, 0), (1, 1), (1, 2)], (0, 3), 2, 4)
    assert snake.text(state, envs.options) == "...*\nooH."
    picture = snake.image(state, envs.options)
    assert picture.shape == (64, 128, 3) and picture.dtype == np.uint8
    snake.step(state, RIGHT, np.zeros(2, np.uint64), envs.options)
    assert snake.text(state, envs.options) == "...*\n.ooH"
    assert (snake.image(state, envs.options) != picture).any()
