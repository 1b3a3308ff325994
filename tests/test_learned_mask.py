"""The learned mask between envs and trainers."""

import copy
from dataclasses import replace

import envs_for_tests
import pytest
import torch

from rlmask import dqn, ppo, runs
from rlmask.evaluate import evaluate, summarize
from rlmask.experts import load_teacher
from rlmask.learned_mask import LearnedMask, Memory, Ring, load_head
from rlmask.runs import RunConfig, RunOptions
from rlmask.teachers import TeacherError
from rlmask.types import ObsSpec
from rlmask.validity import ValidityConfig
from rlmask.vector import Game, SpaceError, make_vector

DOORS = "rlmask-tests/Doors-v0"
QUICK = {"hidden_sizes": (32, 16), "least_predictions": 100, "period": 8, "explore": 0.05}
NUM_ENVS = 8


def true_mask(rooms=5, doors=12):
    env = envs_for_tests.Doors(rooms, doors)
    rows = []
    for env.at in range(rooms):
        rows.append(torch.from_numpy(env.mask()).bool())
    return torch.stack(rows)


def made(seed=0, env_kwargs=None, num_envs=NUM_ENVS, **changes):
    games = (Game(env_id=DOORS, env_kwargs=env_kwargs or {}),)
    envs = make_vector(games, num_envs, seed)
    return LearnedMask(envs, ValidityConfig(**{**QUICK, **changes}), seed)


def play(envs, num_steps, mask=None, seed=0):
    """Draw uniformly among what is shown as valid; give obs, mask and action of every step."""
    generator = torch.Generator().manual_seed(seed)
    obs, mask = envs.reset() if mask is None else mask
    for _ in range(num_steps):
        action = torch.multinomial(mask.float(), 1, generator=generator).squeeze(-1)
        step = envs.step(action)
        yield obs, mask, action, step
        obs, mask = step.obs, step.action_mask


def run(algo, **changes):
    """Return config and trainer of a small run."""
    more = {"env": DOORS, "num_envs": NUM_ENVS, "learned_mask": True, "hidden_sizes": (32,)}
    more["validity"] = ValidityConfig(**QUICK)
    if algo == "ppo":
        small = {"num_steps": 32, "num_minibatches": 4, "total_steps": 6144, "learning_rate": 1e-3}
        return ppo.PPOConfig(**{**more, **small, **changes}), ppo
    small = {
        "phases_per_update": 64,
        "total_steps": 6144,
        "learning_starts": 256,
        "batch_size": 32,
        "epsilon_steps": 3000,
        "replay_capacity": 4096,
    }
    return dqn.DQNConfig(**{**more, **small, **changes}), dqn


def frozen(captured):
    """A captured state as a checkpoint would hold it."""
    if isinstance(captured, dict):
        return {key: frozen(value) for key, value in captured.items()}
    if hasattr(captured, "read"):
        content = {name: array.copy() for name, array in captured.read().items()}
        return replace(captured, read=lambda: content)
    return copy.deepcopy(captured)


