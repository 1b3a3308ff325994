import copy
from dataclasses import replace

import envs_for_tests
import pytest
import torch

from rlmask import dqn, networks, ops, pqn
from rlmask.evaluate import evaluate, summarize
from rlmask.replay import ReplayError
from rlmask.types import tree_map
from rlmask.vector import Game, SpaceError, make_vector

CORRIDOR = "rlmask-tests/Corridor-v0"
TWO_STATES = "rlmask-tests/TwoStates-v0"
SMALL = {"num_envs": 4, "phases_per_update": 16, "batch_size": 16, "learning_starts": 32}
GAMMA = 0.5
EQUAL = {"go": 0.5, "end": 3.0}  # makes all valid actions of a state equally good


def config(env=CORRIDOR, **changes):
    return dqn.DQNConfig(**{"env": env, "total_steps": 512, **SMALL, **changes})


def last(updates):
    *_, update = updates
    return update


def huge_where_invalid(make_network):
    """Return a maker of networks that begin with a huge value of the action that is never valid."""

    def make(settings, *arguments):
        network = make_network(settings, *arguments)
        bias = network.head.bias.data.view(-1, network.num_outputs)
        if network.support is None:
            bias[2] = 100.0
        else:
            bias[2, -1] = 20.0  # the probability of the highest atom is 1
        return network

    return make


def learned(monkeypatch, env_kwargs=None, **changes):
    """Train on the two states; return the learned values of the valid actions, and their error."""
    monkeypatch.setattr(dqn, "make_network", huge_where_invalid(dqn.make_network))
    settings = {
        "total_steps": 8192,
        "num_envs": 8,
        "num_gradient_steps": 3,
        "phases_per_update": 512,
        "batch_size": 32,
        "gamma": GAMMA,
        "hidden_sizes": (16,),
        "learning_rate": 2e-2,
        "anneal_learning_rate": True,
        "huber_delta": None,
        "target_update_period": 20,
        "replay_capacity": 1024,
        "epsilon_end": 1.0,
        "v_min": 0.0,
        "v_max": 4.0,
        "num_atoms": 9,
        "num_quantiles": 4,
    }
    kwargs = env_kwargs or {}
    run = config(TWO_STATES, env_kwargs=kwargs, **{**settings, **changes})
    captured = last(dqn.train(run)).capture()
    network = dqn.make_network(
        run,
        networks.ObsSpec(**captured["obs_spec"]),
        networks.ActionSpec(**captured["action_spec"]),
        torch.Generator(),
    )
    network.load_state_dict(captured["network"])
    mask = torch.tensor([[True, True, False]] * 2)
    values = network.values(torch.arange(2), mask).detach()
    expected = torch.from_numpy(envs_for_tests.TwoStates(**kwargs).action_values(GAMMA)).float()
    if not run.dueling:  # a dueling network's raw entry moves with the mean of the others
        assert (values[:, 2] > values[:, :2].max()).all(), "the invalid action is not the best"
    return values[:, :2], (values[:, :2] - expected).abs().max().item()


