import copy
import dataclasses
import math
from contextlib import closing

import envs_for_tests  # noqa: F401 (registers its envs)
import pytest
import torch

from rlmask import distill, ops
from rlmask.evaluate import evaluate
from rlmask.experts import load_teachers
from rlmask.policies import actor_policy
from rlmask.recorded import RecordedError, record_states
from rlmask.states import Labelled
from rlmask.teachers import Teacher, TeacherError, random_policy
from rlmask.types import ObsSpec, tree_map
from rlmask.vector import Game, envs_of, make_vector

CPU = torch.device("cpu")
CORRIDOR = "rlmask-tests/Corridor-v0"
# the same walk, but each union action means another step: right is 1 here, and 2 there
GAMES = (
    Game(env_id=CORRIDOR, action_ids=(0, 1, 2)),
    Game(env_id=CORRIDOR, env_kwargs={"length": 4}, action_ids=(3, 2, 1)),
)
FAR = 100.0


def walk_right(obs, mask):
    """An expert of any corridor: action 1 is a step to the right. What is invalid it likes best."""
    logits = torch.zeros(mask.shape)
    logits[:, 1] = 3.0
    return torch.where(mask, logits, FAR)


def walk_left(obs, mask):
    """Nobody's expert."""
    return torch.where(mask, torch.tensor([3.0, 0.0, 0.0]), FAR)


def values_of(obs, mask):
    """Action values with a gap of 0.2 between the best two."""
    return torch.where(mask, torch.tensor([0.1, 0.5, 0.3]), FAR)


def config(**changes):
    small = {
        "games": GAMES,
        "teachers": ("test_distill:walk_right",) * 2,
        "num_envs": 8,
        "num_steps": 8,
        "total_steps": 64 * 12,
        "num_gradient_steps": 4,
        "batch_size": 16,
        "learning_starts": 16,
        "replay_capacity": 128,
        "hidden_sizes": (16,),
        "learning_rate": 1e-2,
    }
    return distill.DistillConfig(**{**small, **changes})


ON_POLICY = {"draw_actions": True, "epsilon": 0.0}
KINDS = {
    "policy": {},
    "confidence": {"confidence_bonus": 0.1},
    "4 bits": {"weight_bits": 4, "activation_bits": 4},
    "reverse": {"loss": "reverse", "draw_actions": True},
    "argmax": {"loss": "argmax"},
    "values": {"loss": "values"},
    "teacher acts": {"teacher_share_start": 1.0, "teacher_share_end": 1.0},
    "dagger": {"teacher_share_start": 1.0, "teacher_share_steps": 300},
    "heads and stems": {"game_heads": True, "game_stems": True},
    "expected entropy": {"loss": "expected_entropy", **ON_POLICY},
    "kickstarting": {"reward_coef": 1.0, "distill_coef_end": 0.1, **ON_POLICY},
}


def last(updates):
    *_, update = updates
    return update


def play(policy, settings, episodes=32):
    with closing(make_vector(settings.all_games, 8, 1, stream=1, enforce=False)) as envs:
        return evaluate(policy, envs, episodes, max_episode_steps=1000)


def walks_straight(episodes):
    """Whether every episode took the shortest way, -0.1 a step and 1 at the goal."""
    lengths = [max(e.episode_length for e in episodes if e.game == game) for game in (0, 1)]
    returns = [e.episode_return - (1 - 0.1 * e.episode_length) for e in episodes]
    return max(map(abs, returns)) < 1e-6 and lengths == [5, 3]


def huge_where_invalid(make_network):
    """Return a maker of networks that begin with a huge score of union action 0, game 1 has not."""

    def make(*arguments):
        network = make_network(*arguments)
        bias = network.actor_head.bias.data
        bias[..., 0] += FAR if bias.ndim == 1 else 0.0
        return network

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_learns_what_the_teachers_of_both_games_do(kind):
    more = {"total_steps": 64 * 60} if kind in ("kickstarting", "expected entropy") else {}
    settings = config(**{"total_steps": 64 * 25, **more, **KINDS[kind]})
    update = last(distill.train(settings, load_teachers(settings)))
    episodes = play(update.policy, settings)
    assert walks_straight(episodes)
    assert sum(e.invalid_actions for e in episodes) == 0


