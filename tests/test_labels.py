"""What is kept of taken actions."""

import pytest
import torch

from rlmask.labels import LAST_TRIES, Memory, Ring, Tries
from rlmask.types import ObsSpec


def test_a_ring_forgets_the_oldest():
    ring = Ring(3, ObsSpec(kind="vector", shape=(2,), dtype="float32"))
    for first in (0, 2):
        rows = torch.arange(first, first + 2)
        ring.add(torch.stack([rows, rows], 1).float(), rows, rows % 2 == 0)
    assert ring.action.tolist() == [3, 1, 2]
    assert ring.obs[:, 1].tolist() == [3, 1, 2]
    assert ring.valid.tolist() == [False, False, True]
    rows = torch.arange(7)
    ring.add(torch.stack([rows, rows], 1).float(), rows, rows > 0)
    assert sorted(ring.action.tolist()) == [4, 5, 6]


VECTOR = ObsSpec(kind="vector", shape=(1,), dtype="float32")


@pytest.mark.parametrize("batch", [1, 3, 40])
def test_a_memory_keeps_the_last_steps_of_each_action_and_label(batch):
    generator = torch.Generator().manual_seed(0)
    memory, share, expected = Memory(32, 4, VECTOR), 4, {}
    time = torch.arange(120).float().unsqueeze(1)
    action = torch.randint(3, (120,), generator=generator)  # the fourth never comes
    valid = torch.rand(120, generator=generator) < 0.2
    for rows in torch.arange(120).split(batch):
        memory.add(time[rows], action[rows], valid[rows])
        for row in rows.tolist():
            kept = expected.setdefault((int(action[row]), bool(valid[row])), [])
            expected[int(action[row]), bool(valid[row])] = [*kept, row][-share:]
        found = {}
        for step in zip(*(x.tolist() for x in memory.read()), strict=True):
            (when,), chosen, label = step
            found.setdefault((chosen, label), []).append(int(when))
        assert {key: sorted(whens) for key, whens in found.items()} == expected
    assert set(expected) == {(a, v) for a in range(3) for v in (False, True)}


def test_a_memory_draws_each_action_as_often():
    memory, generator = Memory(1200, 6, VECTOR), torch.Generator().manual_seed(0)
    action = torch.tensor([0] * 97 + [1, 4, 4])
    assert not memory.has_both()
    memory.add(torch.arange(100.0).unsqueeze(1), action, torch.ones(100, dtype=torch.bool))
    assert not memory.has_both()
    memory.add(torch.tensor([[200.0]]), torch.tensor([5]), torch.tensor([False]))
    assert memory.has_both()
    obs, drawn = memory.draw(True, 3000, generator)
    assert torch.equal(action[obs.squeeze(1).long()], drawn)
    shares = torch.bincount(drawn, minlength=6) / 3000
    assert shares[[0, 1, 4]].sub(1 / 3).abs().max() < 0.05
    assert len(obs[drawn == 0].unique()) == 97 and len(obs[drawn == 4].unique()) == 2
    obs, drawn = memory.draw(False, 10, generator)
    assert obs.unique().tolist() == [200] and drawn.unique().tolist() == [5]


def test_tries_say_how_many_valid_actions_a_mask_lacks():
    generator = torch.Generator().manual_seed(0)
    tries = Tries()
    assert (tries.mean(), tries.at_least()) == (0.0, 0.0)
    for _ in range(40):  # of 20 eliminated actions 3 are valid, of 50 one is
        half = torch.rand(32, generator=generator) < 0.5
        eliminated = torch.where(half, 20, 50)
        chance = torch.where(half, 3 / 20, 1 / 50)
        tries.add(eliminated, torch.rand(32, generator=generator) < chance)
    assert tries.mean() == pytest.approx(2, abs=1)
    assert 0 < tries.at_least() < tries.mean()
    tries.add(torch.full((LAST_TRIES,), 7), torch.arange(LAST_TRIES) % 2 == 0)
    assert tries.mean() == 3.5
    tries.clear()
    tries.add(torch.full((49,), 7), torch.ones(49, dtype=torch.bool))
    assert (tries.mean(), tries.at_least()) == (7.0, 0.0)