VARIANTS = {
    "plain": {"double": False},
    "double": {"double": True},
    "dueling": {"dueling": True},
    "dueling, not double": {"dueling": True, "double": False},
    "prioritized": {"prioritized": True},
    "quantile": {"distribution": "quantile", "huber_delta": 1.0},
    "quantile, dueling": {"distribution": "quantile", "huber_delta": 1.0, "dueling": True},
    "categorical": {"distribution": "categorical"},
    "categorical, not double": {"distribution": "categorical", "double": False},
    "Polyak": {"target_update_period": 1, "target_update_rate": 0.05},
    "Huber": {"huber_delta": 1.0},
    "n-step": {"n_step": 3, "env_kwargs": EQUAL},
    "n-step, prioritized, dueling, quantile": {
        "n_step": 3,
        "env_kwargs": EQUAL,
        "prioritized": True,
        "dueling": True,
        "distribution": "quantile",
        "huber_delta": 1.0,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_the_values_are_the_analytic_ones_although_an_invalid_one_is_huge(monkeypatch, variant):
    values, error = learned(monkeypatch, **variant)
    assert error < 1e-3, values


# --- what the tests above would see if a mask were left out


@pytest.mark.slow
def test_a_target_without_the_mask_is_noticed(monkeypatch):
    monkeypatch.setattr(dqn, "bootstrap_mask", lambda mask, discount: torch.ones_like(mask))
    _, error = learned(monkeypatch, total_steps=1024, double=False)
    assert error > 0.1


@pytest.mark.slow
def test_a_choice_of_the_double_target_without_the_mask_is_noticed(monkeypatch):
    monkeypatch.setattr(dqn, "bootstrap_mask", lambda mask, discount: torch.ones_like(mask))
    _, error = learned(monkeypatch, total_steps=1024, double=True)
    assert error > 0.1


def test_behaviour_without_the_mask_is_refused_by_the_env(monkeypatch):
    masked = dqn.masked_epsilon_greedy

    def unmasked(values, mask, epsilon, generator):
        return masked(values, torch.ones_like(mask), epsilon, generator)

    monkeypatch.setattr(dqn, "masked_epsilon_greedy", unmasked)
    with pytest.raises(ops.InvalidActionError, match="TwoStates"):
        learned(monkeypatch, total_steps=1024)


def test_a_dueling_mean_over_all_actions_is_noticed(monkeypatch):
    """Not in learned values, but in what an invalid action does to them."""

    def network():
        return dqn.make_network(
            config(TWO_STATES, dueling=True, hidden_sizes=(16,)),
            networks.ObsSpec(kind="discrete", shape=(), dtype="int64", n=3),
            networks.ActionSpec(nvec=(3,)),
            torch.Generator().manual_seed(0),
        )

    def shift():
        """Return how far the values of the valid actions move with the bias of the invalid one."""
        mask = torch.tensor([[True, True, False]] * 2)
        before, after = network(), network()
        after.head.bias.data[2] += 100.0
        values = [net.values(torch.arange(2), mask)[:, :2] for net in (before, after)]
        return (values[0] - values[1]).abs().max()

    assert shift() == 0
    masked = networks.dueling_values
    monkeypatch.setattr(
        networks, "dueling_values", lambda v, a, mask: masked(v, a, torch.ones_like(mask))
    )
    assert shift() > 10


# --- a phase, row by row


CPU = torch.device("cpu")


def filled_state(settings, seed=0):
    """The state of a run that has seen some steps, with weights that are far from each other."""
    envs = make_vector(settings.all_games, settings.num_envs, seed)
    state = dqn.initial_state(settings, envs, CPU)
    obs, action_mask = envs.reset()
    state.replay.start(obs, action_mask)
    dqn.collect(replace(settings, num_steps=50), envs, state, obs, action_mask, 1.0, CPU)
    envs.close()
    generator = torch.Generator().manual_seed(seed)
    for weights in (state.optimizer.weights, state.target_weights):
        weights.copy_(torch.randn(weights.shape, generator=generator) / 3)
    return state


def projected(probs, reward, discount, support):
    """The distribution of r + d X on the atoms of X, atom by atom."""
    step = support[1] - support[0]
    out = [0.0] * len(support)
    for probability, atom in zip(probs, support, strict=True):
        place = (min(max(reward + discount * atom, support[0]), support[-1]) - support[0]) / step
        for i in range(len(support)):
            out[i] += probability * max(0.0, 1.0 - abs(place - i))
    return out


@torch.no_grad()
def target_of_row(state, drawn, row, double):
    """The best valid next action by one network, its value by the other."""
    reward, discount = drawn.reward[row].item(), drawn.discount[row].item()
    mask = drawn.next_action_mask[row]
    support = None if state.target.support is None else state.target.support.tolist()
    if discount == 0:
        assert not mask.any(), "the env gives an empty mask at the end"
        if support is None:
            return [reward] * state.network.num_outputs
        return projected([1.0] + [0.0] * (len(support) - 1), reward, 0.0, support)
    one = drawn.next_obs[row : row + 1], mask.unsqueeze(0)
    scores = (state.network if double else state.target).values(*one)[0].tolist()
    best = max(mask.nonzero().flatten().tolist(), key=lambda a: scores[a])
    outputs = state.target(*one)[0, best]
    if support is None:
        return [reward + discount * z for z in outputs.tolist()]
    return projected(torch.softmax(outputs, 0).tolist(), reward, discount, support)


@pytest.mark.parametrize("distribution", ["none", "categorical", "quantile"])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("dueling", [False, True])
def test_the_targets_are_those_of_a_loop(distribution, double, dueling):
    settings = config(
        distribution=distribution, dueling=dueling, num_atoms=7, v_min=-1.5, v_max=1.5
    )
    state = filled_state(settings)
    drawn, _, _ = state.replay.sample(200, gamma=0.9, n_step=2)
    assert drawn.discount.eq(0).any()
    expected = [target_of_row(state, drawn, row, double) for row in range(200)]
    torch.testing.assert_close(
        dqn.targets_of(state, drawn, double), torch.tensor(expected), rtol=1e-4, atol=1e-5
    )


def test_the_two_networks_of_double_q_learning_disagree():
    """Else the test above would not tell them apart."""
    state = filled_state(config())
    drawn, _, _ = state.replay.sample(200, gamma=0.9)
    assert not torch.equal(*(dqn.targets_of(state, drawn, double) for double in (True, False)))


@pytest.mark.parametrize("double", [False, True])
def test_the_gradient_is_that_of_the_weighted_loss_and_errors_become_priorities(double):
    settings = config(
        prioritized=True,
        dueling=True,
        double=double,
        huber_delta=0.2,
        max_grad_norm=1e6,
        num_gradient_steps=1,
    )
    state = filled_state(settings)
    _, index, _ = state.replay.sample(150, gamma=0.9)
    state.replay.update_priorities(index, torch.rand(150) * 3)
    sample, drawn, kept = state.replay.sample, [], []

    def recorded(*arguments, **options):
        drawn.append(sample(*arguments, **options))
        return drawn[-1]

    state.replay.sample = recorded
    state.replay.update_priorities = lambda *given: kept.append(given)
    network = copy.deepcopy(state.network)
    before = replace(state, network=network)
    targets, targets_of = [], dqn.targets_of
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dqn, "targets_of", lambda *a: targets.append(targets_of(*a)) or targets[-1])
        dqn.learn(state, settings, 0.1, 0.7, CPU)
    batch, index, weight = tree_map(torch.clone, drawn[0][0]), drawn[0][1], drawn[0][2].clone()
    target = targets[0].clone().squeeze(1)
    with torch.no_grad():
        torch.testing.assert_close(target, targets_of(before, batch, double).squeeze(1))
    assert weight.unique().numel() > 5
    prediction = network(batch.obs, batch.action_mask)[range(16), batch.action, 0]
    loss = torch.nn.functional.huber_loss(prediction, target, reduction="none", delta=0.2)
    gradients = torch.autograd.grad((weight * loss).mean(), list(network.parameters()))
    torch.testing.assert_close(
        state.optimizer.gradient.clone(), torch.cat([g.flatten() for g in gradients])
    )
    assert torch.equal(kept[0][0], index)
    torch.testing.assert_close(kept[0][1].clone(), (target - prediction).detach().abs())


def test_each_gradient_step_of_a_phase_has_rows_of_its_own():
    settings = config(prioritized=True, num_gradient_steps=3, batch_size=8)
    state = filled_state(settings)
    kept = []
    state.replay.update_priorities = lambda *given: kept.append(given)
    learned, drawn = dqn.learn(state, settings, 1e-3, 0.4, CPU)
    assert len(learned) == 3
    assert all(len(step.loss) == 8 for step in learned)
    assert len(drawn.obs) == 24
    assert torch.equal(kept[0][1], torch.cat([step.error for step in learned]))


def test_it_learns_from_the_phase_at_which_learning_starts_and_then_moves_the_target():
    """4 gradient steps a phase, a target update every 6: in whole phases."""
    settings = config(
        phases_per_update=1,
        learning_starts=30,  # the eighth phase of four envs
        num_gradient_steps=4,
        target_update_period=6,
        total_steps=4 * 15,
    )
    before, num_learned = None, 0
    for update in dqn.train(settings):
        captured = update.capture()
        assert ("loss/q" in update.metrics) == (update.env_steps >= 30)
        due = num_learned // 6
        num_learned += 4 * (update.env_steps >= 30)
        if before is not None:
            moved = any(not torch.equal(before[k], v) for k, v in captured["target"].items())
            assert moved == (num_learned // 6 > due)
        before = {k: v.clone() for k, v in captured["target"].items()}
    assert num_learned == 4 * 8


@pytest.mark.parametrize(("period", "expected"), [(1, 1 - 0.9**4), (2, 1 - 0.9**2), (4, 0.1)])
def test_several_target_updates_of_a_phase_are_one_of_the_same_share(period, expected):
    settings = config(num_gradient_steps=4, target_update_period=period, target_update_rate=0.1)
    assert dqn.target_rate(settings, 7) == pytest.approx(expected)


def test_the_importance_exponent_rises_to_1():
    settings = config(importance_exponent=0.4, total_steps=1000)
    betas = [dqn.scheduled(settings, env_steps)[2] for env_steps in (0, 500, 1000)]
    assert betas == pytest.approx([0.4, 0.7, 1.0])


@pytest.mark.parametrize("algorithm", [dqn, pqn], ids=["dqn", "pqn"])
def test_a_policy_explores_unless_it_is_greedy(algorithm):
    make = algorithm.DQNConfig if algorithm is dqn else algorithm.PQNConfig
    settings = make(env=CORRIDOR, num_envs=4, total_steps=64, epsilon_end=0.5)
    captured = next(algorithm.train(settings)).capture()
    mask = torch.tensor([[True, True, False]]).expand(400, -1)
    obs = torch.full((400,), 3)
    greedy, explores, again = (
        algorithm.load_policy(settings, captured, greedy=greedy, seed=1)(obs, mask)
        for greedy in (True, False, False)
    )
    assert (greedy == greedy[0]).all()
    assert torch.equal(explores, again)
    assert mask[0][explores].all()
    # half of the draws are uniform over two actions; four standard deviations are 35
    assert 300 - 35 < (explores == greedy).sum() < 300 + 35


# --- the settings, and what cannot be learned from


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_gradient_steps": 0}, "num_gradient_steps is 0"),
        ({"phases_per_update": 0}, "phases_per_update is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"learning_starts": 0}, "learning_starts is 0"),
        ({"n_step": 0}, "n_step is 0"),
        ({"frame_stack": 0}, "frame_stack is 0"),
        ({"target_update_period": 0}, "target_update_period is 0"),
        ({"target_update_rate": 0.0}, "target_update_rate is 0"),
        ({"target_update_rate": 1.5}, "target_update_rate is 1.5"),
        ({"epsilon_steps": 0}, "epsilon_steps is 0"),
        ({"epsilon_start": 1.5}, "epsilon_start is 1.5"),
        ({"epsilon_end": -0.1}, "epsilon_end is -0.1"),
        ({"gamma": 1.1}, "gamma is 1.1"),
        ({"priority_exponent": 2.0}, "priority_exponent is 2.0"),
        ({"importance_exponent": -1.0}, "importance_exponent is -1.0"),
        ({"learning_rate": float("inf")}, "learning_rate is inf"),
        ({"max_grad_norm": 0.0}, "max_grad_norm is 0.0"),
        ({"huber_delta": 0.0}, "huber_delta is 0.0"),
        ({"huber_delta": None, "distribution": "quantile"}, "huber_delta is None: the quantile"),
        ({"huber_delta": float("inf"), "distribution": "quantile"}, "huber_delta is inf"),
        ({"learning_starts": 513}, "learning_starts is 513: it must be <= total_steps, 512"),
        ({"num_atoms": 1}, "num_atoms is 1"),
        ({"num_quantiles": 0}, "num_quantiles is 0"),
        ({"v_min": 1.0, "v_max": 1.0}, "v_min is 1.0"),
        ({"v_min": float("-inf")}, "v_min is -inf"),
        ({"replay_capacity": 15}, "replay_capacity is 15: it must be >= 16"),
    ],
)
def test_a_setting_that_makes_no_sense_is_an_error_that_names_it(changes, words):
    with pytest.raises(ValueError, match=words):
        config(**changes)


def test_an_action_of_several_parts_is_refused():
    with pytest.raises(SpaceError, match="3 parts"):
        next(dqn.train(config("rlmask-tests/Target-v0")))


def test_frames_that_are_not_stacked_are_noticed():
    """The two channels of Grid are not two moments."""
    with pytest.raises(ReplayError, match="set frame_stack to 1"):
        next(dqn.train(config("rlmask-tests/Grid-v0", frame_stack=2)))


def test_a_gradient_that_is_not_finite_ends_training():
    with pytest.raises(FloatingPointError, match="gradient is not finite"):
        last(dqn.train(config(learning_rate=1e38, huber_delta=None)))


# --- learning


def mean_length(policy, env):
    """Return how long the env's episodes last under a policy."""
    envs = make_vector((Game(env_id=env),), 8, 1, stream=1)
    try:
        return summarize(evaluate(policy, envs, 64, max_episode_steps=1000)).mean_length
    finally:
        envs.close()


def shortest_way(obs, action_mask):
    """Down if that is valid, else to the right in a Grid; to the right in a Corridor."""
    return torch.where(action_mask[:, 1], 1, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "changes"),
    [
        (CORRIDOR, {}),
        ("rlmask-tests/Grid-v0", {"double": False, "dueling": True}),
        ("rlmask-tests/Stacked-v0", {"frame_stack": 3, "n_step": 3, "prioritized": True}),
    ],
    ids=["discrete", "image", "stacked images"],
)
def test_it_learns_the_shortest_way(env, changes):
    settings = {"total_steps": 8192, "gamma": 0.9, "learning_rate": 3e-3, "epsilon_end": 0.3}
    update = last(dqn.train(config(env, **settings, **changes)))
    assert mean_length(update.policy, env) == mean_length(shortest_way, env)


