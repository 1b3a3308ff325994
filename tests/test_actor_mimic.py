"""Networks with parts of their own for each game: layers, torso, heads, the Actor-Mimic network."""

import copy

import pytest
import torch

from rlmask.actor_mimic import ActorMimicNetwork
from rlmask.layers import GameLinear, rows_of_games
from rlmask.networks import ActorCritic, QNetwork
from rlmask.optim import FlatAdam
from rlmask.policies import actor_policy
from rlmask.torso import Torso
from rlmask.turns import by_game, by_row
from rlmask.types import ActionSpec, ObsSpec

NUM_GAMES, ROWS, ACTIONS = 3, 12, 5
IMAGE = ObsSpec(kind="image", shape=(6, 5, 2), dtype="uint8")
VECTOR = ObsSpec(kind="vector", shape=(4,), dtype="float32")
DISCRETE = ObsSpec(kind="discrete", shape=(), dtype="int64", n=7)
SPECS = [IMAGE, VECTOR, DISCRETE]
IDS = ["image", "vector", "discrete"]
IN_TURN = torch.arange(ROWS) % NUM_GAMES


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(spec, rows=ROWS, seed=0):
    if spec.kind == "discrete":
        return torch.randint(spec.n, (rows,), generator=generator(seed))
    if spec.kind == "image":
        shape = (rows, *spec.shape)
        return torch.randint(256, shape, generator=generator(seed)).to(torch.uint8)
    return torch.randn(rows, *spec.shape, generator=generator(seed))


def make(spec=VECTOR, **changes):
    settings = {
        "hidden_sizes": (8, 6),
        "activation": "tanh",
        "game_stems": False,
        "game_heads": False,
        "value_head": True,
        "normalize_obs": False,
        "generator": generator(),
    }
    return ActorMimicNetwork(spec, ActionSpec(nvec=(ACTIONS,)), NUM_GAMES, **settings | changes)


def test_each_row_goes_through_the_layer_of_its_game():
    layer = GameLinear(NUM_GAMES, 4, 2, 1.0, generator())
    layer.bias.data.normal_(generator=generator(1))
    x = draw(VECTOR)
    expected = torch.stack([x[i] @ layer.weight[i % 3] + layer.bias[i % 3, 0] for i in range(ROWS)])
    torch.testing.assert_close(layer(x), expected)
    order = torch.randperm(ROWS, generator=generator(2))[:7]  # not in turn, not of equal shares
    torch.testing.assert_close(layer(x[order], IN_TURN[order]), expected[order])
    with pytest.raises(ValueError, match="equal share"):
        layer(x[:7])


def test_rows_by_game_and_back():
    x = torch.arange(24.0).view(ROWS, 2)
    assert by_game(x, NUM_GAMES)[1].tolist() == x[1::3].tolist()
    assert torch.equal(by_row(by_game(x, NUM_GAMES)), x)
    layers = [lambda rows, g=g: rows * 0 + g for g in range(NUM_GAMES)]
    assert rows_of_games(layers, x)[:, 0].tolist() == IN_TURN.tolist()
    shuffled = torch.tensor([2, 0, 0, 1, 2])
    assert rows_of_games(layers, x[:5], shuffled)[:, 0].tolist() == shuffled.tolist()


@pytest.mark.parametrize("spec", SPECS, ids=IDS)
@pytest.mark.parametrize("stems", [False, True])
@pytest.mark.parametrize("heads", [False, True])
def test_rows_in_turn_and_rows_of_said_games_are_the_same(spec, stems, heads):
    network = make(spec, game_stems=stems, game_heads=heads)
    obs, mask = draw(spec), torch.ones(ROWS, ACTIONS, dtype=torch.bool)
    logits, value = network(obs)
    order = torch.randperm(ROWS, generator=generator(3))[:8]
    some_logits, some_value = network(obs[order], IN_TURN[order])
    torch.testing.assert_close(some_logits, logits[order])
    torch.testing.assert_close(some_value, value[order])
    scores, features = network.scores(obs, mask)
    torch.testing.assert_close(scores, logits)
    assert features.shape == (ROWS, 6)


