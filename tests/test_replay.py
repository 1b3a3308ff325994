import copy
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.testing import assert_close

from rlmask import checkpoint, kernels, replay
from rlmask.ops.masking import masked_max
from rlmask.replay import LEAST_PRIORITY, Replay, ReplayError
from rlmask.types import Chunk, ObsSpec

GAMMA = 0.9
BATCH = 64
FRAME_SHAPES = {"discrete": (), "vector": (2,), "image": (3, 2, 2)}
DTYPES = {"discrete": "int64", "vector": "float32", "image": "uint8"}
ENDS = [(True, False), (False, True), (True, True)]  # terminated, truncated


class Step(NamedTuple):
    obs: np.ndarray
    mask: np.ndarray
    action: int
    reward: np.float32
    terminated: bool
    truncated: bool
    next_obs: np.ndarray
    next_mask: np.ndarray
    place: int  # of the newest frame of obs, among all that its env has seen


class Envs:
    """N random envs, and all that ever happened in them: episodes, which are lists of steps.

    No two frames are alike, so that an observation tells which step starts there.
    """

    def __init__(
        self, num_envs=3, kind="discrete", num_actions=5, stack=1, padding="repeat", p_end=0.3
    ):
        self.kind, self.num_actions, self.stack, self.padding = kind, num_actions, stack, padding
        self.p_end, self.rng = p_end, np.random.default_rng(0)
        self.num_frames = 0
        self.seen = [0] * num_envs  # frames, those of the padding too
        self.episodes = [[] for _ in range(num_envs)]
        self.frames, self.masks = [None] * num_envs, [None] * num_envs
        for n in range(num_envs):
            self.reset(n)

    @property
    def spec(self):
        shape = FRAME_SHAPES[self.kind]
        shape = (*shape[:-1], shape[-1] * self.stack) if shape else ()
        n = 10**6 if self.kind == "discrete" else 0
        return ObsSpec(kind=self.kind, shape=shape, dtype=DTYPES[self.kind], n=n)

    def replay(self, slots, **options):
        """A buffer for these envs, with so many slots an env."""
        capacity = slots * len(self.seen)
        return Replay(
            len(self.seen), capacity, self.spec, self.num_actions, frame_stack=self.stack, **options
        )

    def new_frame(self):
        self.num_frames += 1
        shape = FRAME_SHAPES[self.kind]
        if self.kind == "discrete":
            return np.int64(self.num_frames)
        if self.kind == "vector":
            return self.rng.standard_normal(shape, np.float32)
        return self.rng.integers(0, 256, shape, np.uint8)

    def new_mask(self):
        mask = self.rng.random(self.num_actions) < 0.5
        mask[self.rng.integers(self.num_actions)] = True
        return mask

    def reset(self, n):
        frame = self.new_frame()
        padding = np.zeros_like(frame) if self.padding == "zeros" else frame
        self.frames[n] = [padding] * (self.stack - 1) + [frame]
        self.seen[n] += self.stack
        self.masks[n] = self.new_mask()
        self.episodes[n].append([])

    def obs_of(self, n):
        return np.concatenate(self.frames[n], -1) if self.stack > 1 else np.array(self.frames[n][0])

    @property
    def obs(self):
        return torch.from_numpy(np.stack([self.obs_of(n) for n in range(len(self.seen))]))

    @property
    def mask(self):
        return torch.from_numpy(np.stack(self.masks))

    def step(self):
        """One random step of every env, as `Replay.add` takes it."""
        steps, ended = [], []
        for n in range(len(self.seen)):
            obs, mask, place = self.obs_of(n), self.masks[n], self.seen[n] - 1
            self.frames[n] = [*self.frames[n][1:], self.new_frame()]
            self.seen[n] += 1
            terminated, truncated = False, False
            if self.rng.random() < self.p_end:
                terminated, truncated = ENDS[self.rng.integers(len(ENDS))]
                ended.append(n)
            is_empty = terminated and self.rng.random() < 0.5
            self.masks[n] = np.zeros_like(mask) if is_empty else self.new_mask()
            action, reward = int(self.rng.choice(np.flatnonzero(mask))), self.rng.standard_normal()
            after = self.obs_of(n), self.masks[n]
            step = Step(obs, mask, action, np.float32(reward), terminated, truncated, *after, place)
            self.episodes[n][-1].append(step)
            steps.append(step)
            if terminated or truncated:
                self.reset(n)
        finals = [steps[n] for n in ended]
        return {
            "action": torch.tensor([step.action for step in steps]),
            "reward": torch.tensor(np.array([step.reward for step in steps])),
            "terminated": torch.tensor([step.terminated for step in steps]),
            "obs": self.obs,
            "action_mask": self.mask,
            "ended": torch.tensor(ended, dtype=torch.int64),
            "final_obs": tensor((step.next_obs for step in finals), self.obs[:0]),
            "final_action_mask": tensor((step.next_mask for step in finals), self.mask[:0]),
        }

    def stored(self, slots):
        """The steps that can be drawn, by their observation: the rest of the episode from there.

        Those with all their frames among the last that so many slots an env can hold.
        """
        return {
            step.obs.tobytes(): episode[t:]
            for seen, episodes in zip(self.seen, self.episodes, strict=True)
            for episode in episodes
            for t, step in enumerate(episode)
            if step.place - self.stack + 1 >= seen - slots
        }