@pytest.mark.slow
def test_one_network_learns_two_games_whose_actions_differ():
    """The union index of a place's best action is another in each game."""
    games = (
        Game(env_id=CORRIDOR, action_ids=(0, 1, 2)),
        Game(env_id=CORRIDOR, env_kwargs={"length": 4}, action_ids=(3, 2, 1)),
    )
    settings = config(
        "", games=games, num_envs=8, total_steps=16_384, gamma=0.9, learning_rate=3e-3
    )
    update = last(dqn.train(settings))
    envs = make_vector(games, 8, 1, stream=1)
    try:
        episodes = evaluate(update.policy, envs, 64, max_episode_steps=1000)
    finally:
        envs.close()
    # from a place p the goal at g is g - p steps away, each worth -0.1, the last one +1
    assert all(e.episode_return == pytest.approx(1 - 0.1 * e.episode_length) for e in episodes)
    for game, longest in ((0, 5), (1, 3)):
        assert max(e.episode_length for e in episodes if e.game == game) == longest


TWO_GAMES = (
    Game(env_id=CORRIDOR, action_ids=(0, 1, 2)),
    Game(env_id=CORRIDOR, env_kwargs={"length": 4}, action_ids=(3, 2, 1)),
)


@pytest.mark.parametrize(
    "parts", [{"normalize_reward": True}, {"game_heads": True, "dueling": True}]
)
def test_a_resumed_run_of_several_games_is_the_same_run(parts):
    settings = config("", games=TWO_GAMES, num_envs=8, total_steps=384, **parts)
    whole = frozen(last(dqn.train(settings)).capture())
    updates = dqn.train(settings)
    stopped = frozen(next(updates).capture())
    updates.close()
    resumed = frozen(last(dqn.train(settings, stopped)).capture())
    for key in ("network", "target", "optimizer", "reward_scaler"):
        assert all(torch.equal(resumed[key][n], whole[key][n]) for n in whole[key])
    assert resumed["games"][1] == {"env_id": CORRIDOR, "action_ids": (3, 2, 1)}


