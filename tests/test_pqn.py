import copy

import envs_for_tests
import pytest
import torch
from test_dqn import mean_length, shortest_way

from rlmask import networks, ops, pqn
from rlmask.types import tree_map
from rlmask.vector import SpaceError, make_vector

CPU = torch.device("cpu")
TWO_STATES = "rlmask-tests/TwoStates-v0"
GAMMA = 0.5
EQUAL = {"go": 0.5, "end": 3.0}  # makes all valid actions of a state equally good


def learned(monkeypatch, env_kwargs=None, **changes):
    """Train on the two states with a huge value of the invalid action; return values and error."""
    make_network = pqn.make_network

    def huge_where_invalid(*arguments):
        network = make_network(*arguments)
        network.head.bias.data[2] = 100.0
        return network

    monkeypatch.setattr(pqn, "make_network", huge_where_invalid)
    settings = {
        "total_steps": 32_768,
        "num_envs": 8,
        "num_steps": 8,
        "num_epochs": 2,
        "num_minibatches": 2,
        "gamma": GAMMA,
        "hidden_sizes": (16,),
        "learning_rate": 1e-2,
        "epsilon_end": 1.0,
    }
    kwargs = env_kwargs or {}
    run = pqn.PQNConfig(env=TWO_STATES, env_kwargs=kwargs, **{**settings, **changes})
    *_, update = pqn.train(run)
    captured = update.capture()
    network = make_network(
        run,
        networks.ObsSpec(**captured["obs_spec"]),
        networks.ActionSpec(**captured["action_spec"]),
        torch.Generator(),
    )
    network.load_state_dict(captured["network"])
    mask = torch.tensor([[True, True, False]] * 2)
    values = network.values(torch.arange(2), mask).detach()
    expected = torch.from_numpy(envs_for_tests.TwoStates(**kwargs).action_values(GAMMA)).float()
    assert (values[:, 2] > values[:, :2].max()).all(), "the invalid action is not the best"
    return values[:, :2], (values[:, :2] - expected).abs().max().item()


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant",
    [
        {"q_lambda": 0.0},
        {"q_lambda": 0.0, "layer_norm": False},
        # with λ the returns follow the behaviour, so there all valid actions are equally good
        {"q_lambda": 0.65, "env_kwargs": EQUAL},
    ],
)
def test_the_values_are_the_analytic_ones_although_an_invalid_one_is_huge(monkeypatch, variant):
    values, error = learned(monkeypatch, **variant)
    assert error < 1e-3, values


@pytest.mark.slow
def test_a_target_without_the_mask_is_noticed(monkeypatch):
    masked = pqn.masked_max
    monkeypatch.setattr(pqn, "masked_max", lambda q, mask: masked(q, torch.ones_like(mask)))
    _, error = learned(monkeypatch, total_steps=4096, q_lambda=0.0)
    assert error > 0.1


def test_behaviour_without_the_mask_is_refused_by_the_env(monkeypatch):
    masked = pqn.masked_epsilon_greedy

    def unmasked(values, mask, epsilon, generator):
        return masked(values, torch.ones_like(mask), epsilon, generator)

    monkeypatch.setattr(pqn, "masked_epsilon_greedy", unmasked)
    with pytest.raises(ops.InvalidActionError, match="TwoStates"):
        learned(monkeypatch)


# --- an update, row by row


def filled(**changes):
    """An initial state with random weights, its envs, what they show first, and the settings."""
    settings = pqn.PQNConfig(
        env="rlmask-tests/Corridor-v0",
        **{"num_envs": 3, "num_steps": 12, "num_minibatches": 1, "gamma": 0.9, **changes},
    )
    envs = make_vector(settings.all_games, settings.num_envs, 0, max_episode_steps=4)
    state = pqn.initial_state(settings, envs, CPU)
    weights = state.optimizer.weights
    weights.copy_(torch.randn(weights.shape, generator=torch.Generator().manual_seed(0)) / 3)
    return state, envs, *envs.reset(), settings


@torch.no_grad()
def returns_of_env(state, steps, env, gamma, q_lambda):
    """Peng's Q(λ) of one env, from the last step to the first."""

    def best(obs, mask):
        values = state.network.values(obs.unsqueeze(0), mask.unsqueeze(0))[0].tolist()
        return max(value for value, valid in zip(values, mask.tolist(), strict=True) if valid)

    returns, following = [], None
    for step in reversed(steps):
        target = step.reward[env].item()
        if step.truncated[env]:
            row = step.ended.tolist().index(env)
            target += gamma * best(step.final_obs[row], step.final_action_mask[row])
        elif not step.terminated[env]:
            value = best(step.obs[env], step.action_mask[env])
            ahead = value if following is None else following
            target += gamma * ((1 - q_lambda) * value + q_lambda * ahead)
        following = target
        returns.insert(0, target)
    return returns


