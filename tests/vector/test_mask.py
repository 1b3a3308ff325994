import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from envs_for_tests import FAULTY_MASKS, Spaces, env_id
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rlmask.vector import MASK_SOURCES, Game, MaskedEnv, MaskError, join
from rlmask.vector.mask import Where, canonical_mask, check_not_empty, resolve_source

TESTS = Path(__file__).parents[1]
WHERE = Where("Game-v0", index=3, episode=2, step=7)

# What is to be read about each faulty mask: the problem, and the remedy.
MESSAGES = {
    "list": ("is a list, not an array", "np.array(mask, dtype=bool)"),
    "tuple": ("is a tuple, not an array", "np.array(mask, dtype=bool)"),
    "half": ("entry 1 of the mask is 0.5", "put scores elsewhere"),
    "nan": ("entry 1 of the mask is nan", "put scores elsewhere"),
    "two": ("entry 1 of the mask is 2", "put scores elsewhere"),
    "minus one": ("entry 1 of the mask is -1", "put scores elsewhere"),
    "length 1": ("shape (1,), not (4,)", "one entry for each of the 4 actions"),
    "length 5": ("shape (5,), not (4,)", "one entry for each of the 4 actions"),
    "matrix": ("shape (1, 4), not (4,)", "one entry for each of the 4 actions"),
    "objects": ("dtype object", "np.array(mask, dtype=bool)"),
    "bytes": ("dtype |S1", "np.array(mask, dtype=bool)"),
    "strings": ("dtype <U1", "np.array(mask, dtype=bool)"),
    "empty": ("no action is valid, but the episode has not terminated", "terminated=True"),
    "missing": ("`info` has no action mask", "at every reset and step"),
}


def make_env(index=0, mask_source="auto", **env_kwargs):
    game = Game(env_id=env_id("Malformed"), env_kwargs=env_kwargs, mask_source=mask_source)
    return MaskedEnv(join((game,)), index=index, seed=0)


def canonical(mask, nvec=(4,), source="info"):
    return canonical_mask(mask, nvec, source, WHERE)


def test_every_fault_has_its_message():
    assert MESSAGES.keys() == FAULTY_MASKS.keys()


@pytest.mark.parametrize("fault", FAULTY_MASKS)
def test_a_faulty_mask_is_an_error_with_place_and_remedy(fault):
    env = make_env(index=3, fault=fault, at=2)
    env.reset()
    env.step(0)
    with pytest.raises(MaskError) as caught:
        env.step(0)
    problem, remedy = MESSAGES[fault]
    message = str(caught.value)
    assert message.startswith(f"{env_id('Malformed')}, env 3, episode 1, step 2: ")
    assert problem in message
    assert remedy in message.partition(problem)[2]
    assert "\n" not in message


@pytest.mark.parametrize("fault", sorted(FAULTY_MASKS.keys() - {"missing"}))
def test_a_faulty_first_mask_is_an_error_at_step_0(fault):
    with pytest.raises(MaskError, match="episode 1, step 0: "):
        make_env(fault=fault, at=0).reset()


@pytest.mark.parametrize("where", ["obs", "method"])
@pytest.mark.parametrize("fault", sorted(FAULTY_MASKS.keys() - {"list"}))
def test_a_faulty_mask_is_an_error_in_every_place(where, fault):
    env = make_env(where=where, fault=fault, at=1)
    env.reset()
    with pytest.raises(MaskError, match="episode 1, step 1: "):
        env.step(0)


@pytest.mark.parametrize("fault", sorted(FAULTY_MASKS.keys() - {"missing", "empty"}))
def test_a_faulty_mask_of_a_final_state_is_an_error_too(fault):
    env = make_env(fault=fault, at=4)
    env.reset()
    for _ in range(3):
        env.step(0)
    with pytest.raises(MaskError, match="episode 1, step 4: "):
        env.step(0)


def test_the_place_counts_episodes_and_their_steps():
    env = make_env(index=1, fault="two", at=3)
    env.reset()
    env.step(0)
    env.reset()
    env.step(0)
    env.step(0)
    with pytest.raises(MaskError, match="env 1, episode 2, step 3: "):
        env.step(0)