def tensor(arrays, empty=None):
    arrays = list(arrays)
    return torch.from_numpy(np.stack(arrays)) if arrays else empty


def filled(envs, slots, num_steps, **options):
    buffer = envs.replay(slots, **options)
    buffer.start(envs.obs, envs.mask)
    for _ in range(num_steps):
        buffer.add(**envs.step())
    return buffer


def keys(obs):
    """One key a row, as in `Envs.stored`."""
    return [row.tobytes() for row in obs.numpy()]


def assert_drawn_as_it_happened(buffer, envs, slots, n_step, batch_size=BATCH):
    drawn, _, _ = buffer.sample(batch_size, gamma=GAMMA, n_step=n_step)
    stored = envs.stored(slots)
    starts = keys(drawn.obs)
    assert stored.keys() >= set(starts)
    windows = [stored[start][:n_step] for start in starts]
    first, last = [window[0] for window in windows], [window[-1] for window in windows]
    assert torch.equal(drawn.obs, tensor(step.obs for step in first))
    assert torch.equal(drawn.action_mask, tensor(step.mask for step in first))
    assert drawn.action.tolist() == [step.action for step in first]
    assert torch.equal(drawn.next_obs, tensor(step.next_obs for step in last))
    assert torch.equal(drawn.next_action_mask, tensor(step.next_mask for step in last))
    rewards = [sum(GAMMA**k * step.reward for k, step in enumerate(window)) for window in windows]
    assert_close(drawn.reward, torch.tensor(rewards, dtype=torch.float32))
    discounts = [0 if window[-1].terminated else GAMMA ** len(window) for window in windows]
    assert_close(drawn.discount, torch.tensor(discounts, dtype=torch.float32))


# --- against a history in lists


STREAMS = [
    {"kind": "discrete", "num_actions": 1},
    {"kind": "discrete", "num_actions": 9, "num_envs": 1},
    {"kind": "discrete", "num_actions": 300},
    {"kind": "vector", "num_actions": 7},
    {"kind": "image", "num_actions": 8},
    {"kind": "image", "num_actions": 20, "num_envs": 7},
    {"kind": "vector", "num_actions": 9, "stack": 3},
    {"kind": "vector", "num_actions": 1, "stack": 4, "padding": "zeros"},
    {"kind": "image", "num_actions": 8, "stack": 4},
    {"kind": "image", "num_actions": 20, "stack": 3, "padding": "zeros"},
]
streams = pytest.mark.parametrize(
    "stream", STREAMS, ids=lambda stream: "-".join(map(str, stream.values()))
)


@streams
@pytest.mark.parametrize("prioritized", [False, True])
def test_transitions_are_those_that_happened(stream, prioritized):
    slots = 31
    envs = Envs(**stream, p_end=0.2)
    buffer = filled(envs, slots, 0, prioritized=prioritized)
    for step in range(250):
        buffer.add(**envs.step())
        assert len(buffer) == len(envs.stored(slots))
        if step % 10 == 0:
            for n_step in (1, 3, 5):
                assert_drawn_as_it_happened(buffer, envs, slots, n_step)


@settings(max_examples=40)
@given(
    st.sampled_from(["vector", "image"]),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(0, 5),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.integers(1, 6),
)
def test_the_smallest_buffers_keep_what_happened(kind, num_envs, stack, more, p_end, n_step):
    slots = 2 * stack + 2 + more
    envs = Envs(num_envs, kind, stack=stack, p_end=p_end)
    buffer = filled(envs, slots, 0)
    for _ in range(5 * slots):
        buffer.add(**envs.step())
        assert len(buffer) == len(envs.stored(slots)) >= num_envs
        assert_drawn_as_it_happened(buffer, envs, slots, n_step, batch_size=5)


