"""The learned mask between envs and trainers."""

import copy
from dataclasses import replace

import envs_for_tests
import pytest
import torch

from rlmask import dqn, ppo, runs
from rlmask.evaluate import evaluate, summarize
from rlmask.experts import load_teacher
from rlmask.learned_mask import LearnedMask, load_head, with_learned_mask
from rlmask.runs import RunConfig, RunOptions
from rlmask.teachers import TeacherError
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


@pytest.mark.slow
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
    never = made(least_predictions=4096)
    for _, mask, _, _ in play(never, 600):
        assert mask.all()
    assert never.metrics()["validity/precision"] > 0.99  # it would be good enough


@pytest.mark.slow
def test_it_goes_off_again_when_it_is_wrong():
    envs = made(explore=0.25)
    *_, (_, _, _, step) = play(envs, 700)
    metrics = envs.metrics()
    assert metrics["validity/on"] == 1
    assert metrics["validity/missed"] < 0.1
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
    assert envs.metrics()["validity/missed"] > 1
    # what was held out among what it left does not bring it back
    assert envs._held_out.count < 300 * NUM_ENVS * envs._config.held_out


@pytest.mark.parametrize("explore", [0.02, 0.25])
def test_a_head_that_leaves_some_valid_actions_only_is_noticed(explore):
    """All that is taken but for the tries is valid, so held-out steps find nothing wrong."""
    envs = made(explore=explore, period=10**9)  # the head stays as it is
    torch.nn.init.zeros_(envs.acting.head.weight)
    envs.acting.head.bias.data[:] = -9.0
    envs.acting.head.bias.data[3] = 9.0  # on from room 0, and nothing else is valid: no door back
    envs.acting.is_on.fill_(True)
    true = true_mask()
    lacking, rows = 0, 0
    for obs, mask, _, _ in play(envs, int(40 / explore)):
        alone = mask.sum(-1) == 1
        assert (alone | ~mask[:, 3]).all()
        lacking += int((true[obs] & ~envs.acting.narrow(obs, torch.ones_like(mask))).sum())
        rows += len(obs)
    missed = envs.metrics()["validity/missed"]
    assert missed == pytest.approx(lacking / rows, abs=0.5)
    assert envs._tries.at_least() / (1 + envs._tries.at_least()) > 0.25


def test_nothing_goes_on_without_valid_steps_to_show():
    """A head that calls everything invalid is right about whoever only met invalid actions."""
    envs = made(env_kwargs={"doors": 500}, held_out=0.5, period=1)
    envs._memory.has_both = lambda: True
    envs._gradient_step = lambda: None
    torch.nn.init.zeros_(envs._learner.head.weight)
    envs._learner.head.bias.data[:] = -9.0
    envs.reset()
    locked = (~true_mask(doors=500)[:4].any(0)).nonzero().flatten()
    for index in range(200):
        envs.step(locked[torch.arange(NUM_ENVS) + index % 100])
    metrics = envs.metrics()
    assert metrics["validity/precision"] == 1
    assert metrics["validity/on"] == 0


def test_it_never_widens_and_is_never_empty():
    envs = made(env_kwargs={"where": "info"}, threshold=0.4)
    true = true_mask()
    torch.nn.init.normal_(envs.acting.head.weight, generator=torch.Generator().manual_seed(0))
    envs.acting.is_on.fill_(True)
    narrowed, ended = 0, 0
    for obs, mask, _, step in play(envs, 200):
        assert not (mask & ~true[obs]).any()
        assert mask.any(-1).all()
        final = true[step.final_obs]
        assert torch.equal(step.final_action_mask, envs.acting.narrow(step.final_obs, final))
        narrowed += int((true[obs] & ~mask).sum())
        ended += len(step.final_obs)
    assert narrowed > 100
    assert ended > 10
    envs.acting.head.bias.data[:] = -9.0  # all are invalid: the mask of the env counts
    envs.acting.head.weight.data.zero_()
    obs = torch.arange(4)
    assert torch.equal(envs.acting.narrow(obs, true[:4]), true[:4])
    on = torch.tensor([3])  # the door on from room 0
    envs.acting.head.bias.data[on] = 9.0
    assert envs.acting.narrow(obs[:1], true[:1]).nonzero().tolist() == [[0, int(on)]]


@pytest.mark.slow
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