def same(one, other):
    """Whether two captured states are equal, leaf by leaf."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if hasattr(one, "read"):
        return same(one.read(), other.read())
    if hasattr(one, "tobytes"):
        return one.tobytes() == other.tobytes()
    return one == other


@pytest.mark.parametrize("rule", ["threshold", "bound"])
def test_it_learns_the_mask_from_taken_actions(rule):
    envs = made(rule=rule)
    *_, (_, _, _, step) = play(envs, 700)
    metrics = envs.metrics()
    assert metrics["validity/on"] == 1
    assert metrics["validity/precision"] >= 0.99
    assert metrics["validity/kept"] >= 0.95
    rooms = torch.arange(4)  # nothing is done in the last
    out, valid = envs.acting.eliminated(rooms), true_mask()[:4]
    assert not (out & valid).any()
    assert (out & ~valid).sum() >= 0.9 * (~valid).sum()
    *_, last = play(envs, 100, (step.obs, step.action_mask))
    assert last[3].action_mask.sum() < 0.5 * last[3].action_mask.numel()
    assert envs.metrics()["validity/invalid"] < 0.3  # 10 of 12 doors are locked


def test_it_is_off_until_it_has_proved_right():
    envs = made()
    for _, mask, _, _ in play(envs, 5):
        assert mask.all()
    assert envs.metrics()["validity/on"] == 0
    never = made(least_predictions=10**9)
    for _, mask, _, _ in play(never, 600):
        assert mask.all()
    assert never.metrics()["validity/precision"] > 0.99  # it would be good enough


def test_it_goes_off_again_when_it_is_wrong():
    envs = made(held_out=0.5, window=512, explore=0.25)
    *_, (_, _, _, step) = play(envs, 700)
    assert envs.metrics()["validity/on"] == 1
    inner = envs._envs.step

    def always_valid(action):
        step = inner(action)
        return replace(step, action_valid=torch.ones_like(step.action_valid))

    envs._envs.step = always_valid
    envs._optimizer.step = lambda *_: 0.0  # it does not learn of the change
    states = []
    for _, mask, _, _ in play(envs, 300, (step.obs, step.action_mask)):
        states.append((bool(envs.acting.is_on), bool(mask.all())))
    assert states[0] == (True, False)
    assert states[-1] == (False, True)


def test_it_never_widens_and_is_never_empty():
    envs = made(env_kwargs={"where": "info"}, threshold=0.3, precision=0.0, recall=0.0)
    true = true_mask()
    narrowed = 0
    for obs, mask, _, step in play(envs, 600):
        assert not (mask & ~true[obs]).any()
        assert mask.any(-1).all()
        assert not (step.final_action_mask & ~true[step.final_obs]).any()
        narrowed += int((true[obs] & ~mask).sum())
    # where all are valid, nothing is learned: no label says invalid
    assert narrowed == 0
    envs.acting.is_on.fill_(True)
    envs.acting.head.bias.data[:] = -9.0  # all are invalid: the mask of the env counts
    envs.acting.head.weight.data.zero_()
    obs = torch.arange(4)
    assert torch.equal(envs.acting.narrow(obs, true[:4]), true[:4])
    on = torch.tensor([3])  # the door on from room 0
    envs.acting.head.bias.data[on] = 9.0
    assert envs.acting.narrow(obs[:1], true[:1]).nonzero().tolist() == [[0, int(on)]]


def test_an_eliminated_action_is_tried_again_now_and_then():
    envs = made(explore=0.25)
    *_, (_, _, _, step) = play(envs, 700)
    assert envs.acting.is_on
    tries, rows = 0, 0
    for obs, mask, action, _ in play(envs, 200, (step.obs, step.action_mask)):
        alone = mask.sum(-1) == 1
        out = envs.acting.eliminated(obs).gather(1, action.unsqueeze(1)).squeeze(1)
        tries += int((alone & out).sum())
        rows += len(obs)
    assert 0.2 < tries / rows < 0.3  # 1600 draws: a deviation of 0.011


def test_held_out_steps_are_never_learned_from():
    envs = made(held_out=1.0)
    list(play(envs, 50))
    assert not envs._memory.count.any()
    assert len(envs._held_out) == 50 * NUM_ENVS


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


def test_an_agent_that_repeats_itself_in_vain_does_not_fill_the_memory():
    envs = made(held_out=0.0)
    obs, _ = envs.reset()
    locked = torch.stack([(~true_mask()[room]).nonzero()[:2, 0] for room in obs.tolist()])
    counts = []
    for times, which in ((10, 0), (1, 1), (1, 0)):
        for _ in range(times):
            envs.step(locked[:, which])
        counts.append(int(envs._memory.count.sum()))
    assert counts == [NUM_ENVS, 2 * NUM_ENVS, 3 * NUM_ENVS]
    assert not envs._memory.count[1::2].any()


@pytest.mark.parametrize("algo", ["ppo", "dqn"])
def test_a_resumed_run_is_the_same_run(algo):
    config, trainer = run(algo, total_steps=3072)
    updates = list_of_states(trainer.train(config))
    whole = updates[-1]
    on = [bool(state["envs"]["acting"]["is_on"]) for state in updates]
    assert on[-1]
    for index in (0, on.index(True)):
        *_, resumed = trainer.train(config, copy.deepcopy(updates[index]))
        assert same(frozen(resumed.capture()), whole)


def list_of_states(updates):
    return [frozen(update.capture()) for update in updates]


@pytest.mark.parametrize("algo", ["ppo", "dqn"])
def test_trainers_learn_with_it_and_their_policies_are_narrowed(algo):
    config, trainer = run(algo)
    *_, update = trainer.train(config)
    assert update.metrics["validity/on"] == 1
    assert update.metrics["validity/eliminated"] > 0.5
    assert update.metrics["mask/valid_fraction"] < 0.9
    captured = frozen(update.capture())
    head = load_head(config, captured)
    obs, everything = torch.arange(4), torch.ones(4, 12, dtype=torch.bool)
    out = head.eliminated(obs)
    # a network that wants eliminated actions only: its policy takes none of them
    wanted = {name: torch.zeros_like(w) for name, w in captured["network"].items()}
    bias = "actor_head.bias" if algo == "ppo" else "head.bias"
    wanted[bias] = out[0].float() * 100
    policy = trainer.load_policy(config, {**captured, "network": wanted}, greedy=True, seed=0)
    assert not out[0, policy(obs, everything)[0]]
    wide = trainer.load_policy(
        replace(config, learned_mask=False), {**captured, "network": wanted}, greedy=True, seed=0
    )
    assert out[0, wide(obs, everything)[0]]
    envs = make_vector(config.all_games, NUM_ENVS, 1, stream=1)
    loaded = trainer.load_policy(config, captured, greedy=True, seed=0)
    for chosen in (update.policy, loaded):
        figures = summarize(evaluate(chosen, envs, 16))
        assert figures.invalid_actions == 0
        assert figures.mean_return > 0.5  # straight ahead from rooms 0 to 3: 0.75 on average


def test_the_policy_of_an_update_is_narrowed():
    config, trainer = run("ppo", total_steps=256)
    updates = trainer.train(config)
    update = next(updates)
    obs, mask = torch.zeros(1, dtype=torch.int64), torch.ones(1, 12, dtype=torch.bool)
    wanted = int(update.policy(obs, mask))
    envs = update.capture.args[1]
    envs.acting.is_on.fill_(True)
    envs.acting.head.weight.data.zero_()
    envs.acting.head.bias.data[:] = 9.0
    envs.acting.head.bias.data[wanted] = -9.0
    assert int(update.policy(obs, mask)) != wanted
    updates.close()


def test_it_is_for_one_game_of_single_actions():
    games = (Game(env_id=DOORS), Game(env_id=DOORS, env_kwargs={"rooms": 4}))
    games = tuple(replace(game, action_ids=tuple(range(12))) for game in games)
    envs = make_vector(games, 2, 0)
    with pytest.raises(SpaceError, match="one game whose actions have one part"):
        LearnedMask(envs, ValidityConfig(), 0)


@pytest.mark.parametrize("algo", ["ppo", "dqn"])
def test_a_run_with_a_learned_mask_teaches_nobody(algo, tmp_path):
    settings, trainer = run(algo, total_steps=128)
    own = RunConfig(algo=algo, settings=settings, options=RunOptions())
    runs.create(tmp_path / "run", own)
    *_, update = trainer.train(settings)
    settled = {"settings": runs.settings_text(own)}
    runs.save_checkpoint(tmp_path / "run", update, settled, None)
    (game,) = settings.all_games
    with pytest.raises(TeacherError, match=r"a learned mask; .* with learned_mask: false"):
        load_teacher(str(tmp_path / "run"), game, 0, torch.device("cpu"))
