import envs_for_tests
import pytest
import torch

from rlmask import dqn, networks, ops

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


def test_a_target_without_the_mask_is_noticed(monkeypatch):
    monkeypatch.setattr(dqn, "bootstrap_mask", lambda mask, discount: torch.ones_like(mask))
    _, error = learned(monkeypatch, total_steps=1024, double=False)
    assert error > 0.1


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
