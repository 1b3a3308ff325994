import gymnasium as gym
import numpy as np
import pytest
from envs_for_tests import env_id
from gymnasium import spaces

from rlmask.types import ActionSpec, ObsSpec
from rlmask.vector import EnvError, Game, MaskedEnv, SpaceError, join, probe
from rlmask.vector.spaces import action_spec, make_env, obs_spec, without_mask


def read(space, obs):
    _, convert = obs_spec(space)
    return convert(obs)


def vector(size):
    return ObsSpec(kind="vector", shape=(size,), dtype="float32")


@pytest.mark.parametrize("start", [0, 3, -2])
def test_a_discrete_observation_counts_from_0(start):
    space = spaces.Discrete(4, start=start)
    assert obs_spec(space)[0] == ObsSpec(kind="discrete", shape=(), dtype="int64", n=4)
    assert [read(space, np.int64(start + i)) for i in range(4)] == [0, 1, 2, 3]


@pytest.mark.parametrize("shape", [(3,), (2, 3), (), (2, 1, 2, 2)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8, np.int64])
def test_a_box_of_other_than_three_axes_is_a_flat_vector(shape, dtype):
    space = spaces.Box(0, 100, shape, dtype)
    size = int(np.prod(shape))
    assert obs_spec(space)[0] == vector(size)
    obs = np.arange(size, dtype=dtype).reshape(shape)
    assert np.array_equal(read(space, obs), np.arange(size))


@pytest.mark.parametrize("shape", [(4, 5, 3), (3, 5, 3), (9, 9, 1)])
def test_an_image_with_channels_last_stays(shape):
    space = spaces.Box(0, 255, shape, np.uint8)
    assert obs_spec(space)[0] == ObsSpec(kind="image", shape=shape, dtype="uint8")
    obs = space.sample()
    assert np.array_equal(read(space, obs), obs)


@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 9, 9), (4, 2, 5)])
def test_channels_are_moved_to_the_end(shape):
    space = spaces.Box(0, 255, shape, np.uint8)
    channels, height, width = shape
    assert obs_spec(space)[0].shape == (height, width, channels)
    obs = space.sample()
    image = read(space, obs)
    for channel, row, column in np.ndindex(shape):
        assert image[row, column, channel] == obs[channel, row, column]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, bool, np.int8, np.uint16])
def test_planes_that_are_not_bytes_are_float32(dtype):
    space = spaces.Box(0, 1, (4, 4, 2), dtype)
    assert obs_spec(space)[0] == ObsSpec(kind="image", shape=(4, 4, 2), dtype="float32")


def test_multi_discrete_is_one_hot():
    space = spaces.MultiDiscrete([2, 3])
    assert obs_spec(space)[0] == vector(5)
    assert read(space, np.array([1, 0])).tolist() == [0, 1, 1, 0, 0]


def test_multi_binary_is_a_vector():
    space = spaces.MultiBinary(3)
    assert obs_spec(space)[0] == vector(3)
    assert read(space, np.array([1, 0, 1], np.int8)).tolist() == [1, 0, 1]


def test_dict_and_tuple_are_joined_in_the_order_of_gymnasium():
    space = spaces.Dict(
        {
            "b": spaces.Tuple((spaces.Discrete(3), spaces.Box(0, 9, (2,), np.uint8))),
            "a": spaces.Box(-1, 1, (1, 2), np.float64),
        }
    )
    assert obs_spec(space)[0] == vector(7)
    obs = {"b": (2, np.array([7, 8], np.uint8)), "a": np.array([[0.25, 0.5]])}
    assert read(space, obs).tolist() == [0.25, 0.5, 0, 0, 1, 7, 8]  # "a" before "b"


VARYING = [
    spaces.Text(5),
    spaces.Sequence(spaces.Discrete(2)),
    spaces.Graph(spaces.Discrete(2), None),
    spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Graph(spaces.Discrete(2), None)}),
    spaces.Tuple((spaces.Discrete(2), spaces.Sequence(spaces.Discrete(2)))),
]


@pytest.mark.parametrize("space", VARYING, ids=lambda space: type(space).__name__)
def test_an_observation_of_varying_size_is_refused(space):
    with pytest.raises(SpaceError, match="observations of "):
        obs_spec(space)


def test_the_mask_is_taken_out_of_the_observation():
    mask, board = spaces.MultiBinary(2), spaces.Discrete(7)
    rest, strip = without_mask(spaces.Dict({"board": board, "action_mask": mask}))
    assert rest == board
    assert strip({"board": 3, "action_mask": np.ones(2)}) == 3


def test_what_is_left_beside_the_mask_may_be_several_things():
    space = spaces.Dict(
        {
            "board": spaces.Discrete(7),
            "action_mask": spaces.MultiBinary(2),
            "clock": spaces.Discrete(3),
        }
    )
    rest, strip = without_mask(space)
    assert rest == spaces.Dict({"board": spaces.Discrete(7), "clock": spaces.Discrete(3)})
    assert strip({"clock": 1, "board": 3, "action_mask": 0}) == {"board": 3, "clock": 1}


def test_only_a_dict_can_hold_a_mask():
    with pytest.raises(SpaceError, match="needs a Dict"):
        without_mask(spaces.Discrete(3))


@pytest.mark.parametrize("space", [spaces.Discrete(3, start=5), spaces.Discrete(3)])
def test_discrete_actions_count_from_0(space):
    spec, to_action = action_spec(space)
    assert spec == ActionSpec(nvec=(3,))
    assert (spec.num_actions, spec.shape) == (3, ())
    assert [to_action(i) for i in range(3)] == [space.start + i for i in range(3)]
    assert all(space.contains(to_action(i)) for i in range(3))