def test_an_episode_takes_a_slot_more_than_it_has_steps():
    slots = 30
    always_ending = Envs(num_envs=1, p_end=1.0)
    assert len(filled(always_ending, slots, 100)) == slots // 2 - 1, "a reset holds the last two"
    never_ending = Envs(num_envs=1, p_end=0.0)
    assert len(filled(never_ending, slots, 100)) == slots - 1


def test_the_window_of_a_transition_ends_with_the_episode_or_with_what_is_known():
    for name in ("terminated", "truncated", "neither"):
        envs = Envs(num_envs=1, p_end=0.0)
        buffer = filled(envs, 10, 1)
        step = envs.step()
        final = step["obs"]
        if name != "neither":
            step["terminated"][:] = name == "terminated"
            step |= {"ended": torch.tensor([0]), "final_obs": final}
            step |= {"final_action_mask": step["action_mask"], "obs": torch.tensor([999])}
        buffer.add(**step)
        drawn, _, _ = buffer.sample(BATCH, gamma=0.5, n_step=5)
        first, second = (step.reward for step in envs.episodes[0][0])
        is_first = drawn.obs == envs.episodes[0][0][0].obs.item()
        assert_close(drawn.reward, torch.where(is_first, first + 0.5 * second, second))
        discount = torch.where(is_first, 0.25, 0.5) if name != "terminated" else 0 * drawn.reward
        assert torch.equal(drawn.discount, discount)
        assert (drawn.next_obs == final).all()


# --- draws


def chi_square(counts, expected):
    return sum((counts - expected) ** 2 / expected)


def assert_like(counts, probability):
    """A χ² of k - 1 degrees has mean k - 1 and standard deviation √(2 (k - 1)); 5 of them."""
    freedom = len(counts) - 1
    assert chi_square(counts, probability * counts.sum()) < freedom + 5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("stack", [1, 3])
@pytest.mark.parametrize("num_steps", [12, 100], ids=["half full", "full"])
def test_every_stored_transition_is_drawn_equally_often(stack, num_steps):
    slots = 40
    envs = Envs(kind="vector", stack=stack)
    buffer = filled(envs, slots, num_steps)
    stored = envs.stored(slots)
    drawn, _, weight = buffer.sample(300 * len(stored), gamma=GAMMA)
    keys_drawn, counts = np.unique(keys(drawn.obs), return_counts=True)
    assert set(keys_drawn) == stored.keys()
    assert_like(counts, np.full(len(stored), 1 / len(stored)))
    assert torch.equal(weight, torch.ones(len(weight)))


def test_neither_final_nor_newest_observations_are_drawn():
    envs = Envs()
    buffer = filled(envs, 40, 100)
    drawn, _, _ = buffer.sample(20_000, gamma=GAMMA)
    final = {
        episode[-1].next_obs.tobytes()
        for episodes in envs.episodes
        for episode in episodes
        if episode
    }
    assert not set(keys(drawn.obs)) & (final | set(keys(envs.obs)))
    assert set(keys(drawn.next_obs)) & final, "they are successors"


@pytest.mark.parametrize("prioritized", [False, True])
def test_the_index_is_the_same_for_the_same_transition(prioritized):
    buffer = filled(Envs(), 40, 100, prioritized=prioritized)
    drawn, index, _ = buffer.sample(5000, gamma=GAMMA)
    pairs = set(zip(keys(drawn.obs), index.tolist(), strict=True))
    assert len(pairs) == len(set(keys(drawn.obs))) == len(set(index.tolist())) == len(buffer)


