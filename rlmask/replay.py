"""Replay buffer: what happened, in few bytes, with the mask of either end of a transition.

Each env has a column of slots, used in a ring. A slot holds an observation (of stacked frames the
newest), its mask, eight actions a byte, and the step that was taken from it; the slot behind it
holds the true successor. So an observation is stored once, although it is s of one transition and
s' of another, and an episode of L steps takes L + 1 slots (of K stacked frames L + K).

Dimension key: `N` envs, `B` batch, `A` union actions, `E` envs whose episode ended.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlmask import kernels
from rlmask.types import Chunk, ObsSpec, Transition

CHUNK_BYTES = 2**23  # of a file of a checkpoint; only what has changed is written again
LEAST_PRIORITY = 1e-6  # so that no transition is lost for ever
LARGEST_PRIORITY = float(np.finfo(np.float32).max)  # so that their sum is finite


class ReplayError(ValueError):
    """A replay buffer is too small, still empty, or gets what does not fit in."""


def least_capacity(num_envs: int, frame_stack: int) -> int:
    """Return the smallest capacity in which every env keeps some transition."""
    return num_envs * (2 * frame_stack + 2)


class Replay:
    """The last transitions of N envs, drawn uniformly or in proportion to a priority.

    Args:
        num_envs: N.
        capacity: slots, of all envs together; rounded up to a multiple of N.
        obs: what an observation is; it is stored in its own dtype.
        num_actions: A.
        frame_stack: an observation is this many frames along its last axis, oldest first; each
            frame is stored once.
        prioritized: draw by priority; Schaul et al. 2016, arXiv:1511.05952, the proportional kind.
        priority_exponent: α of P(i) = p_i^α / Σ p^α.
        seed: of the draws.

    Raises:
        ReplayError: if `capacity` is too small for N envs, or the frames do not divide the
            observation's last axis.
    """

    def __init__(
        self,
        num_envs: int,
        capacity: int,
        obs: ObsSpec,
        num_actions: int,
        *,
        frame_stack: int = 1,
        prioritized: bool = False,
        priority_exponent: float = 0.6,
        seed: int = 0,
    ) -> None:
        size = -(-capacity // num_envs)
        least = least_capacity(num_envs, frame_stack)
        if size * num_envs < least:
            raise ReplayError(
                f"a replay capacity of {capacity} gives {size} slots to each of {num_envs} envs; "
                f"make it at least {least}"
            )
        if frame_stack < 1 or (frame_stack > 1 and (not obs.shape or obs.shape[-1] % frame_stack)):
            raise ReplayError(
                f"frame_stack is {frame_stack}, but observations of shape {obs.shape} are not so "
                "many frames along their last axis"
            )
        self._obs, self._num_actions, self._stack = obs, num_actions, frame_stack
        self._dtype = np.dtype(obs.dtype)
        self._frame_shape = obs.shape
        if frame_stack > 1:
            self._frame_shape = (*obs.shape[:-1], obs.shape[-1] // frame_stack)
        frame_bytes = math.prod(self._frame_shape) * self._dtype.itemsize
        mask_bytes = -(-num_actions // 8)
        slots = num_envs * size
        num_chunks = -(-slots // max(1, CHUNK_BYTES // (frame_bytes + mask_bytes + 9)))
        self._chunk_slots = -(-slots // num_chunks)  # as the kernels have it
        self._ring = kernels.empty_ring(
            num_envs, slots, frame_bytes, mask_bytes, num_chunks, prioritized
        )
        self._exponent = priority_exponent
        self._max_priority = 1.0  # what a transition gets until it is first drawn
        self._rng = np.random.Generator(np.random.PCG64(seed))

    def __len__(self) -> int:
        """Return how many transitions can be drawn."""
        return int(self._ring.num_stored[0])

    @property
    def num_bytes(self) -> int:
        """Memory of the whole buffer, also of what is not filled yet."""
        return sum(array.nbytes for array in self._ring)

    def start(self, obs: Tensor, action_mask: Bool[Tensor, " N A"]) -> None:
        """Begin an episode in every env [N], at the start of the run.

        Raises:
            ReplayError: if they are not N.
        """
        self._check_num_envs(obs)
        frames, masks = self._frames(obs), action_mask.numpy().view(np.uint8)
        for column, (frame, mask) in enumerate(zip(frames, masks, strict=True)):
            kernels.begin(self._ring, column, frame, mask)

    def resume(self, obs: Tensor, action_mask: Bool[Tensor, " N A"]) -> None:
        """Go on at these observations [N] after `restore`.

        They are the newest of each env already, unless the env did not come back to where it was;
        then an episode begins here.
        """
        newest = np.arange(len(obs)) * self._size + self._ring.head
        is_known = (self._obs_at(newest) == obs).reshape(len(obs), -1).all(1)
        is_known &= (self._masks_at(newest) == action_mask).all(1)
        frames, masks = self._frames(obs), action_mask.numpy().view(np.uint8)
        for column in (~is_known).nonzero().flatten().tolist():
            kernels.begin(self._ring, column, frames[column], masks[column])

    def add(
        self,
        action: Int[Tensor, " N"],
        reward: Float[Tensor, " N"],
        terminated: Bool[Tensor, " N"],
        obs: Tensor,
        action_mask: Bool[Tensor, " N A"],
        ended: Int[Tensor, " E"],
        final_obs: Tensor,
        final_action_mask: Bool[Tensor, " E A"],
    ) -> None:
        """Store one step of every env, and what is seen after it, as a `VectorStep` has it.

        An env among those that `ended` was truncated, unless it was `terminated`.

        Raises:
            ReplayError: if the envs are not N, there was no `start`, or the frames of an
                observation are not those of the last one moved on by one. Nothing is stored then.
        """
        self._check_num_envs(action)
        if self._ring.head[0] < 0:
            raise ReplayError("a step of no known state; call `start` before the first one")
        failed = kernels.push(
            self._ring,
            action.numpy(),
            reward.numpy(),
            terminated.numpy(),
            self._frames(obs),
            action_mask.numpy().view(np.uint8),
            ended.numpy(),
            self._frames(final_obs),
            final_action_mask.numpy().view(np.uint8),
            self._max_priority**self._exponent,
        )
        if failed >= 0:
            raise ReplayError(
                f"env {failed}: the observation is not the last one moved on by one of its "
                f"{self._stack} frames, oldest first along the last axis; set frame_stack to 1, or "
                "to the number of frames that the env stacks"
            )

    def sample(
        self,
        batch_size: int,
        *,
        num_batches: int = 1,
        gamma: float,
        n_step: int = 1,
        importance_exponent: float = 0.0,
    ) -> tuple[Transition, Int[Tensor, " B"], Float[Tensor, " B"]]:
        """Draw transitions, with replacement; return them, their index, and their weight.

        The weight is that of importance sampling, w_i = (count P(i))^-β over the largest of its
        batch; 1 if the draw is uniform. The index is for `update_priorities`.

        Args:
            batch_size: rows of a batch.
            num_batches: how many batches, B / batch_size; they come one after the other.
            gamma: discount per step.
            n_step: steps of a transition; fewer where the episode, or what is stored, ends sooner.
            importance_exponent: β.

        Raises:
            ReplayError: if nothing is stored, or a size or `n_step` is below 1.
        """
        if not len(self):
            raise ReplayError("the replay buffer is empty; add steps before you sample")
        if min(batch_size, num_batches, n_step) < 1:
            raise ReplayError(
                f"batch_size is {batch_size}, num_batches {num_batches}, n_step {n_step}: each "
                "must be >= 1"
            )
        num_rows = num_batches * batch_size
        slots = np.empty(2 * num_rows, np.int64)  # of both ends
        starts = slots[:num_rows]
        weight = self._draw(starts, num_batches, importance_exponent)
        action = np.empty(num_rows, np.int64)
        reward, discount = np.empty((2, num_rows), np.float32)
        kernels.follow(self._ring, slots, n_step, gamma, action, reward, discount)
        obs, next_obs = self._obs_at(slots).chunk(2)
        mask, next_mask = self._masks_at(slots).chunk(2)
        transition = Transition(
            obs=obs,
            action_mask=mask,
            action=torch.from_numpy(action),
            reward=torch.from_numpy(reward),
            discount=torch.from_numpy(discount),
            next_obs=next_obs,
            next_action_mask=next_mask,
        )
        return transition, torch.from_numpy(starts), torch.from_numpy(weight)

    def update_priorities(self, index: Int[Tensor, " B"], priority: Float[Tensor, " B"]) -> None:
        """Set the priorities of drawn transitions, for instance to their absolute TD errors.

        Before the next `add`, after which an index may be that of another transition.

        Raises:
            ReplayError: if a priority is negative or not finite; nothing is changed then.
        """
        highest = kernels.set_priorities(
            self._ring,
            index.numpy(),
            priority.double().numpy(),
            LEAST_PRIORITY,
            LARGEST_PRIORITY,
            self._exponent,
        )
        if highest < 0:
            raise ReplayError(f"priorities must be finite and not negative, not {priority}")
        self._max_priority = max(self._max_priority, highest)

    def capture(self) -> dict[str, Any]:
        """Return the state. What is stored comes in chunks, as it is when they are read."""
        ring = self._ring
        return {
            "size": [array.size for array in ring],
            "head": ring.head,
            "filled": ring.filled,
            "writes": ring.writes,
            "priority": ring.tree[len(ring.tree) // 2 :][: len(ring.flags)],
            "max_priority": self._max_priority,
            "rng": self._rng.bit_generator.state,
            "chunks": {
                f"{chunk:06d}": Chunk(version=writes, read=partial(self._chunk, chunk))
                for chunk, writes in enumerate(ring.writes.tolist())
                if writes
            },
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a captured state.

        Raises:
            ReplayError: if it is of a buffer of another size.
        """
        ring = self._ring
        if list(state["size"]) != [array.size for array in ring]:
            raise ReplayError("the captured replay buffer has another size than this one")
        for name in ("head", "filled", "writes"):
            getattr(ring, name)[:] = state[name]
        for chunk in np.flatnonzero(ring.writes == 0).tolist():  # not among the state's
            self._chunk(chunk)["flags"][:] = 0
        for chunk, content in state["chunks"].items():
            stored = content.read()
            for name, own in self._chunk(int(chunk)).items():
                own[:] = stored[name]
        ring.num_stored[0] = np.count_nonzero(ring.flags & kernels.STEP)
        ring.tree[len(ring.tree) // 2 :][: len(ring.flags)] = state["priority"]
        kernels.rebuild(ring.tree)
        self._max_priority = state["max_priority"]
        self._rng.bit_generator.state = state["rng"]

    @property
    def _size(self) -> int:
        """Slots of a column."""
        return len(self._ring.flags) // len(self._ring.head)

    def _draw(self, starts: np.ndarray, num_batches: int, importance_exponent: float) -> np.ndarray:
        """Fill in the slots [B] at which transitions start; return their weights [B]."""
        ring, count = self._ring, len(starts)
        weight = np.ones(count, np.float32)
        if ring.tree.size:
            uniform = self._rng.random(count)
            kernels.draw_prioritized(
                ring, uniform, num_batches, importance_exponent, starts, weight
            )
            return weight
        found = 0
        while found < count:  # some numbers more, as some slots are no start
            uniform = self._rng.random(count + count // 8 + 8)
            found = kernels.draw_uniform(ring, uniform, starts, found)
        return weight

    def _check_num_envs(self, rows: Tensor) -> None:
        if len(rows) != len(self._ring.head):
            raise ReplayError(
                f"the buffer is of {len(self._ring.head)} envs, but this is of {len(rows)}"
            )

    def _chunk(self, chunk: int) -> dict[str, np.ndarray]:
        """Return views of the slots of a chunk."""
        rows = slice(chunk * self._chunk_slots, (chunk + 1) * self._chunk_slots)
        names = ("frames", "masks", "action", "reward", "flags")
        return {name: getattr(self._ring, name)[rows] for name in names}

    def _frames(self, obs: Tensor) -> np.ndarray:
        """Return observations as the bytes of their frames, [N, *obs] -> [N, K, bytes]."""
        array = obs.numpy()
        if self._stack > 1:  # [..., K c] -> [N, K, ..., c]
            array = array.reshape(*array.shape[:-1], self._stack, self._frame_shape[-1])
            array = np.moveaxis(array, -2, 1)
        as_bytes = np.ascontiguousarray(array, self._dtype).view(np.uint8)
        return as_bytes.reshape(len(array), self._stack, self._ring.frames.shape[1])

    def _obs_at(self, slots: np.ndarray) -> Tensor:
        """Return the observations at some slots, [B, *obs]."""
        if self._stack > 1:  # -> [B, K], the newest last
            first = slots - slots % self._size
            place = (slots - first)[:, None] + np.arange(1 - self._stack, 1)
            slots = first[:, None] + place % self._size
        # mode: without a buffer in between; the slots are valid
        array = self._ring.frames.take(slots, 0, mode="clip").view(self._dtype)
        array = array.reshape(*slots.shape, *self._frame_shape)
        if self._stack > 1:  # [B, K, ..., c] -> [B, ..., K c]
            array = np.moveaxis(array, 1, -2).reshape(len(slots), *self._obs.shape)
        return torch.from_numpy(array)

    def _masks_at(self, slots: np.ndarray) -> Bool[Tensor, " B A"]:
        """Return the masks at some slots."""
        packed = self._ring.masks.take(slots, 0, mode="clip")
        mask = np.unpackbits(packed, axis=1, count=self._num_actions, bitorder="little")
        return torch.from_numpy(mask).view(torch.bool)