@pytest.mark.parametrize("q_lambda", [0.0, 0.7, 1.0])
def test_the_targets_are_those_of_a_loop(q_lambda):
    state, envs, obs, mask, settings = filled(q_lambda=q_lambda)
    step, steps = envs.step, []
    envs.step = lambda action: steps.append(step(action)) or steps[-1]
    batch, episodes, last_obs, last_mask = pqn.collect(
        envs, state, obs, mask, settings, epsilon=1.0, device=CPU
    )
    assert len(steps) == 12
    assert any(s.truncated.any() for s in steps)
    assert any(s.terminated.any() for s in steps)
    assert episodes == [episode for s in steps for episode in s.episodes]
    assert torch.equal(last_obs, steps[-1].obs)
    assert torch.equal(last_mask, steps[-1].action_mask)
    expected = [returns_of_env(state, steps, env, 0.9, q_lambda) for env in range(3)]
    target = batch.value_target.view(12, 3)
    torch.testing.assert_close(target.clone(), torch.tensor(expected).T.contiguous())
    assert torch.equal(batch.obs.view(12, 3)[1:], torch.stack([s.obs for s in steps[:-1]]))


@pytest.mark.parametrize("huber_delta", [None, 0.2])
def test_the_gradient_is_that_of_the_mean_loss(huber_delta):
    state, envs, obs, mask, settings = filled(
        num_epochs=1, huber_delta=huber_delta, max_grad_norm=1e6
    )
    batch, *_ = pqn.collect(envs, state, obs, mask, settings, epsilon=1.0, device=CPU)
    batch = tree_map(torch.clone, batch)
    network = copy.deepcopy(state.network)
    losses = pqn.learn(state, batch, settings, 0.1)
    prediction = network(batch.obs, batch.action_mask)[range(36), batch.action, 0]
    error = batch.value_target - prediction
    loss = torch.nn.functional.huber_loss(
        prediction, batch.value_target, delta=1e9 if huber_delta is None else huber_delta
    )
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    torch.testing.assert_close(
        state.optimizer.gradient.clone(), torch.cat([g.flatten() for g in gradients])
    )
    assert losses["loss/q"] == pytest.approx(loss.item(), rel=1e-5)
    assert losses["loss/td_error"] == pytest.approx(error.abs().mean().item(), rel=1e-5)
    assert losses["loss/q_value"] == pytest.approx(batch.value_target.mean().item(), rel=1e-5)
    norm = sum(g.square().sum() for g in gradients).sqrt().item()
    assert losses["loss/grad_norm"] == pytest.approx(norm, rel=1e-4)


def test_every_epoch_sees_every_row_once(monkeypatch):
    state, envs, obs, mask, settings = filled(num_epochs=3, num_minibatches=4)
    batch, *_ = pqn.collect(envs, state, obs, mask, settings, epsilon=1.0, device=CPU)
    seen = []
    td_loss = pqn.td_loss
    monkeypatch.setattr(
        pqn, "td_loss", lambda p, target, delta: seen.append(target) or td_loss(p, target, delta)
    )
    pqn.learn(state, batch, settings, 0.0)
    assert [len(target) for target in seen] == [9] * 12
    epochs = torch.cat(seen).view(3, 36)
    assert torch.equal(epochs.sort(1).values, batch.value_target.sort().values.expand(3, -1))
    assert not torch.equal(epochs[0], epochs[1]), "in another order"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_steps": 0}, "num_steps is 0"),
        ({"num_epochs": 0}, "num_epochs is 0"),
        ({"num_minibatches": 3}, "64 does not divide into num_minibatches = 3"),
        ({"epsilon_steps": 0}, "epsilon_steps is 0"),
        ({"epsilon_end": 2.0}, "epsilon_end is 2.0"),
        ({"gamma": -0.1}, "gamma is -0.1"),
        ({"q_lambda": 1.1}, "q_lambda is 1.1"),
        ({"learning_rate": 0.0}, "learning_rate is 0"),
        ({"huber_delta": -1.0}, "huber_delta is -1.0"),
        ({"max_grad_norm": 0.0}, "max_grad_norm is 0.0"),
    ],
)
def test_a_setting_that_makes_no_sense_is_an_error_that_names_it(changes, words):
    with pytest.raises(ValueError, match=words):
        pqn.PQNConfig(**{"env": TWO_STATES, "num_envs": 8, "num_steps": 8, **changes})


def test_an_action_of_several_parts_is_refused():
    with pytest.raises(SpaceError, match="3 parts"):
        next(pqn.train(pqn.PQNConfig(env="rlmask-tests/Target-v0")))


def test_a_gradient_that_is_not_finite_ends_training():
    run = pqn.PQNConfig(env=TWO_STATES, learning_rate=1e38, layer_norm=False, max_grad_norm=1e38)
    with pytest.raises(FloatingPointError, match="gradient is not finite"):
        list(pqn.train(run))


@pytest.mark.slow
@pytest.mark.parametrize("env", ["rlmask-tests/Corridor-v0", "rlmask-tests/Grid-v0"])
def test_it_learns_the_shortest_way(env):
    run = pqn.PQNConfig(
        env=env,
        num_envs=16,
        num_steps=8,
        num_minibatches=2,
        total_steps=32_768,
        gamma=0.9,
        learning_rate=3e-3,
        epsilon_end=0.3,
        hidden_sizes=(32,),
    )
    *_, update = pqn.train(run)
    assert mean_length(update.policy, env) == mean_length(shortest_way, env)