@pytest.mark.parametrize("prioritized", [False, True])
def test_the_seed_decides_what_is_drawn(prioritized):
    first, same, other = (
        filled(Envs(), 40, 50, seed=seed, prioritized=prioritized).sample(BATCH, gamma=GAMMA)[1]
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


# --- how it is stored


@streams
def test_a_batch_has_its_own_memory_and_the_dtypes_of_the_envs(stream):
    envs = Envs(**stream)
    buffer = filled(envs, 20, 30)
    drawn, index, weight = buffer.sample(BATCH, gamma=GAMMA, n_step=2)
    shape, num_actions = envs.spec.shape, stream["num_actions"]
    for obs in (drawn.obs, drawn.next_obs):
        assert (obs.dtype, obs.shape) == (envs.spec.torch_dtype, (BATCH, *shape))
        assert obs.is_contiguous()
    for mask in (drawn.action_mask, drawn.next_action_mask):
        assert (mask.dtype, mask.shape) == (torch.bool, (BATCH, num_actions))
        assert mask.is_contiguous()
        assert mask.view(torch.uint8).max() <= 1
    assert masked_max(torch.zeros(BATCH, num_actions), drawn.action_mask).eq(0).all()
    for values, dtype in [
        (drawn.action, torch.int64),
        (drawn.reward, torch.float32),
        (drawn.discount, torch.float32),
        (index, torch.int64),
        (weight, torch.float32),
    ]:
        assert (values.dtype, values.shape) == (dtype, (BATCH,))
    before = copy.deepcopy(drawn)
    for _ in range(40):
        buffer.add(**envs.step())
    for name, values in vars(before).items():
        assert torch.equal(getattr(drawn, name), values)


def test_each_frame_is_stored_once():
    spec = ObsSpec(kind="image", shape=(84, 84, 4), dtype="uint8")
    whole, once = (Replay(8, 10_000, spec, 18, frame_stack=k).num_bytes for k in (1, 4))
    assert 84 * 84 * 4 * 10_000 < whole < 84 * 84 * 4 * 10_000 * 1.01
    assert once / whole == pytest.approx(1 / 4, rel=0.01)


def test_masks_take_a_bit_an_action():
    spec = ObsSpec(kind="discrete", shape=(), dtype="int64", n=10)
    buffer = Replay(10, 10**6, spec, 1000)
    assert buffer._ring.masks.nbytes == 10**6 * 1000 / 8 < 260e6
    assert buffer.num_bytes - buffer._ring.masks.nbytes < 10**6 * 32


def test_priorities_take_a_tree_of_two_numbers_a_slot():
    envs = Envs(num_envs=2)
    more = envs.replay(32, prioritized=True).num_bytes - envs.replay(32).num_bytes
    assert more == 64 * 2 * 8


def test_the_capacity_is_rounded_up_to_whole_columns():
    envs = Envs(num_envs=3, p_end=0.0)
    buffer = Replay(3, 31, envs.spec, envs.num_actions)
    buffer.start(envs.obs, envs.mask)
    for _ in range(50):
        buffer.add(**envs.step())
    assert len(buffer) == 3 * (11 - 1)


# --- priorities


def leaves(buffer):
    return buffer.capture()["priority"].copy()


def all_indices(buffer):
    """The index of every transition."""
    index = buffer.sample(50 * len(buffer), gamma=GAMMA)[1].unique()
    assert len(index) == len(buffer)
    return index


def random_priorities(count, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).uniform(0.1, 5.0, count)).float()


def with_priorities(exponent=0.7, **options):
    buffer = filled(Envs(**options), 40, 100, prioritized=True, priority_exponent=exponent, seed=3)
    index = all_indices(buffer)
    priority = random_priorities(len(index))
    buffer.update_priorities(index, priority)
    raised = (priority.double().numpy() + LEAST_PRIORITY) ** exponent
    return buffer, index, dict(zip(index.tolist(), raised / raised.sum(), strict=True))


def test_single_draws_are_in_proportion_to_the_priorities():
    buffer, index, probability = with_priorities()
    drawn = [buffer.sample(1, gamma=GAMMA)[1].item() for _ in range(4000)]
    counts = np.array([drawn.count(i) for i in index.tolist()])
    assert_like(counts, np.array(list(probability.values())))


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_a_batch_takes_one_from_each_equal_part_of_the_sum(exponent):
    buffer, index, probability = with_priorities(exponent)
    size = 5000
    _, drawn, _ = buffer.sample(size, gamma=GAMMA)
    counts = np.bincount(drawn.numpy(), minlength=index.max() + 1)
    for i, share in probability.items():
        # of the parts that touch its own, only the two at the borders are in doubt
        assert abs(counts[i] - size * share) < 2