def test_a_student_of_bad_teachers_is_bad():
    """What the test above sees is not the masks alone."""
    settings = config(teachers=("test_distill:walk_left",) * 2, epsilon=0.5)
    update = last(distill.train(settings, load_teachers(settings)))
    with closing(make_vector(GAMES, 8, 1, stream=1, max_episode_steps=50)) as envs:
        assert not walks_straight(evaluate(update.policy, envs, 32, max_episode_steps=100))


@pytest.mark.parametrize("kind", ["policy", "reverse", "argmax", "expected entropy"])
def test_what_is_invalid_is_never_learned_from(kind, monkeypatch):
    """A score of action 0 that game 1 never looks at neither moves nor hinders."""
    settings = config(**{"games": GAMES[1:] * 2, **KINDS[kind]})
    monkeypatch.setattr(distill, "make_network", huge_where_invalid(distill.make_network))
    captured = last(distill.train(settings, load_teachers(settings))).capture()
    network = distill.load_network(settings, captured)
    assert network.actor_head.bias[0].item() == FAR
    assert (network.actor_head.weight[0] == initial_row(settings)).all()


def initial_row(settings):
    """The weights of action 0 before training."""
    with closing(envs_of(settings)) as envs:
        state = distill.initial_state(settings, load_teachers(settings), envs, CPU)
    return state.network.actor_head.weight[0]


def test_without_the_mask_in_its_softmax_it_learns_from_what_is_invalid(monkeypatch):
    settings = config(games=GAMES[1:] * 2, mask_softmax=False)
    monkeypatch.setattr(distill, "make_network", huge_where_invalid(distill.make_network))
    captured = last(distill.train(settings, load_teachers(settings))).capture()
    assert captured["network"]["actor_head.bias"][0] < FAR - 0.1


# --- exact resume


RESUMED = {
    **KINDS,
    "recorded": {},
    "8 bits, kickstarting": {"weight_bits": 8, "activation_bits": 8, **KINDS["kickstarting"]},
    "several threads of a ring": {"replay_capacity": 48},
}