def test_a_mask_that_comes_late_is_an_error():
    env = make_env(fault="late", at=2)
    env.reset()
    env.step(3)  # no mask so far: every action is valid
    with pytest.raises(MaskError, match=r"step 2: info has an `action_mask`.* `info`"):
        env.step(3)


@pytest.mark.slow
def test_masks_are_checked_under_python_O():
    program = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
from envs_for_tests import FAULTY_MASKS, env_id
from rlmask.vector import Game, MaskedEnv, MaskError, join
assert False, "asserts are on"
for fault in FAULTY_MASKS:
    game = Game(env_id=env_id("Malformed"), env_kwargs=dict(fault=fault, at=1))
    env = MaskedEnv(join((game,)), index=0, seed=0)
    env.reset()
    try:
        env.step(0)
    except MaskError as error:
        print(fault, error, sep="|")
"""
    run = subprocess.run(
        [sys.executable, "-O", "-c", program], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    caught = dict(line.split("|", 1) for line in run.stdout.splitlines())
    assert caught.keys() == FAULTY_MASKS.keys()
    for fault, (problem, remedy) in MESSAGES.items():
        assert problem in caught[fault]
        assert remedy in caught[fault]


@pytest.mark.parametrize("dtype", ["?", "b", "B", "<i2", ">i2", "u4", "i8", "e", "f", "d", "g"])
def test_numbers_of_all_types_are_accepted_if_they_are_0_and_1(dtype):
    assert canonical(np.array([1, 0, 0, 1], dtype)) == b"\1\0\0\1"


def test_strided_and_read_only_masks_are_accepted():
    strided = np.array([1, 9, 0, 9, 1, 9, 1, 9])[::2]
    strided.flags.writeable = False
    assert canonical(strided) == b"\1\0\1\1"


def test_negative_zero_is_0():
    assert canonical(np.array([1.0, -0.0, 1.0, 0.0])) == b"\1\0\1\0"


@pytest.mark.parametrize("mask", [[1, 0, 0, 1], [True, False, False, True], [1.0, 0.0, 0.0, 1.0]])
def test_a_list_is_the_convention_of_the_method_alone(mask):
    assert canonical(mask, source="method") == b"\1\0\0\1"
    for source in ("info", "obs"):
        with pytest.raises(MaskError, match="is a list"):
            canonical(mask, source=source)


@pytest.mark.parametrize("mask", [[1, 0, 0, 2], [1, 0, 0], [[1, 0, 0, 1]], [1, 0, 0, None], [[]]])
def test_a_wrong_list_is_an_error_from_the_method_too(mask):
    with pytest.raises(MaskError):
        canonical(mask, source="method")


def test_parts_are_joined_in_the_order_of_nvec():
    parts = (np.array([1, 0], np.int8), np.array([False, True, True]))
    assert canonical(parts, (2, 3)) == b"\1\0\0\1\1"
    assert canonical(np.concatenate(parts), (2, 3)) == b"\1\0\0\1\1"


@pytest.mark.parametrize(
    "parts",
    [
        (np.ones(2),),
        (np.ones(2), np.ones(3), np.ones(1)),
        (np.ones(3), np.ones(2)),
        (np.ones(5), np.ones(0)),
        (np.ones(2), [1, 1, 1]),
        (np.ones(2), (1, 1, 1)),
        (np.ones(2), np.ones(3) * 2),
        (np.ones(2), None),
        (),
    ],
)
def test_wrong_parts_are_an_error(parts):
    with pytest.raises(MaskError):
        canonical(parts, (2, 3))


def test_hidden_entries_of_a_masked_array_are_not_filled_in():
    hidden = np.ma.array([1, 0, 1, 0], mask=[False, False, True, False])
    with pytest.raises(MaskError):
        canonical(hidden)


def is_mask(mask, size):
    """Say in other words than `canonical_mask` what it accepts from `info`."""
    if not isinstance(mask, np.ndarray) or mask.ndim != 1 or len(mask) != size:
        return False
    is_number = any(np.issubdtype(mask.dtype, t) for t in (np.bool_, np.integer, np.floating))
    return is_number and set(mask.tolist()) <= {0, 1}


NUMBERS = st.sampled_from(["?", "b", "B", "<i2", ">i4", "u8", "e", "f", "d"])
OTHERS = st.sampled_from(["F", "O", "U2", "S1", "M8[s]", "m8[s]", "b,f8"]).map(np.dtype)
SHAPES = st.one_of(st.just((4,)), hnp.array_shapes(min_dims=0, min_side=0, max_side=5))
NEARLY_MASKS = st.lists(st.sampled_from([0, 0, 0, 1, 1, 1, 2]), min_size=4, max_size=4)
ARRAYS = st.one_of(
    st.builds(lambda entries, dtype: np.array(entries).astype(dtype), NEARLY_MASKS, NUMBERS),
    hnp.arrays(NUMBERS, SHAPES),
    hnp.arrays(OTHERS, SHAPES),
)
LEAVES = st.one_of(
    ARRAYS, st.none(), st.integers(), st.floats(), st.text(), st.binary(), st.booleans()
)
OBJECTS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.lists(inner, max_size=5).map(tuple),
        st.dictionaries(st.text(max_size=2), inner, max_size=2),
    ),
    max_leaves=8,
)


@given(ARRAYS)
def test_an_array_is_accepted_as_it_is_or_refused(mask):
    if is_mask(mask, 4):
        assert list(canonical(mask)) == mask.tolist()
    else:
        with pytest.raises(MaskError):
            canonical(mask)


@given(OBJECTS, st.sampled_from([(4,), (1, 3)]), st.sampled_from(["info", "obs", "method"]))
def test_no_object_leads_to_anything_but_a_mask_or_a_mask_error(mask, nvec, source):
    try:
        flat = canonical(mask, nvec, source)
    except MaskError:
        return
    entries = np.concatenate(mask) if isinstance(mask, tuple) else np.array(mask)
    assert list(flat) == entries.tolist()


@pytest.mark.parametrize("mask", [b"\1\0\0\0\1", b"\0\1\1\1\1"])
def test_one_valid_action_a_part_is_enough(mask):
    check_not_empty(mask, (2, 3), WHERE)


@pytest.mark.parametrize(("mask", "part"), [(b"\0\0\1\1\1", 0), (b"\1\1\0\0\0", 1)])
def test_a_part_without_a_valid_action_is_an_error(mask, part):
    with pytest.raises(MaskError, match=f"part {part} has no valid action"):
        check_not_empty(mask, (2, 3), WHERE)


def test_an_empty_mask_is_an_error():
    with pytest.raises(MaskError, match="Game-v0, env 3, episode 2, step 7: no action is valid"):
        check_not_empty(b"\0\0\0", (3,), WHERE)


PLACES = ("info", "obs", "method")  # in the order of detection


@pytest.mark.parametrize("first", range(4))
def test_auto_takes_info_then_obs_then_method_then_none(first):
    env = gym.make(env_id("Spaces"), masks=PLACES[first:], disable_env_checker=True)
    obs, info = env.reset(seed=0)
    has_method = env.has_wrapper_attr("action_masks")
    source = resolve_source("auto", obs, info, has_method, WHERE)
    assert source == (*PLACES, "none")[first]


@pytest.mark.parametrize("source", PLACES)
def test_a_named_source_is_taken_where_there_are_several(source):
    game = Game(env_id=env_id("Spaces"), env_kwargs={"masks": PLACES}, mask_source=source)
    _, mask = MaskedEnv(join((game,)), index=0, seed=0).reset()
    assert list(mask) == [place == source for place in PLACES]


@pytest.mark.parametrize("named", [*PLACES, "none"])
@pytest.mark.parametrize("where", [*PLACES, "none"])
def test_a_wrong_source_is_an_error_that_names_the_right_one(named, where):
    if named == where:
        assert make_env(where=where, mask_source=named).reset()[1] in (b"\1\0\0\0", b"\1\1\1\1")
        return
    with pytest.raises(MaskError) as caught:
        make_env(where=where, mask_source=named).reset()
    message = str(caught.value)
    assert message.startswith(f"{env_id('Malformed')}, env 0, episode ")
    assert ", step 0: " in message
    assert f"set mask_source to `{where}`" in message.lower()


def test_the_sources_are_those_of_the_design():
    assert set(MASK_SOURCES) == {"auto", *PLACES, "none"}


def test_spaces_env_is_as_these_tests_assume():
    env = Spaces(masks=PLACES)
    obs, info = env.reset(seed=0)
    masks = [info["action_mask"], obs["action_mask"], env.action_masks()]
    assert np.array_equal(masks, np.eye(3))