def test_each_of_several_batches_is_spread_over_the_whole_sum():
    envs = Envs(num_envs=1, p_end=0.0)
    buffer = filled(envs, 40, 32, prioritized=True)  # slots 0 to 31, all of the same priority
    for _ in range(20):
        _, drawn, _ = buffer.sample(8, num_batches=4, gamma=GAMMA)
        assert drawn.sort().values.tolist() == list(range(32))
        for batch in drawn.split(8):
            assert (batch // 4).tolist() == list(range(8)), "one in each eighth"


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_weights_are_those_of_importance_sampling(beta):
    buffer, _, probability = with_priorities()
    for batch_size in (1, 7, BATCH):
        _, drawn, weight = buffer.sample(batch_size, gamma=GAMMA, importance_exponent=beta)
        raw = [(len(buffer) * probability[i]) ** -beta for i in drawn.tolist()]
        assert_close(weight, torch.tensor(raw, dtype=torch.float32) / max(raw))


def test_a_new_transition_gets_the_largest_priority_so_far():
    exponent = 0.7
    envs = Envs(num_envs=1, p_end=0.0)
    buffer = filled(envs, 100, 1, prioritized=True, priority_exponent=exponent)
    expected = [1.0]
    for given_, largest in [(0.3, 1.0), (7.5, 7.5), (2.0, 7.5), (9.0, 9.0)]:
        buffer.update_priorities(torch.tensor([0]), torch.tensor([given_]))
        buffer.add(**envs.step())
        expected[0] = given_
        expected.append(largest)
        raised = (np.array(expected) + LEAST_PRIORITY) ** exponent
        assert leaves(buffer)[: len(expected)] == pytest.approx(raised, rel=2e-6)


def test_a_priority_of_zero_can_still_be_drawn():
    buffer = filled(Envs(num_envs=1, p_end=0.0), 30, 10, prioritized=True)
    index = all_indices(buffer)
    buffer.update_priorities(index, torch.zeros(len(index)))
    assert len(all_indices(buffer)) == 10


@pytest.mark.parametrize("stack", [1, 3])
def test_every_sum_is_that_of_its_two_children(stack):
    envs = Envs(kind="vector", stack=stack)
    buffer = filled(envs, 33, 0, prioritized=True)
    rng = np.random.default_rng(0)
    for _ in range(200):
        buffer.add(**envs.step())
        _, index, _ = buffer.sample(8, gamma=GAMMA)
        buffer.update_priorities(index, torch.from_numpy(10.0 ** rng.uniform(-9, 9, 8)))
    tree = buffer._ring.tree
    half = len(tree) // 2
    assert np.array_equal(tree[1:half], tree[2::2] + tree[3::2])
    again = np.concatenate([np.zeros(half), tree[half:]])
    kernels.rebuild(again)
    assert np.array_equal(again[1:], tree[1:])
    assert tree[1] == pytest.approx(math.fsum(tree[half:]), rel=1e-12)
    assert np.count_nonzero(tree[half:]) == len(buffer) == len(envs.stored(33))


def tree_of(priorities):
    size = 2 ** (len(priorities) - 1).bit_length()
    tree = np.zeros(2 * size)
    for leaf, priority in enumerate(priorities):
        kernels.set_leaf(tree, leaf, priority)
    return tree


def found(tree, mass):
    result = np.empty(len(mass), np.int64)
    kernels.find_leaves(tree, np.array(mass, np.float64), result)
    return result


@pytest.mark.parametrize("size", [2, 4, 16, 64])
def test_a_tree_is_rebuilt_from_its_leaves(size):
    priorities = np.random.default_rng(0).uniform(0, 1, size)
    tree, again = tree_of(priorities), np.concatenate([np.full(size, 9.0), priorities])
    kernels.rebuild(again)
    assert np.array_equal(tree[1:], again[1:])
    assert tree[1] == pytest.approx(math.fsum(priorities))


@given(hnp.arrays(np.int64, st.integers(2, 40), elements=st.integers(0, 3)))
def test_leaves_are_found_as_by_a_search_from_the_left(priorities):
    cumulated = np.cumsum(priorities)
    mass = np.arange(0, cumulated[-1], 0.5)
    expected = [next(leaf for leaf, c in enumerate(cumulated) if c > m) for m in mass]
    assert found(tree_of(priorities), mass).tolist() == expected


@given(
    hnp.arrays(
        np.float64,
        st.integers(2, 40),
        elements=st.sampled_from([0.0, 0.0, 5e-324, 1e-300, 1e-9, 0.1, 1 / 3, 1.0, 7e8, 1e300]),
    ).filter(np.any)
)
def test_no_leaf_of_priority_zero_is_found(priorities):
    tree = tree_of(priorities)
    total = tree[1]
    cumulated = np.cumsum(priorities)
    mass = [0.0, *cumulated, *np.nextafter(cumulated, 0), *np.nextafter(cumulated, np.inf)]
    mass += [total, np.nextafter(total, 0), 2 * total, *np.linspace(0, total, 20)]
    assert (priorities[found(tree, mass)] > 0).all()


def test_the_priority_of_what_is_no_longer_there_is_ignored():
    envs = Envs(num_envs=1, p_end=0.0)
    buffer = filled(envs, 6, 3, prioritized=True)
    _, index, _ = buffer.sample(50, gamma=GAMMA)
    assert set(index.tolist()) == {0, 1, 2}
    for _ in range(4):  # 0 to 5 are full after two; slot 1 then holds the newest observation
        buffer.add(**envs.step())
    before = leaves(buffer)
    buffer.update_priorities(torch.tensor([1, 1]), torch.tensor([5.0, 7.0]))
    assert np.array_equal(leaves(buffer), before)
    assert before[1] == 0
    buffer.update_priorities(torch.tensor([1, 2]), torch.tensor([5.0, 5.0]))
    assert (leaves(buffer) != before).nonzero()[0].tolist() == [2]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -1.0, -1e-7, 1e39])