@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.uint8])
def test_multi_discrete_actions_keep_type_and_start(dtype):
    space = spaces.MultiDiscrete([3, 2], start=[1, 4], dtype=dtype)
    spec, to_action = action_spec(space)
    assert spec == ActionSpec(nvec=(3, 2))
    assert (spec.num_actions, spec.shape) == (5, (2,))
    action = to_action([2, 0])
    assert action.tolist() == [3, 4]
    assert space.contains(action)


def test_multi_discrete_of_one_part_is_like_discrete_inside():
    space = spaces.MultiDiscrete([3], start=[4])
    spec, to_action = action_spec(space)
    assert spec == ActionSpec(nvec=(3,))
    assert to_action(1).tolist() == [5]
    assert space.contains(to_action(1))


def test_multi_binary_actions_have_two_values_a_part():
    space = spaces.MultiBinary(3)
    spec, to_action = action_spec(space)
    assert spec == ActionSpec(nvec=(2, 2, 2))
    assert to_action([1, 0, 1]).tolist() == [1, 0, 1]
    assert space.contains(to_action([1, 0, 1]))


UNMASKABLE = [
    spaces.Box(0, 1, (2,)),
    spaces.MultiDiscrete([[2, 2], [2, 2]]),
    spaces.MultiBinary((2, 2)),
    spaces.Dict({"a": spaces.Discrete(2)}),
    spaces.Tuple((spaces.Discrete(2), spaces.Discrete(2))),
]


@pytest.mark.parametrize("space", UNMASKABLE, ids=str)
def test_actions_that_no_mask_fits_are_refused(space):
    with pytest.raises(SpaceError, match="Discrete, MultiDiscrete or MultiBinary"):
        action_spec(space)


@pytest.mark.parametrize(
    "env_kwargs",
    [{"observation": spaces.Sequence(spaces.Discrete(2))}, {"action": spaces.Box(0, 1, (2,))}],
    ids=["observation", "action"],
)
def test_an_env_with_such_spaces_is_refused(env_kwargs):
    with pytest.raises(SpaceError):
        join((Game(env_id=env_id("Spaces"), env_kwargs=env_kwargs),))


FIXED = [
    spaces.Discrete(5, start=2),
    spaces.Box(0, 255, (3, 4, 5), np.uint8),
    spaces.Box(-1, 1, (4, 5, 3), np.float64),
    spaces.Box(-1, 1, (2, 3), np.float32),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiBinary(3),
    spaces.Dict({"board": spaces.Box(0, 1, (2, 2)), "clock": spaces.Discrete(3, start=1)}),
    spaces.Tuple((spaces.MultiBinary(2), spaces.Box(0, 1, (1,)))),
]


@pytest.mark.parametrize("masks", [(), ("obs",)], ids=["plain", "mask in obs"])
@pytest.mark.parametrize("space", FIXED, ids=str)
def test_an_env_shows_what_its_space_becomes(space, masks):
    game = Game(env_id=env_id("Spaces"), env_kwargs={"observation": space, "masks": masks})
    spec = join((game,))
    env = MaskedEnv(spec, index=0, seed=0)
    raw = env.env.unwrapped.observation_space
    shown = [env.reset()[0], *(env.step(0 if not masks else 1)[0] for _ in range(5))]
    raw.seed(int(env.env.unwrapped.np_random_seed))  # the samples from the reset on, again
    samples = [raw.sample() for _ in shown]
    expected, convert = obs_spec(space)
    assert spec.obs == expected
    for obs, sample in zip(shown, samples, strict=True):
        assert np.shape(obs) == expected.shape
        assert np.array_equal(
            obs, np.asarray(convert(sample["observation"] if masks else sample), expected.dtype)
        )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("NoSuchGame-v0", "doesn't exist"),
        ("rlmask-tests/NoSuchGame-v0", "doesn't exist"),
        ("rlmask-tests/Corridor-v7", "v7"),
        ("no_such_module:Game-v0", "no_such_module"),
        ("not an id", "Malformed"),
    ],
)
def test_an_unknown_id_is_an_error_of_one_line(name, message):
    with pytest.raises(EnvError) as caught:
        make_env(name, {})
    assert name in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "message"), [("dependency", "pip install no-such-game"), ("import", "no_such_game")]
)
def test_a_missing_extra_is_an_error_of_one_line(error, message):
    with pytest.raises(EnvError) as caught:
        make_env(env_id("NeedsExtra"), {"error": error})
    assert str(caught.value).startswith(
        f"{env_id('NeedsExtra')} needs a package that is not installed: "
    )
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_keyword_is_an_error_of_one_line():
    with pytest.raises(EnvError) as caught:
        probe(Game(env_id=env_id("Corridor"), env_kwargs={"lenght": 4}))
    assert str(caught.value).startswith(f"{env_id('Corridor')} does not take these env_kwargs: ")
    assert "lenght" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("lacks", ["info", "seed"])
def test_the_old_reset_is_an_error_of_one_line(lacks):
    with pytest.raises(EnvError) as caught:
        probe(Game(env_id=env_id("OldReset"), env_kwargs={"lacks": lacks}))
    assert str(caught.value).startswith(f"{env_id('OldReset')} does not follow Gymnasium's API")
    assert "\n" not in str(caught.value)


def test_the_env_is_made_with_its_time_limit_and_without_passive_checks():
    env = make_env(env_id("Counter"), {})
    wrappers = []
    while isinstance(env, gym.Wrapper):
        wrappers.append(type(env).__name__)
        env = env.env
    assert "TimeLimit" in wrappers
    assert "PassiveEnvChecker" not in wrappers
