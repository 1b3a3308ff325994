"""The compiled loops of the replay buffer: ring, n-step returns, packed masks, sum tree.

All of them in one file, since Numba's cache on disk does not see a change in another.

Dimension key: `S` slots (of all columns), `N` columns, one an env, `K` stacked frames, `B` batch,
`A` union actions.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, no_type_check

import numpy as np
from numba import njit

# what a slot's flags say of the transition from it to the slot behind it
STEP, TERMINATED = np.uint8(1), np.uint8(2)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function, and keep the machine code on disk where that is possible."""
    try:
        return njit(cache=True)(function)
    except RuntimeError:  # nowhere to write to
        return njit(function)


class Ring(NamedTuple):
    """N columns of equal length; each holds the observations of one env in their order.

    The slot behind the one of a state is that of its true successor: after the last step of an
    episode comes its final observation, from which no step starts, and then the next episode. Each
    observation and each mask is stored once, and is s of one transition and s' of another.
    """

    frames: np.ndarray  # [S, bytes] uint8, the newest frame of the observation
    masks: np.ndarray  # [S, ceil(A / 8)] uint8, eight actions a byte, the lowest bit first
    action: np.ndarray  # [S] int32
    reward: np.ndarray  # [S] float32
    flags: np.ndarray  # [S] uint8; 0 unless a transition that can be drawn starts here
    tree: np.ndarray  # [2 L] float64, L >= S a power of two: sums of priorities; empty if uniform
    head: np.ndarray  # [N] int64, the slot in its column of each env's newest observation
    filled: np.ndarray  # [N] int64, slots of each column that have been written
    num_stored: np.ndarray  # [1] int64, transitions that can be drawn
    writes: np.ndarray  # [chunks] int64, how often each chunk of slots was written to


def empty_ring(
    columns: int, slots: int, frame_bytes: int, mask_bytes: int, num_chunks: int, prioritized: bool
) -> Ring:
    """Return a ring in which nothing is written yet; without a tree unless prioritized."""
    num_leaves = 2 ** (slots - 1).bit_length() if prioritized else 0
    return Ring(
        frames=np.zeros((slots, frame_bytes), np.uint8),
        masks=np.zeros((slots, mask_bytes), np.uint8),
        action=np.zeros(slots, np.int32),
        reward=np.zeros(slots, np.float32),
        flags=np.zeros(slots, np.uint8),
        tree=np.zeros(2 * num_leaves),
        head=np.full(columns, -1, np.int64),
        filled=np.zeros(columns, np.int64),
        num_stored=np.zeros(1, np.int64),
        writes=np.zeros(num_chunks, np.int64),
    )


# `no_type_check` keeps the shape checks of the tests out of what is compiled


@compiled
@no_type_check
def set_leaf(tree, leaf, value):
    """Set a priority. Every sum is that of its two children, so no rounding error adds up."""
    if tree.size == 0:
        return
    i = tree.size // 2 + leaf
    tree[i] = value
    i //= 2
    while i > 0:
        tree[i] = tree[2 * i] + tree[2 * i + 1]
        i //= 2