def test_a_priority_that_is_none_is_refused_and_nothing_changes(bad):
    buffer, index, _ = with_priorities()
    before = content(buffer)
    priority = torch.ones(len(index), dtype=torch.float64)
    priority[3] = bad
    with pytest.raises(ReplayError, match="finite and not negative"):
        buffer.update_priorities(index, priority)
    assert content(buffer) == before


def test_a_uniform_buffer_has_no_priorities():
    buffer, twin = filled(Envs(), 20, 30), filled(Envs(), 20, 30)
    buffer.update_priorities(torch.tensor([0, 1]), torch.tensor([1.0, 2.0]))
    _, index, weight = buffer.sample(BATCH, gamma=GAMMA, importance_exponent=0.5)
    assert torch.equal(index, twin.sample(BATCH, gamma=GAMMA)[1])
    assert weight.eq(1).all()


# --- errors


def test_an_empty_buffer_cannot_be_drawn_from():
    envs = Envs()
    for buffer in (envs.replay(20), filled(envs, 20, 0), filled(envs, 20, 0, prioritized=True)):
        assert len(buffer) == 0
        with pytest.raises(ReplayError, match="empty"):
            buffer.sample(4, gamma=GAMMA)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"num_batches": 0}, {"n_step": 0}])
def test_no_rows_and_no_steps_are_refused(wrong):
    buffer = filled(Envs(), 20, 30)
    with pytest.raises(ReplayError, match=f"{next(iter(wrong))} (is )?0"):
        buffer.sample(**{"batch_size": 4, "gamma": GAMMA} | wrong)


def test_a_step_before_the_start_or_of_other_envs_is_refused():
    envs, others = Envs(num_envs=3), Envs(num_envs=2)
    buffer = envs.replay(20)
    with pytest.raises(ReplayError, match="call `start`"):
        buffer.add(**envs.step())
    for act in (lambda: buffer.start(others.obs, others.mask), lambda: buffer.add(**others.step())):
        with pytest.raises(ReplayError, match="of 3 envs, but this is of 2"):
            act()
    assert len(buffer) == 0


@pytest.mark.parametrize(("num_envs", "stack", "least"), [(1, 1, 4), (5, 1, 20), (2, 3, 16)])
def test_a_capacity_that_is_too_small_is_refused(num_envs, stack, least):
    spec = ObsSpec(kind="vector", shape=(6,), dtype="float32")
    Replay(num_envs, least, spec, 3, frame_stack=stack)
    with pytest.raises(ReplayError, match=f"make it at least {least}"):
        Replay(num_envs, least - num_envs, spec, 3, frame_stack=stack)


@pytest.mark.parametrize(
    ("kind", "shape", "stack"),
    [("image", (4, 4, 4), 3), ("vector", (5,), 2), ("discrete", (), 2), ("vector", (5,), 0)],
)
def test_frames_that_do_not_divide_the_observation_are_refused(kind, shape, stack):
    spec = ObsSpec(kind=kind, shape=shape, dtype=DTYPES[kind])
    with pytest.raises(ReplayError, match=f"frame_stack is {stack}"):
        Replay(1, 100, spec, 3, frame_stack=stack)


def test_frames_that_do_not_move_on_by_one_are_refused_and_nothing_is_stored():
    envs = Envs(kind="image", stack=3)
    buffer = filled(envs, 20, 40, prioritized=True)
    while len((step := envs.step())["ended"]) != 1:
        buffer.add(**step)
    before = content(buffer)
    ended = step["ended"].item()
    other = (ended + 1) % 3
    for name, row, env in [("final_obs", 0, ended), ("obs", other, other)]:
        for channel in (0, 2):  # of the oldest and of the second frame
            wrong = step | {name: step[name].clone()}
            wrong[name][row, 2, 1, channel] ^= 1
            with pytest.raises(ReplayError, match=f"env {env}: .* 3 frames"):
                buffer.add(**wrong)
            assert content(buffer) == before
    buffer.add(**step)
    assert content(buffer) != before