@pytest.mark.parametrize("draw", [0.0, 0.999])
def test_the_action_that_is_tried_is_an_eliminated_one(monkeypatch, draw):
    envs = made(env_kwargs={"where": "info"}, explore=1.0)
    envs.acting.head.weight.data.zero_()
    envs.acting.head.bias.data[:] = -9.0
    envs.acting.head.bias.data[0] = 9.0
    envs.acting.is_on.fill_(True)
    monkeypatch.setattr(torch, "rand", lambda *size, generator: torch.full(size, draw))
    own = torch.zeros(2, 12, dtype=torch.bool)
    own[0, [0, 7, 8]] = own[1, [0, 3]] = True
    shown = envs._narrowed(torch.zeros(2, dtype=torch.int64), own)
    assert shown.nonzero().tolist() == [[0, 7], [1, 3]]
    assert envs.admissible.nonzero().tolist() == [[0, 0], [1, 0]]
    assert envs._tried.tolist() == [2, 1]


@pytest.mark.parametrize("dueling", [False, True])
def test_a_target_is_over_what_is_admissible_not_over_the_tried_action(monkeypatch, dueling):
    config, trainer = run("dqn", total_steps=512, dueling=dueling, batch_size=256)
    envs = made(explore=0.5, period=10**9)
    state = trainer.initial_state(config, envs, torch.device("cpu"))
    envs.acting.head.weight.data.zero_()
    envs.acting.head.bias.data[:6] = -9.0
    envs.acting.head.bias.data[6:] = 9.0
    envs.acting.is_on.fill_(True)
    obs, mask = envs.reset()
    state.replay.start(obs, envs.admissible)
    device, targets = torch.device("cpu"), []
    for _ in range(60):
        obs, mask, _ = trainer.collect(config, envs, state, obs, mask, 1.0, device)
    targets_of = trainer.targets_of
    monkeypatch.setattr(
        trainer, "targets_of", lambda *args: (targets.append(args[1]), targets_of(*args))[1]
    )
    _, drawn = trainer.learn(state, config, 1e-3, 0.0, device)
    following = targets[0].next_action_mask[targets[0].discount > 0]
    assert following[:, 6:].all() and not following[:, :6].any()
    assert drawn.action_mask[:, 6:].all()
    assert drawn.action_mask[:, :6].sum(1).tolist() == (drawn.action < 6).tolist()
    assert (drawn.action < 6).any()


def test_a_step_is_learned_from_or_held_out():
    envs = made(held_out=0.5)
    played = list(play(envs, 50))
    assert len(envs._held_out) + int(envs._memory.count.sum()) <= 50 * NUM_ENVS
    num_valid = sum(int(step.action_valid.sum()) for *_, step in played)
    _, _, valid = envs._held_out.read()
    assert int(valid.sum()) + int(envs._memory.count[1::2].sum()) == num_valid


def test_what_is_repeated_in_vain_is_not_on_both_sides():
    envs = made(held_out=0.5)
    obs, _ = envs.reset()
    locked = torch.stack([(~true_mask()[room]).nonzero()[0, 0] for room in obs.tolist()])
    for _ in range(40):
        envs.step(locked)
    assert len(envs._held_out) + int(envs._memory.count.sum()) == NUM_ENVS


def test_an_agent_that_repeats_itself_in_vain_does_not_fill_the_memory():
    envs = made(held_out=1e-9)
    obs, _ = envs.reset()
    locked = torch.stack([(~true_mask()[room]).nonzero()[:2, 0] for room in obs.tolist()])
    counts = []
    for times, which in ((10, 0), (1, 1), (1, 0)):
        for _ in range(times):
            envs.step(locked[:, which])
        counts.append(int(envs._memory.count.sum()))
    assert counts == [NUM_ENVS, 2 * NUM_ENVS, 3 * NUM_ENVS]
    assert not envs._memory.count[1::2].any()


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_native_envs_do_not_tell():
    games = (Game(env_id="rlmask_envs:rlmask/TMaze-v0"),)
    config, _ = run("ppo", env=games[0].env_id, vectorization="native")
    envs = make_vector(games, 2, 0, vectorization="native")
    with pytest.raises(SpaceError, match="set vectorization to sync"):
        with_learned_mask(envs, config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"held_out": 0.0}, "held_out is 0.0: it must be positive"),
        ({"held_out": 1.0}, "nothing would be learned from"),
        ({"explore": 0.0}, "explore is 0.0: it must be positive"),
        ({"window": 99}, "window is 99: .* >= least_predictions, 500"),
        ({"learning_rate": float("inf")}, "learning_rate is inf: it must be finite"),
    ],
)
def test_settings_under_which_nothing_is_learned_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ValidityConfig(**changes)


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
