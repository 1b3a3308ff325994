import copy
import math

import pytest
import torch

from rlmask.layers import FirstLayer, GameLinear
from rlmask.networks import ActorCritic, QNetwork
from rlmask.normalize import PopArt, RewardScaler, update_moments
from rlmask.optim import FlatAdam
from rlmask.policies import actor_policy, q_policy
from rlmask.torso import ConvTorso, NetworkError, Torso, tanh
from rlmask.types import ActionSpec, ObsSpec

DISCRETE = ObsSpec(kind="discrete", shape=(), dtype="int64", n=7)
VECTOR = ObsSpec(kind="vector", shape=(5,), dtype="float32")
BOARD = ObsSpec(kind="image", shape=(4, 5, 2), dtype="uint8")
SCREEN = ObsSpec(kind="image", shape=(84, 84, 4), dtype="uint8")


def make(obs, nvec=(3,), seed=0, **changes):
    settings = {
        "hidden_sizes": (8, 6),
        "activation": "tanh",
        "shared_torso": False,
        "normalize_obs": False,
        **changes,
    }
    generator = torch.Generator().manual_seed(seed)
    return ActorCritic(obs, ActionSpec(nvec=nvec), **settings, generator=generator)


def draw(obs, rows):
    if obs.kind == "discrete":
        return torch.randint(obs.n, (rows,))
    if obs.dtype == "uint8":
        return torch.randint(256, (rows, *obs.shape), dtype=torch.uint8)
    return torch.randn(rows, *obs.shape)


@pytest.mark.parametrize("obs", [DISCRETE, VECTOR, BOARD, SCREEN])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_shapes_and_that_rows_do_not_mix(obs, shared, activation):
    network = make(obs, nvec=(2, 3), shared_torso=shared, activation=activation)
    batch = draw(obs, 3)
    logits, value = network(batch)
    assert logits.shape == (3, 5) and value.shape == (3,)
    alone = network(batch[1:2])
    torch.testing.assert_close((logits[1:2], value[1:2]), alone)


@pytest.mark.parametrize("obs", [DISCRETE, VECTOR, BOARD])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("hidden_sizes", [(8,), (8, 6), (5, 7, 6)])
def test_the_gradient_is_that_of_autograd(obs, shared, activation, hidden_sizes):
    network = make(
        obs,
        shared_torso=shared,
        activation=activation,
        hidden_sizes=hidden_sizes,
        normalize_obs=True,
    )
    batch = draw(obs, 9)  # with equal observations among the discrete
    grad_logits, grad_value = torch.randn(9, 3), torch.randn(9)
    logits, value = network(batch)
    parameters = dict(network.named_parameters())
    gradients = torch.autograd.grad(
        (logits, value), list(parameters.values()), (grad_logits, grad_value)
    )
    FlatAdam(network).gradient.fill_(math.nan)  # all of it is written
    with torch.no_grad():
        same_logits, same_value, pullback = network.vjp(batch)
        pullback(grad_logits, grad_value)
    torch.testing.assert_close((same_logits, same_value), (logits.detach(), value.detach()))
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, msg=lambda m, n=name: f"{n}: {m}")


def test_a_gradient_that_has_no_place_is_an_error():
    network = make(VECTOR)
    with torch.no_grad(), pytest.raises(RuntimeError, match="make a FlatAdam"):
        network.vjp(draw(VECTOR, 2))[2](torch.ones(2, 3), torch.ones(2))


def test_a_discrete_observation_is_its_one_hot_vector():
    generator = torch.Generator().manual_seed(0)
    layer = FirstLayer(2, DISCRETE, 4, generator)
    as_vector = FirstLayer(2, ObsSpec(kind="vector", shape=(7,), dtype="float32"), 4, generator)
    as_vector.load_state_dict(layer.state_dict())
    obs = torch.tensor([3, 0, 6, 3])
    one_hot = torch.nn.functional.one_hot(obs, 7).float()
    torch.testing.assert_close(layer(obs), as_vector(one_hot))


def test_separate_networks_share_nothing_and_a_shared_torso_does():
    for shared in (False, True):
        network = make(VECTOR, shared_torso=shared)
        _, value = network(draw(VECTOR, 4))
        value.sum().backward()
        first = network.torso.layers[0].weight.grad  # [inputs, G*H], the policy's half first
        assert bool(first[:, :8].any()) == shared
        assert network.actor_head.weight.grad is None


def test_hidden_layers_are_orthogonal_with_gain_sqrt_2():
    network = make(VECTOR, hidden_sizes=(5, 5))
    for weight in network.torso.layers[1].weight:
        torch.testing.assert_close(weight @ weight.T, 2 * torch.eye(5), atol=1e-5, rtol=0)