# --- capture, restore, resume


def frozen(buffer):
    """A captured state as a checkpoint keeps it: with no memory of the buffer."""
    state = buffer.capture()
    chunks = {}
    for name, chunk in state.pop("chunks").items():
        arrays = {key: array.copy() for key, array in chunk.read().items()}
        chunks[name] = Chunk(version=chunk.version, read=lambda arrays=arrays: arrays)
    return copy.deepcopy(state) | {"chunks": chunks}


def plain(value):
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, Chunk):
        return value.version, plain(value.read())
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def content(buffer):
    """All that a buffer holds, to be compared."""
    return plain(buffer.capture())


def train(buffer, steps):
    """Samples, weights and updates in turn; returns what was drawn."""
    seen = []
    for step in steps:
        buffer.add(**step)
        drawn, index, weight = buffer.sample(8, gamma=GAMMA, n_step=3, importance_exponent=0.5)
        buffer.update_priorities(index, drawn.reward.abs() + weight)
        seen += [*vars(drawn).values(), index, weight]
    return seen


@pytest.mark.parametrize("prioritized", [False, True])
@pytest.mark.parametrize("stack", [1, 3])
@pytest.mark.parametrize("num_steps", [5, 100], ids=["part full", "full"])
@pytest.mark.parametrize("chunk_bytes", [200, replay.CHUNK_BYTES])
def test_a_restored_buffer_goes_on_bit_for_bit(
    monkeypatch, prioritized, stack, num_steps, chunk_bytes
):
    monkeypatch.setattr(replay, "CHUNK_BYTES", chunk_bytes)
    envs = Envs(kind="image", stack=stack)
    options = {"slots": 40, "prioritized": prioritized}
    whole = filled(envs, num_steps=0, seed=5, **options)
    train(whole, [envs.step() for _ in range(num_steps)])
    state, obs, mask = frozen(whole), envs.obs, envs.mask
    fresh = envs.replay(seed=6, **options)
    fresh.restore(state)
    fresh.resume(obs, mask)
    used = filled(Envs(kind="image", stack=stack, p_end=0.0), num_steps=60, **options)
    used.restore(state)
    assert content(fresh) == content(used) == content(whole)
    assert len(fresh) == len(used) == len(whole)
    later = [envs.step() for _ in range(90)]
    expected = train(whole, later)
    for restored in (fresh, used):
        assert all(map(torch.equal, train(restored, later), expected))
    assert content(fresh) == content(whole)


def test_a_state_of_another_size_is_refused_and_nothing_changes():
    spec = {"obs": Envs(kind="vector").spec, "num_actions": 5}
    buffer = filled(Envs(kind="vector"), 20, 30)
    state, others = frozen(buffer), []
    others.append(Replay(3, 66, **spec))
    others.append(Replay(2, 60, **spec))
    others.append(Replay(3, 60, **spec, prioritized=True))
    others.append(Replay(3, 60, **spec | {"num_actions": 9}))
    others.append(Replay(3, 60, **spec | {"obs": Envs(kind="image").spec}))
    for other in others:
        before = content(other)
        with pytest.raises(ReplayError, match="another size"):
            other.restore(state)
        assert content(other) == before