@pytest.mark.parametrize("spec", SPECS, ids=IDS)
@pytest.mark.parametrize("stems", [False, True])
@pytest.mark.parametrize("heads", [False, True])
def test_the_gradient_is_that_of_autograd(spec, stems, heads):
    network = make(spec, game_stems=stems, game_heads=heads)
    other = copy.deepcopy(network)
    FlatAdam(network)
    obs = draw(spec)
    by_logits = torch.randn(ROWS, ACTIONS, generator=generator(4))
    by_value = torch.randn(ROWS, generator=generator(5))
    by_features = torch.randn(ROWS, 6, generator=generator(6))
    with torch.inference_mode():
        logits, value, features, pullback = network.vjp_features(obs)
        pullback(by_logits, by_value, by_features)
    expected_logits, expected_value = other(obs)
    torch.testing.assert_close(logits, expected_logits)
    torch.testing.assert_close(value, expected_value)
    hidden = other.torso(obs)[0]
    torch.testing.assert_close(features, hidden)
    loss = (expected_logits * by_logits).sum() + (expected_value * by_value).sum()
    (loss + (hidden * by_features).sum()).backward()
    for (name, own), theirs in zip(network.named_parameters(), other.parameters(), strict=True):
        assert own.grad is not None, name
        torch.testing.assert_close(own.grad, theirs.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spec", [IMAGE, VECTOR], ids=IDS[:2])
def test_a_stem_learns_from_its_own_game_only(spec):
    torso = Torso(1, spec, (8,), "relu", generator(), num_stems=NUM_GAMES)
    features = torso(draw(spec))[0]
    features[1::NUM_GAMES].sum().backward()
    first = torso.convs[0].stems if spec.kind == "image" else None
    if first is not None:
        of_games = [conv.weight.grad for conv in first]
        assert [g is None or bool((g == 0).all()) for g in of_games] == [True, False, True]
    else:
        grad = torso.layers[0].weight.grad
        assert [bool((g == 0).all()) for g in grad] == [True, False, True]


def test_without_a_value_head_the_value_is_0():
    network = make(value_head=False)
    assert (network(draw(VECTOR))[1] == 0).all()
    assert not [name for name, _ in network.named_parameters() if "critic" in name]


def test_feature_maps_are_linear_and_one_a_game():
    network = make(feature_sizes=(7, 2, 4))
    assert [tuple(layer.weight.shape) for layer in network.feature_maps] == [(7, 6), (2, 6), (4, 6)]


def test_torso_and_union_head_fit_into_the_other_networks():
    network = make(IMAGE, value_head=False)
    critic = ActorCritic(
        IMAGE,
        ActionSpec(nvec=(ACTIONS,)),
        hidden_sizes=(8, 6),
        activation="tanh",
        shared_torso=True,
        normalize_obs=False,
        generator=generator(9),
    )
    left = critic.load_state_dict(network.state_dict(), strict=False)
    assert set(left.missing_keys) == {"critic_head.weight", "critic_head.bias"}
    assert not left.unexpected_keys
    obs = draw(IMAGE)
    torch.testing.assert_close(critic(obs)[0], network(obs)[0])


@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("num_outputs", [1, 4])
def test_a_q_network_may_have_parts_a_game(dueling, num_outputs):
    network = QNetwork(
        IMAGE,
        ActionSpec(nvec=(ACTIONS,)),
        hidden_sizes=(8,),
        activation="relu",
        dueling=dueling,
        layer_norm=False,
        num_outputs=num_outputs,
        support=None,
        num_games=NUM_GAMES,
        game_stems=True,
        game_heads=True,
        generator=generator(),
    )
    obs = draw(IMAGE)
    mask = torch.rand(ROWS, ACTIONS, generator=generator(1)) < 0.6
    mask[:, 0] = True
    values = network.values(obs, mask)
    order = torch.randperm(ROWS, generator=generator(3))[:8]
    some, _ = network.scores(obs[order], mask[order], IN_TURN[order])
    torch.testing.assert_close(some, values[order])
    other = copy.deepcopy(network)
    FlatAdam(network)
    grad = torch.randn(ROWS, ACTIONS, num_outputs, generator=generator(2))
    with torch.inference_mode():
        _, pullback = network.vjp(obs, mask)
        pullback(grad)
    (other(obs, mask) * grad).sum().backward()
    for own, theirs in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(own.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_a_policy_wants_the_rows_of_all_games():
    policy = actor_policy(make(game_heads=True), greedy=True)
    mask = torch.ones(ROWS, ACTIONS, dtype=torch.bool)
    assert policy(draw(VECTOR), mask).shape == (ROWS,)
    with pytest.raises(ValueError, match="all games in turn"):
        policy(draw(VECTOR, 4), mask[:4])
