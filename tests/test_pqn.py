import envs_for_tests
import pytest
import torch
from test_dqn import mean_length, shortest_way

from rlmask import networks, ops, pqn
from rlmask.vector import SpaceError

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