def frozen(captured):
    """A captured state as a checkpoint would hold it."""
    if isinstance(captured, dict):
        return {key: frozen(value) for key, value in captured.items()}
    if hasattr(captured, "read"):
        content = {name: array.copy() for name, array in captured.read().items()}
        return replace(captured, read=lambda: content)
    return copy.deepcopy(captured)


def test_rewards_are_scaled_when_they_are_drawn(monkeypatch):
    settings = config("", games=TWO_GAMES, num_envs=8, normalize_reward=True)
    state = filled_state(settings)
    drawn, index, weight = state.replay.sample(16, num_batches=2, gamma=settings.gamma)
    monkeypatch.setattr(state.replay, "sample", lambda *a, **k: (drawn, index, weight))
    seen = []
    monkeypatch.setattr(
        dqn, "targets_of", lambda s, d, double: seen.append(d.reward) or torch.zeros(32, 1)
    )
    dqn.learn(state, settings, 1e-3, 0.0, CPU)
    moments = state.reward_scaler.capture()
    deviation = (moments["var"] + 1e-8).sqrt().float().repeat(16)
    assert not torch.allclose(deviation[0], deviation[1])
    torch.testing.assert_close(seen[0], drawn.reward / deviation)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"game_heads": True}, "several games"),
        ({"env": "", "games": TWO_GAMES, "batch_size": 15}, "multiple of the 2 games"),
    ],
)
def test_settings_of_several_games_that_do_not_hold(changes, said):
    with pytest.raises(ValueError, match=said):
        config(**changes)