def test_weights_come_from_the_generator_alone():
    first = make(SCREEN, seed=1).state_dict()
    torch.manual_seed(123)
    again, other = make(SCREEN, seed=1).state_dict(), make(SCREEN, seed=2).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["actor_head.weight"], other["actor_head.weight"])


def test_tanh_is_tanh_whichever_way_it_is_computed():
    x = torch.cat([torch.linspace(-20, 20, 9000), torch.logspace(-30, 30, 9000)])
    x = torch.cat([x, -x, torch.tensor([0.0, math.inf, -math.inf])])
    assert x.numel() > 2**14  # by the sigmoid
    torch.testing.assert_close(tanh(x), torch.tanh(x), rtol=0, atol=2e-7)
    pieces = torch.cat([tanh(piece) for piece in x.split(1000)])
    torch.testing.assert_close(pieces, torch.tanh(x), rtol=0, atol=0)
    assert tanh(torch.full((20_000,), math.nan)).isnan().all()


def test_uint8_images_are_scaled_and_layouts_agree():
    torso = ConvTorso((4, 5, 2), torch.Generator().manual_seed(0))
    image = draw(BOARD, 3)
    torch.testing.assert_close(torso(image), torso(image.float() / 255))
    # brute force at one place: filter 0 on the top left 3x3 corner
    conv = torso.layers[0]
    patch = image[0, :3, :3].float().permute(2, 0, 1) / 255
    expected = torch.relu((conv.weight[0] * patch).sum() + conv.bias[0])
    torch.testing.assert_close(torso(image)[0, 0], expected)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_board_may_have_several_convolutions(groups):
    obs = ObsSpec(kind="image", shape=(7, 9, 2), dtype="uint8")
    generator = torch.Generator().manual_seed(0)
    torso = Torso(groups, obs, (8,), "relu", generator, conv_filters=(3, 5, 4))
    image = draw(obs, 6)
    for conv, own in zip(torso.convs, torso._convolved(image), strict=True):
        x = image.float().permute(0, 3, 1, 2) / 255
        for layer in conv.layers[::2]:
            assert layer.kernel_size == (3, 3)
            x = torch.relu(torch.nn.functional.conv2d(x, layer.weight, layer.bias))
        assert x.shape == (6, 4, 1, 3)  # 7 and 9, less two a layer
        torch.testing.assert_close(own, x.flatten(1))
        assert conv.out_features == 12


def test_convolutions_that_do_not_fit_are_an_error():
    image = ObsSpec(kind="image", shape=(6, 7, 2), dtype="uint8")
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(NetworkError, match=r"3 layers of 3x3.* 6x7.* of 6 can have 2"):
        Torso(1, image, (8,), "relu", generator, conv_filters=(4, 4, 4))
    Torso(1, image, (8,), "relu", generator, conv_filters=(4, 4))
    with pytest.raises(NetworkError, match="no images"):
        Torso(1, VECTOR, (8,), "relu", generator, conv_filters=(4,))


def test_policies_take_valid_actions_only():
    network = make(VECTOR, nvec=(4, 3))
    generator = torch.Generator().manual_seed(0)
    obs = draw(VECTOR, 500)
    mask = torch.rand(500, 7) < 0.4
    mask[:, 2] = mask[:, 5] = True
    for greedy in (True, False):
        action = actor_policy(network, greedy=greedy, generator=generator)(obs, mask)
        assert action.shape == (500, 2)
        chosen = torch.stack([action[:, 0], 4 + action[:, 1]], 1)
        assert mask.gather(1, chosen).all()
    logits, _ = network(obs)
    best = torch.where(mask[:, :4], logits[:, :4], -math.inf).argmax(1)
    assert torch.equal(actor_policy(network, greedy=True)(obs, mask)[:, 0], best)


def test_a_policy_takes_float64_and_refuses_another_kind():
    policy = actor_policy(make(VECTOR), greedy=True)
    obs, mask = draw(VECTOR, 4), torch.ones(4, 3, dtype=torch.bool)
    assert torch.equal(policy(obs.double(), mask), policy(obs, mask))
    with pytest.raises(TypeError, match=r"observations are torch.int64; this policy knows"):
        policy(obs.long(), mask)


@pytest.mark.parametrize("obs", [DISCRETE, VECTOR, BOARD])
def test_an_empty_batch_is_fine(obs):
    logits, value = make(obs)(draw(obs, 0))
    assert logits.shape == (0, 3) and value.shape == (0,)