def bytes_of_slots(envs, slots):
    """CHUNK_BYTES for so many slots of this kind of observation."""
    frame = math.prod(FRAME_SHAPES[envs.kind]) * np.dtype(DTYPES[envs.kind]).itemsize
    return slots * (frame + -(-envs.num_actions // 8) + 4 + 4 + 1)


@pytest.mark.parametrize("num_slots", [1, 4, 11, 40, 59])
@pytest.mark.parametrize("stack", [1, 3])
def test_a_chunk_has_a_new_version_when_it_was_written_to(monkeypatch, stack, num_slots):
    envs = Envs(num_envs=2, kind="image", stack=stack)
    monkeypatch.setattr(replay, "CHUNK_BYTES", bytes_of_slots(envs, num_slots))
    buffer = filled(envs, 30, 0)
    rows = [len(buffer._chunk(i)["flags"]) for i in range(len(buffer._ring.writes))]
    assert sum(rows) == 60
    assert max(rows) <= num_slots
    for _ in range(100):
        before = content(buffer)["chunks"]
        newest = buffer._ring.head.copy()
        seen = list(envs.seen)
        buffer.add(**envs.step())
        after = content(buffer)["chunks"]
        for name, (version, arrays) in after.items():
            old_version, old_arrays = before.get(name, (0, None))
            assert version > old_version or (version, arrays) == (old_version, old_arrays)
        touched = {
            30 * n + (newest[n] + i) % 30
            for n in range(2)
            for i in range(envs.seen[n] - seen[n] + stack)  # of frames lost, a step is the last
        }
        written = {f"{slot // max(rows):06d}" for slot in touched}
        assert {name for name in after if after[name][0] != before.get(name, (0,))[0]} == written


def test_a_checkpoint_of_what_changed_is_the_whole_buffer(monkeypatch, tmp_path):
    envs = Envs(num_envs=2, kind="image", stack=3)
    monkeypatch.setattr(replay, "CHUNK_BYTES", bytes_of_slots(envs, 11))
    buffer, previous = filled(envs, 30, 0, prioritized=True), None
    for step in range(60):
        buffer.add(**envs.step())
        if step % 3 == 0:
            path = tmp_path / str(step)
            checkpoint.save(path, {"replay": buffer.capture()}, previous)
            fresh = envs.replay(30, prioritized=True)
            fresh.restore(checkpoint.load(path)["replay"])
            assert content(fresh) == content(buffer)
            previous = path


def test_draws_and_priorities_write_no_chunk(monkeypatch):
    monkeypatch.setattr(replay, "CHUNK_BYTES", 200)
    buffer, index, _ = with_priorities()
    before = content(buffer)["chunks"]
    buffer.update_priorities(index, random_priorities(len(index), seed=1))
    buffer.sample(BATCH, gamma=GAMMA)
    assert content(buffer)["chunks"] == before
    assert len(before) > 3


def test_chunks_that_were_never_written_to_are_not_captured(monkeypatch):
    envs = Envs(num_envs=2, p_end=0.0)
    monkeypatch.setattr(replay, "CHUNK_BYTES", bytes_of_slots(envs, 10))
    buffer = filled(envs, 30, 5)
    assert set(buffer.capture()["chunks"]) == {"000000", "000003"}


@pytest.mark.parametrize("prioritized", [False, True])
@pytest.mark.parametrize("stream", [STREAMS[0], STREAMS[3], STREAMS[8]], ids=lambda s: s["kind"])
def test_resuming_at_the_same_observations_changes_nothing(stream, prioritized):
    envs = Envs(**stream)
    buffer = filled(envs, 20, 50, prioritized=prioritized)
    before = content(buffer)
    buffer.resume(envs.obs, envs.mask)
    assert content(buffer) == before


@pytest.mark.parametrize("stream", [STREAMS[0], STREAMS[3], STREAMS[8]], ids=lambda s: s["kind"])
def test_resuming_elsewhere_begins_an_episode_there(stream):
    slots = 20
    envs = Envs(**stream)
    buffer = filled(envs, slots, 50)
    envs.p_end = 0.0
    buffer.add(**envs.step())
    newest, envs.p_end = keys(envs.obs)[1], 0.3
    envs.reset(1)
    buffer.resume(envs.obs, envs.mask)
    assert len(buffer) == len(envs.stored(slots))
    for _ in range(4):
        buffer.add(**envs.step())
        drawn, _, _ = buffer.sample(50 * len(buffer), gamma=GAMMA)
        assert newest not in keys(drawn.obs)
        assert newest in keys(drawn.next_obs)
        for n_step in (1, 3, 5):
            assert_drawn_as_it_happened(buffer, envs, slots, n_step)


def test_a_single_pixel_or_action_makes_another_place_to_resume_at():
    envs = Envs(kind="image", num_actions=9)
    buffer = filled(envs, 20, 20)
    obs, mask = envs.obs, envs.mask
    obs[0, 2, 1, 1] ^= 1
    mask[2, 8] ^= True
    buffer.resume(obs, mask)
    envs.seen = [seen + more for seen, more in zip(envs.seen, (1, 0, 1), strict=True)]
    assert buffer.capture()["head"].tolist() == [(seen - 1) % 20 for seen in envs.seen]


# --- compiled code


def test_functions_are_compiled_where_no_cache_can_be_written():
    namespace = {}
    exec("def double(x): return 2 * x", namespace)  # numba has no place for what is in no file
    assert kernels.compiled(namespace["double"])(3) == 6