def equal(a, b):
    """Whether two captured states are the same to the last bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if hasattr(a, "read"):
        theirs = b.read()
        return all((x == theirs[name]).all() for name, x in a.read().items())
    return bool(a == b) if not hasattr(a, "shape") else bool((a == b).all())


@pytest.mark.parametrize("kind", RESUMED)
def test_a_resumed_run_is_the_same_run(kind, tmp_path):
    changes = RESUMED[kind]
    if kind == "recorded":
        path = tmp_path / "states.safetensors"
        record_states(GAMES, None, random_policy(0), path, num_states=64, seed=0)
        changes = {"recorded": str(path)}
    settings = config(total_steps=64 * 6, **changes)
    teachers = load_teachers(settings)
    whole = {u.update: frozen(u.capture()) for u in distill.train(settings, teachers)}
    updates = distill.train(settings, teachers)
    for update in updates:
        if update.update == 3:
            stopped = frozen(update.capture())
            break
    updates.close()
    resumed = {u.update: frozen(u.capture()) for u in distill.train(settings, teachers, stopped)}
    assert resumed.keys() == {4, 5, 6}
    for update, captured in resumed.items():
        assert equal(captured, whole[update])


def frozen(captured):
    """A captured state as a checkpoint would hold it."""
    if isinstance(captured, dict):
        return {key: frozen(value) for key, value in captured.items()}
    if hasattr(captured, "read"):
        content = {name: array.copy() for name, array in captured.read().items()}
        return dataclasses.replace(captured, read=lambda: content)
    return copy.deepcopy(captured)


def test_a_run_is_not_resumed_with_other_teachers():
    settings = config(total_steps=64)
    teachers = load_teachers(settings)
    captured = frozen(last(distill.train(settings, teachers)).capture())
    other = [teachers[0], dataclasses.replace(teachers[1], digest="another")]
    longer = dataclasses.replace(settings, total_steps=128)
    with pytest.raises(TeacherError, match="walk_right are not those"):
        next(distill.train(longer, other, captured))


# --- the gradient of a whole step


def labelled(settings, rows=16, features=3):
    """Some states of both games in turn, with random labels."""
    generator = torch.Generator().manual_seed(0)
    obs = torch.randint(6, (rows,), generator=generator)
    obs[1::2] = 6 + obs[1::2] % 4
    mask = torch.rand(rows, 4, generator=generator) < 0.7
    mask[:, 1] = True
    return Labelled(
        obs=obs,
        action_mask=mask,
        scores=torch.randn(rows, 4, generator=generator),
        features=torch.randn(rows, features, generator=generator),
    )


@pytest.mark.parametrize("parts", [{}, {"game_heads": True}])
def test_a_gradient_step_is_that_of_the_sum_of_the_losses(parts):
    """Distillation with features, PPO beside it: against autograd and the definitions."""
    settings = config(
        feature_coef=0.05, reward_coef=1.0, entropy_coef=0.02, batch_size=16, max_grad_norm=1e9,
        num_gradient_steps=1, temperature=0.7, **ON_POLICY, **parts,
    )  # fmt: skip
    teachers = [featured(settings, game, size) for game, size in ((0, 3), (1, 2))]
    with closing(envs_of(settings)) as envs:
        state = distill.initial_state(settings, teachers, envs, CPU)
    state.temperatures.fill_(0.7)
    states = labelled(settings)
    generator = torch.Generator().manual_seed(1)
    draw = torch.randn(4, 16, generator=generator)
    log_prob = torch.randn(16, generator=generator) / 10 - 1
    trajectories = distill.Trajectories(
        action=torch.ones(16, dtype=torch.int64),
        log_prob=log_prob,
        value=draw[0],
        advantage=draw[1],
        value_target=draw[2],
    )
    network = copy.deepcopy(state.network)
    for parameter in network.parameters():
        parameter.grad = None
    now = distill.Schedule(learning_rate=0.0, teacher_share=0.0, distill_coef=0.3)
    rows = torch.arange(16)
    distill.learn(settings, state, iter([(states, rows)]), trajectories, now, CPU)

    logits, value = network(states.obs)
    features = network.torso(states.obs)[0]
    mask = states.action_mask
    minus_inf = torch.tensor(-math.inf)
    log_p = torch.where(mask, torch.log_softmax(torch.where(mask, logits, minus_inf), -1), 0.0)
    e = torch.softmax(torch.where(mask, states.scores / 0.7, minus_inf), -1)
    log_e = torch.where(mask, e, 1.0).log()
    loss = 0.3 * (e * (log_e - log_p)).sum(-1).mean()
    for game, layer in enumerate(network.feature_maps):
        target = states.features[game::2, : layer.out_features]
        error = layer(features[game::2]) - target
        loss = loss + 0.3 * 0.05 * error.square().sum() / 16
    chosen = log_p[:, 1]
    surrogate = ops.clipped_surrogate_loss(chosen, log_prob, trajectories.advantage, 0.2)
    entropy = -(log_p.exp() * log_p).sum(-1)
    loss = loss + (surrogate - 0.02 * entropy).mean()
    loss = loss + 0.5 * 0.5 * (value - trajectories.value_target).square().mean()
    loss.backward()
    pairs = zip(state.network.parameters(), network.parameters(), strict=True)
    for own, other in pairs:
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("of", ["log_probs", "probs"])
def test_the_bonus_is_part_of_the_loss(of):
    """The loss and its gradient, against autograd and the definition."""
    settings = config(confidence_bonus=0.2, confidence_of=of)
    states, temperatures = labelled(settings), torch.tensor([0.7, 1.3])
    logits = torch.randn(16, 4, generator=torch.Generator().manual_seed(2)).requires_grad_()
    terms = distill.loss_of(settings, logits, states, temperatures)
    tau, mask = temperatures.repeat(8).unsqueeze(-1), states.action_mask
    e = ops.masked_softmax(states.scores / tau, mask)
    entropy = ops.masked_entropy(ops.masked_log_softmax(states.scores / tau, mask), mask)
    loss = ops.confident_cross_entropy(logits, e, mask, 0.2, of) - entropy
    torch.testing.assert_close(terms.loss, loss.detach())
    torch.testing.assert_close(terms.grad, torch.autograd.grad(loss.sum(), logits)[0])


def sureness(states, **changes):
    """Mean highest probability, and mean entropy, of a student that was fitted to some states."""
    settings = config(**changes)
    with closing(envs_of(settings)) as envs:
        state = distill.initial_state(settings, load_teachers(settings), envs, CPU)
    now = distill.Schedule(learning_rate=1e-2, teacher_share=0.0, distill_coef=1.0)
    distill.learn(settings, state, iter([(states, None)] * 60), None, now, CPU)
    log_probs = ops.masked_log_softmax(state.network(states.obs)[0], states.action_mask)
    entropy = ops.masked_entropy(log_probs, states.action_mask)
    return log_probs.exp().amax(-1).mean().item(), entropy.mean().item()


@pytest.mark.parametrize("of", ["log_probs", "probs"])
def test_the_bonus_makes_a_student_surer(of):
    states = labelled(config(), features=0)
    highest, entropy = sureness(states)
    surer, less = sureness(states, confidence_bonus=0.5, confidence_of=of)
    assert surer > highest + 0.05 and less < entropy - 0.05


@pytest.mark.parametrize(("after", "first"), [(0.0, 0), (0.5, 2), (0.6, 3), (1.0, 4)])
def test_a_student_is_quantised_when_it_is_time(after, first):
    """Of four updates; what is trained before is the float student, to rounding."""
    settings = config(total_steps=64 * 4, weight_bits=2, quantize_after=after)
    with closing(envs_of(settings)) as envs:
        state = distill.initial_state(settings, load_teachers(settings), envs, CPU)
    assert state.network.is_quantized == (first == 0)
    alone = dataclasses.replace(settings, weight_bits=None)
    floats = distill.train(alone, load_teachers(alone))
    for update in distill.train(settings, load_teachers(settings)):
        weights, plain = update.capture()["network"], next(floats).capture()["network"]
        assert weights["is_quantized"] == (update.update >= first)
        if update.update <= first:
            torch.testing.assert_close({k: weights[k] for k in plain}, dict(plain))


def featured(settings, game, size):
    """A teacher of one game with so many features."""
    return dataclasses.replace(load_teachers(settings)[game], num_features=size)


def test_the_reward_of_expected_entropy_is_the_loss_of_the_next_state():
    settings = config(loss="expected_entropy", gamma=1.0, gae_lambda=1.0, **ON_POLICY)
    teachers = load_teachers(settings)
    with closing(envs_of(settings)) as envs:
        state = distill.initial_state(settings, teachers, envs, CPU)
        obs, mask = envs.reset()
        now = distill.scheduled(settings, 0)
        played = distill.collect(settings, teachers, state, envs, obs, mask, now, CPU)
    found = distill.with_advantages(settings, teachers, state, played, CPU)
    ended = played.terminated | played.truncated
    states = [tree_map(lambda x, t=t: x[8 * t : 8 * t + 8], played.states) for t in range(8)]
    cost = [distill.loss_of(settings, played.logits[t], states[t], state.temperatures).loss
            for t in range(8)]  # fmt: skip
    assert ended.any()
    for env in range(8):
        for t in range(7):
            until = next((i for i in range(t, 8) if ended[i, env]), 8)
            if until == 8:
                continue  # it bootstraps
            expected = -sum(cost[i][env] for i in range(t + 1, until + 1))
            target = found.value_target.view(8, 8)[t, env]
            torch.testing.assert_close(
                target, torch.as_tensor(float(expected)), atol=1e-4, rtol=1e-4
            )


# --- data


def test_minibatches_have_equal_shares_in_turn():
    settings = config()
    teachers = load_teachers(settings)
    with closing(envs_of(settings)) as envs:
        state = distill.initial_state(settings, teachers, envs, CPU)
    states = labelled(settings, rows=64, features=0)
    state.states.add(states)
    drawn = list(distill.minibatches(settings, state, None))
    newest = list(distill.minibatches(settings, state, states))
    for batches in (drawn, newest):
        assert len(batches) == settings.num_gradient_steps
        for batch, _ in batches:
            assert len(batch.obs) == settings.batch_size
            assert (batch.obs[::2] < 6).all()
            assert (batch.obs[1::2] >= 6).all()
    # four minibatches of 16 are one pass: every row once
    rows = torch.cat([rows for _, rows in newest])
    assert sorted(rows.tolist()) == list(range(64))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_teachers_act_as_often_as_they_should(share):
    settings = config(
        games=GAMES[:1] * 2, teacher_share_start=share, teacher_share_end=share, epsilon=0.0,
        num_steps=64, replay_capacity=1024,
    )  # fmt: skip
    teachers = load_teachers(settings)
    with closing(envs_of(settings)) as envs:
        state = distill.initial_state(settings, teachers, envs, CPU)
        # a student that stays or walks left wherever it can
        state.network.actor_head.weight.data.zero_()
        state.network.actor_head.bias.data[:] = torch.tensor([5.0, 0.0, 5.0])
        obs, mask = envs.reset()
        now = distill.scheduled(settings, 0)
        played = distill.collect(settings, teachers, state, envs, obs, mask, now, CPU)
    right = played.action == 1
    free = (played.states.action_mask.sum(-1) > 1).view(right.shape)  # where there is a choice
    fraction = right[free].float().mean().item()
    assert fraction == pytest.approx(share, abs=0.12 if share == 0.5 else 0)


def test_recorded_states_take_the_place_of_playing(tmp_path):
    path = tmp_path / "states.safetensors"
    count = record_states(GAMES, None, random_policy(0), path, num_states=200, seed=3)
    assert count == 208
    settings = config(recorded=str(path), replay_capacity=256, total_steps=64 * 25)
    updates = list(distill.train(settings, load_teachers(settings)))
    assert all(not update.episodes for update in updates)
    assert walks_straight(play(updates[-1].policy, settings))
    with pytest.raises(RecordedError, match="others"):
        other = dataclasses.replace(settings, games=GAMES[::-1])
        next(distill.train(other, load_teachers(other)))


def test_the_automatic_temperature_is_that_of_the_gaps():
    settings = config(teachers=("test_distill:values_of", "test_distill:walk_right"))
    teachers = load_teachers(settings)
    teachers[0] = dataclasses.replace(teachers[0], kind="values")
    # where left is invalid and at odd places the gap is to the one other action: 0.2 or 0.4
    found = distill.temperatures_of(settings, teachers)
    assert found[0].item() in (pytest.approx(0.05), pytest.approx(0.1))
    assert found[1].item() == 1.0
    fixed = dataclasses.replace(settings, temperature=0.3)
    assert distill.temperatures_of(fixed, teachers).tolist() == pytest.approx([0.3, 0.3])


def test_the_checkpoint_says_which_games_and_actions():
    settings = config(total_steps=64)
    captured = last(distill.train(settings, load_teachers(settings))).capture()
    assert captured["games"] == [
        {"env_id": game.env_id, "action_ids": game.action_ids} for game in GAMES
    ]


def test_metrics_are_of_each_game():
    settings = config(num_gradient_steps=2)
    metrics = last(distill.train(settings, load_teachers(settings))).metrics
    names = ["rlmask-tests/Corridor-v0-0", "rlmask-tests/Corridor-v0-4"]
    assert {name.split("/", 2)[2] for name in metrics if name.startswith("distill/")} == set(names)
    for name in names:
        assert metrics[f"distill/agreement/{name}"] > 0.9
        assert 0 <= metrics[f"distill/invalid_mass/{name}"] <= 1
        assert metrics[f"distill/kl/{name}"] >= 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch_size": 15}, "multiple of the 2 games"),
        ({"teachers": ("a:b",)}, "1 teachers for 2 games"),
        ({"replay_capacity": 31}, "must be >= 32"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"reward_coef": 1.0}, "draw_actions to true"),
        ({"loss": "expected_entropy", "draw_actions": True}, "epsilon"),
        ({"mask_softmax": False, "loss": "reverse"}, "`policy` only"),
        ({"epsilon": 1.5}, "epsilon is 1.5"),
        ({"confidence_bonus": 0.1, "confidence_of": "logits"}, "unbounded"),
        ({"confidence_of": "logits"}, "unbounded"),
        ({"confidence_bonus": -0.1}, "not negative"),
        ({"confidence_bonus": 0.1, "loss": "argmax"}, "`policy` with mask_softmax"),
        ({"weight_bits": 1}, "weight_bits is 1"),
        ({"activation_bits": 17}, "activation_bits is 17"),
        ({"quantize_after": 1.1}, "quantize_after is 1.1"),
        ({"feature_coef": -1.0}, "feature_coef is -1"),
    ],
)
def test_settings_that_do_not_hold_are_named(changes, said):
    with pytest.raises(ValueError, match=said):
        config(**changes)


def test_features_of_a_function_are_none():
    settings = config(feature_coef=0.01)
    with pytest.raises(TeacherError, match="without features"):
        next(distill.train(settings, load_teachers(settings)))


def test_scores_that_are_not_finite_are_an_error(monkeypatch):
    def spoilt(*arguments):
        network = make_network(*arguments)
        network.actor_head.bias.data.fill_(math.nan)
        return network

    make_network = distill.make_network
    monkeypatch.setattr(distill, "make_network", spoilt)
    settings = config()
    with pytest.raises(FloatingPointError, match="finite"):
        next(distill.train(settings, load_teachers(settings)))


def test_the_policy_of_a_checkpoint_is_that_of_the_run():
    settings = config(total_steps=64 * 6)
    update = last(distill.train(settings, load_teachers(settings)))
    captured = frozen(update.capture())
    policy = distill.load_policy(settings, captured, greedy=True, seed=0)
    obs = torch.tensor([0, 6, 3, 8])
    mask = torch.ones(4, 4, dtype=torch.bool)
    assert torch.equal(policy(obs, mask), update.policy(obs, mask))
    network = distill.load_network(settings, captured)
    drawn = actor_policy(network, greedy=False, generator=torch.Generator().manual_seed(7))
    mine = distill.load_policy(settings, captured, greedy=False, seed=7)
    assert torch.equal(drawn(obs, mask), mine(obs, mask))


def test_a_teacher_sees_only_its_own_game():
    spec = ObsSpec(kind="discrete", shape=(), dtype="int64", n=4)
    seen = []

    def score(obs, mask):
        seen.append((obs.tolist(), mask.shape[1]))
        return mask.float(), torch.zeros(len(mask), 0)

    settings = config()
    teachers = [
        Teacher(name="0", score=score, kind="policy", obs=spec, action_ids=(0, 1, 2)),
        Teacher(name="1", score=score, kind="policy", obs=spec, obs_offset=6, action_ids=(3, 2, 1)),
    ]
    next(distill.train(settings, teachers))
    assert {size for _, size in seen} == {3}
    assert max(max(obs) for obs, _ in seen[1::2]) < 4
    assert max(max(obs) for obs, _ in seen[::2]) == 4  # the goal, 5, is never acted in