def test_obs_statistics_are_those_of_all_that_was_seen():
    network = make(VECTOR, normalize_obs=True)
    seen = [3 + 2 * torch.randn(50, 5) for _ in range(3)]
    for batch in seen:
        network.obs_scaler.observe(batch)
    everything = torch.cat(seen).double()
    # the prior counts for 1e-4 of one observation
    torch.testing.assert_close(network.obs_scaler.mean, everything.mean(0), rtol=1e-5, atol=0)
    var = everything.var(0, correction=0)
    torch.testing.assert_close(network.obs_scaler.var, var, rtol=1e-4, atol=0)
    plain = make(VECTOR)
    plain.load_state_dict(network.state_dict(), strict=False)
    scaled = ((seen[0] - network.obs_scaler.mean) / (network.obs_scaler.var + 1e-8).sqrt()).float()
    torch.testing.assert_close(network(seen[0]), plain(scaled))


def test_moments_of_batches_are_the_moments_of_the_whole():
    data = torch.randn(100, 3, dtype=torch.float64) * 5 + 2
    mean, var, count = data[:1].mean(0), torch.zeros(3).double(), torch.tensor(1.0).double()
    for batch in (data[1:20], data[20:21], data[21:]):
        mean, var, count = update_moments(mean, var, count, batch)
    torch.testing.assert_close((mean, var), (data.mean(0), data.var(0, correction=0)))
    assert count == 100


def test_rewards_are_scaled_by_the_deviation_of_the_discounted_return():
    reward = torch.randn(40, 3)
    ended = torch.rand(40, 3) < 0.1
    scaler = RewardScaler(3, gamma=0.9)
    torch.testing.assert_close(scaler.scale(reward), reward, rtol=1e-6, atol=0)
    scaler.observe(reward[:25], ended[:25])
    scaler.observe(reward[25:], ended[25:])
    returns, running = [], [0.0] * 3
    for t in range(40):
        for env in range(3):
            running[env] = 0.9 * running[env] + float(reward[t, env])
            returns.append(running[env])
            running[env] *= not ended[t, env]
    mean = sum(returns) / 120
    deviation = math.sqrt(sum((r - mean) ** 2 for r in returns) / 120)
    torch.testing.assert_close(scaler.scale(reward), reward / deviation, rtol=1e-4, atol=0)
    twin = RewardScaler(3, gamma=0.9)
    twin.restore(scaler.capture())
    assert torch.equal(twin.scale(reward), scaler.scale(reward))


@pytest.mark.parametrize("games", [1, 2])
def test_rewards_are_scaled_where_they_are(games):
    """The statistics stay on the CPU; `meta` stands for any other device."""
    scaled = RewardScaler(6, 0.9, games).scale(torch.ones(4, 6, device="meta"))
    assert (scaled.device.type, scaled.dtype, scaled.shape) == ("meta", torch.float32, (4, 6))


def test_each_game_has_a_scale_of_its_own():
    generator = torch.Generator().manual_seed(1)
    reward = torch.rand(40, 6, generator=generator) * torch.tensor([1.0, 100.0, 0.01]).repeat(2)
    ended = torch.rand(40, 6, generator=generator) < 0.1
    joint = RewardScaler(6, 0.9, num_games=3)
    joint.observe(reward, ended)
    for game in range(3):
        own = RewardScaler(2, 0.9)
        own.observe(reward[:, game::3], ended[:, game::3])
        expected = own.scale(reward[:, game::3])
        torch.testing.assert_close(joint.scale(reward)[:, game::3], expected)
    assert 0.1 < joint.scale(reward).std() < 1


# --- Q-networks


def make_q(obs, **changes):
    settings = {
        "hidden_sizes": (8, 6),
        "activation": "relu",
        "dueling": False,
        "layer_norm": False,
        "num_outputs": 1,
        "support": None,
        **changes,
    }
    generator = torch.Generator().manual_seed(0)
    return QNetwork(obs, ActionSpec(nvec=(3,)), **settings, generator=generator)


@pytest.mark.parametrize("obs", [DISCRETE, VECTOR, BOARD])
@pytest.mark.parametrize("hidden_sizes", [(8,), (8, 6), (5, 7, 6)])
@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("num_outputs", [1, 4])
def test_the_gradient_of_a_q_network_is_that_of_autograd(
    obs, hidden_sizes, dueling, layer_norm, num_outputs
):
    network = make_q(
        obs,
        hidden_sizes=hidden_sizes,
        dueling=dueling,
        layer_norm=layer_norm,
        num_outputs=num_outputs,
    )
    with torch.no_grad():
        for parameter in network.parameters():  # scales of 1 and shifts of 0 would hide a mistake
            parameter.add_(0.3 * torch.randn(parameter.shape))
    batch, grad = draw(obs, 5), torch.randn(5, 3, num_outputs)
    mask = torch.tensor([[True, True, False]] * 3 + [[False, True, False]] * 2)
    outputs = network(batch, mask)
    expected = torch.autograd.grad(outputs, list(network.parameters()), grad)
    FlatAdam(network)
    with torch.inference_mode():
        same, pullback = network.vjp(batch, mask)
        pullback(grad)
    torch.testing.assert_close(same, outputs.detach())
    for parameter, gradient in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5)