@compiled
@no_type_check
def rebuild(tree):
    """Sum up the leaves."""
    for i in range(tree.size // 2 - 1, 0, -1):
        tree[i] = tree[2 * i] + tree[2 * i + 1]


@compiled
@no_type_check
def find_leaves(tree, mass, leaves):
    """Find the leaf at which the cumulated priorities exceed each mass [B].

    Level by level, so that the memory is waited for by all together. A leaf of priority 0 is never
    found, whatever the rounding: no step goes into a half that sums to 0.
    """
    leaves[:] = 1
    half = tree.size // 2
    level = 1
    while level < half:
        for b in range(leaves.size):
            left = 2 * leaves[b]
            if mass[b] >= tree[left] and tree[left + 1] > 0:
                mass[b] -= tree[left]
                left += 1
            leaves[b] = left
        level *= 2
    leaves -= half


@compiled
@no_type_check
def forbid(ring, slot):
    """Let no transition start at a slot any more."""
    if ring.flags[slot] & STEP:
        ring.num_stored[0] -= 1
    ring.flags[slot] = 0
    set_leaf(ring.tree, slot, 0.0)


@compiled
@no_type_check
def count_write(ring, slot):
    """Let the chunk of a slot have another version."""
    chunk_size = -(-ring.flags.size // ring.writes.size)
    ring.writes[slot // chunk_size] += 1


@compiled
@no_type_check
def write(ring, column, num_frames, frame, mask):
    """Write an observation behind the newest one of a column."""
    size = ring.flags.size // ring.head.size
    ring.head[column] = (ring.head[column] + 1) % size
    ring.filled[column] = min(ring.filled[column] + 1, size)
    slot = column * size + ring.head[column]
    for i in range(num_frames):  # the slots behind this one lose their earlier frames
        changed = column * size + (ring.head[column] + i) % size
        forbid(ring, changed)
        count_write(ring, changed)
    ring.frames[slot] = frame
    ring.masks[slot] = 0
    for a in range(mask.size):
        ring.masks[slot, a >> 3] |= np.uint8(mask[a] << (a & 7))


@compiled
@no_type_check
def begin(ring, column, frames, mask):
    """Write the first observation of an episode, with its earlier frames in slots before it."""
    for frame in frames:
        write(ring, column, frames.shape[0], frame, mask)


@compiled
@no_type_check
def push(
    ring,
    action,
    reward,
    terminated,
    frames,
    masks,
    ended,
    final_frames,
    final_masks,
    priority,
):
    """Store one step of every env: [N], ..., frames [N, K, bytes], masks [N, A]; E of them ended.

    Returns the first env whose stacked frames are not those of its last observation moved on by
    one, and stores nothing then; else -1.
    """
    num_columns, num_frames, _ = frames.shape
    size = ring.flags.size // num_columns
    row_of_end = np.full(num_columns, -1, np.int64)
    for row in range(ended.size):
        row_of_end[ended[row]] = row
    for n in range(num_columns):
        seen = frames[n] if row_of_end[n] < 0 else final_frames[row_of_end[n]]
        for k in range(1, num_frames):
            slot = n * size + (ring.head[n] - num_frames + 1 + k) % size
            if not np.array_equal(ring.frames[slot], seen[k - 1]):
                return n
    for n in range(num_columns):
        slot = n * size + ring.head[n]
        ring.action[slot], ring.reward[slot] = action[n], reward[n]
        ring.flags[slot] = STEP | TERMINATED if terminated[n] else STEP
        ring.num_stored[0] += 1
        count_write(ring, slot)
        set_leaf(ring.tree, slot, priority)
        row = row_of_end[n]
        if row < 0:
            write(ring, n, num_frames, frames[n, num_frames - 1], masks[n])
        else:
            write(ring, n, num_frames, final_frames[row, num_frames - 1], final_masks[row])
            begin(ring, n, frames[n], masks[n])
    return -1


@compiled
@no_type_check
def draw_uniform(ring, uniform, slots, found):
    """Find slots at which a transition starts, each equally likely, by rejection.

    Takes numbers in [0, 1) from `uniform`, and fills slots[found:] until one of both runs out;
    returns how many are found. (Numba takes longer to receive a generator than to draw.)
    """
    size = ring.flags.size // ring.head.size
    filled = ring.filled.max()
    for u in uniform:
        if found == slots.size:
            break
        place = int(u * (filled * ring.head.size))
        slot = place // filled * size + place % filled
        if ring.flags[slot] & STEP:
            slots[found] = slot
            found += 1
    return found


@compiled
@no_type_check
def draw_prioritized(ring, uniform, num_batches, importance_exponent, slots, weight):
    """Draw slots [B] in proportion to their priorities, one in each of B equal parts of the sum.

    By numbers [B] in [0, 1); fills in the importance weights too. Each of the batches, which come
    one after the other, has its parts all over the sum.
    """
    mass = np.empty(slots.size)
    size = slots.size // num_batches
    for b in range(slots.size):
        part = b % size * num_batches + b // size
        mass[b] = (part + uniform[b]) / slots.size * ring.tree[1]
    find_leaves(ring.tree, mass, slots)
    leaves = ring.tree[ring.tree.size // 2 :]
    for first in range(0, slots.size, size):
        least = np.inf
        for b in range(first, first + size):
            least = min(least, leaves[slots[b]])
        for b in range(first, first + size):  # (count P)^-β over the largest of its batch, where
            weight[b] = (least / leaves[slots[b]]) ** importance_exponent  # count and sum cancel


@compiled
@no_type_check
def follow(ring, slots, n_step, gamma, action, reward, discount):
    """Follow the transitions that start at slots[:B] over n steps, or to where an episode ends.

    Puts the slots that they lead to in slots[B:].
    """
    size = ring.flags.size // ring.head.size
    num = action.size
    for b in range(num):
        slot = slots[b]
        action[b] = ring.action[slot]
        total, factor = 0.0, 1.0
        for _ in range(n_step):
            flags = ring.flags[slot]
            if not flags & STEP:
                break  # a final observation, or what follows has not happened yet
            total += factor * ring.reward[slot]
            factor *= gamma
            slot += 1
            if slot % size == 0:
                slot -= size
            if flags & TERMINATED:
                factor = 0.0
        reward[b], discount[b], slots[num + b] = total, factor, slot


@compiled
@no_type_check
def set_priorities(ring, slots, priority, least, largest, exponent):
    """Set (priority + least)^exponent [B] of the transitions that start at slots; none elsewhere.

    Level by level, as in `find_leaves`. Returns the highest priority; -1 if one is not in
    [0, largest], and changes nothing then.
    """
    highest = 0.0
    for b in range(slots.size):
        if not 0.0 <= priority[b] <= largest:
            return -1.0
        highest = max(highest, priority[b])
    half = ring.tree.size // 2
    nodes = np.empty(slots.size, np.int64)
    num = 0
    for b in range(slots.size):
        if half and ring.flags[slots[b]] & STEP:
            ring.tree[half + slots[b]] = (priority[b] + least) ** exponent
            nodes[num] = half + slots[b]
            num += 1
    level = half
    while level > 1:
        for i in range(num):
            node = nodes[i] // 2
            ring.tree[node] = ring.tree[2 * node] + ring.tree[2 * node + 1]
            nodes[i] = node
        level //= 2
    return highest + least
