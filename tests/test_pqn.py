import envs_for_tests
import pytest
import torch

from rlmask import networks, ops, pqn

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