def test_the_expectation_of_each_kind_of_output():
    mask, obs = torch.ones(2, 3, dtype=torch.bool), torch.randn(2, 5)
    for support, num in ((None, 1), (None, 4), (torch.tensor([-1.0, 0.0, 5.0]), 3)):
        network = make_q(VECTOR, num_outputs=num, support=support)
        outputs = network(obs, mask)
        assert outputs.shape == (2, 3, num)
        if support is None:
            expected = outputs.mean(-1)
        else:
            expected = (outputs.exp() / outputs.exp().sum(-1, keepdim=True) * support).sum(-1)
        torch.testing.assert_close(network.values(obs, mask), expected)


@pytest.mark.parametrize("epsilon", [0.0, 0.5])
def test_a_q_policy_takes_valid_actions_only(epsilon):
    network = make_q(VECTOR)
    network.head.bias.data[1] = 1e6
    mask = torch.tensor([[True, False, True]]).expand(2000, -1)
    policy = q_policy(network, epsilon=epsilon, generator=torch.Generator().manual_seed(0))
    obs = torch.randn(1, 5).expand(2000, -1)
    action = policy(obs, mask)
    assert mask.gather(1, action[:, None]).all()
    share = action.unique(return_counts=True)[1].max().item() / 2000
    assert share == pytest.approx(1 - epsilon / 2, abs=0.05)
    with pytest.raises(TypeError, match="observations are"):
        policy(torch.zeros(1, 5, dtype=torch.int64), mask[:1])


def test_parameters_are_found_quickly_and_are_still_those_of_the_module():
    network = make_q(VECTOR)
    for own in (network, copy.deepcopy(network), copy.deepcopy(network).double()):
        assert "weight" in vars(own.head), "nn.Module would look for it last"
        for name, parameter in own.named_parameters():
            *path, last = name.split(".")
            assert vars(own.get_submodule(".".join(path)))[last] is parameter
    network.head.weight = torch.nn.Parameter(torch.zeros(3, 6))
    assert dict(network.named_parameters())["head.weight"] is network.head.weight


# --- PopArt


def test_popart_follows_the_targets_of_each_game_and_keeps_what_is_said():
    generator = torch.Generator().manual_seed(0)
    popart, layer = PopArt(2, rate=0.1), GameLinear(2, 4, 1, 1.0, generator)
    x = torch.randn(6, 4, generator=generator)

    def said():
        return popart.raw(layer(x).view(3, 2))

    mean, second = torch.zeros(2), torch.ones(2)
    for update in range(1, 15):
        before = said()
        target = (
            torch.randn(5, 4, generator=generator) * torch.tensor([3.0, 0.1, 3.0, 0.1]) + update
        )
        popart.observe(target, layer.weight, layer.bias)
        torch.testing.assert_close(said(), before, rtol=1e-5, atol=1e-5)
        rate = max(0.1, 1 / update)
        of_game = target.view(-1, 2)
        mean = mean + rate * (of_game.mean(0) - mean)
        second = second + rate * (of_game.square().mean(0) - second)
    torch.testing.assert_close(popart.mean.float(), mean)
    torch.testing.assert_close(
        popart.deviation.float(), (second - mean**2).sqrt(), rtol=1e-4, atol=0
    )
    torch.testing.assert_close(popart.scaled(popart.raw(x[:, :2])), x[:, :2], rtol=1e-4, atol=1e-4)
    other = PopArt(2, rate=0.1)
    other.restore(popart.capture())
    assert torch.equal(other.raw(x[:, :2]), popart.raw(x[:, :2]))


def test_popart_of_one_game_rescales_a_linear_layer():
    popart, layer = PopArt(1), torch.nn.Linear(3, 1)
    x = torch.randn(4, 3)
    before = popart.raw(layer(x).T)
    popart.observe(torch.tensor([[5.0, 7.0]]), layer.weight, layer.bias)
    torch.testing.assert_close(popart.raw(layer(x).T), before)
    assert popart.mean.tolist() == [6.0]  # the first rollout counts alone
    assert popart.deviation.tolist() == [pytest.approx(1.0)]
