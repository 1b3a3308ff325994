import re

import pytest
import torch
from envs_for_tests import env_id

from rlmask import ppo
from rlmask.config import build
from rlmask.optim import FlatAdam
from rlmask.set_network import ROWS, SetActorCritic
from rlmask.torso import NetworkError
from rlmask.transfer import initial_weights
from rlmask.types import ActionSpec, ObsSpec
from rlmask.vector import Game, SpaceError

FEATURES, COMMON = 3, 2


def make(num_entities, seed=0):
    obs = ObsSpec(kind="vector", shape=(num_entities * FEATURES + COMMON,), dtype="float32")
    action = ActionSpec(nvec=(num_entities,))
    generator = torch.Generator().manual_seed(seed)
    network = SetActorCritic(obs, action, width=8, num_blocks=2, num_heads=2, generator=generator)
    return network.double()


def draw(rows, num_entities, seed=0):
    """Return entities [rows, E, F] of which the first number is 0 or 1, and what is common."""
    generator = torch.Generator().manual_seed(seed)
    entities = torch.randn(rows, num_entities, FEATURES, generator=generator).double()
    there = torch.rand(rows, num_entities, generator=generator) < 0.6
    there[:, 0] = True
    entities[..., 0] = there.double()
    return entities, torch.randn(rows, COMMON, generator=generator).double()


def flat(entities, common):
    return torch.cat((entities.flatten(1), common), 1)


def test_the_order_of_the_entities_makes_no_difference():
    network, (entities, common) = make(6), draw(5, 6)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    logits, value = network(flat(entities, common))
    moved = network(flat(entities[:, order], common))
    torch.testing.assert_close((logits[:, order], value), moved)


def test_entities_see_each_other():
    network, (entities, common) = make(4), draw(1, 4)
    entities[..., 0] = 1
    before, value = network(flat(entities, common))
    entities[0, 3, 1] += 1
    after, value_after = network(flat(entities, common))
    assert (before != after).all() and value != value_after


@pytest.mark.parametrize("content", [1e30, float("inf"), float("nan")])
def test_what_is_not_there_is_not_seen(content):
    network, (entities, common) = make(6), draw(5, 6)
    FlatAdam(network)
    gone = entities[..., 0] == 0
    assert gone.any()
    outputs = []
    for fill in (0.0, content):
        filled = entities.clone()
        filled[..., 1:][gone] = fill
        with torch.inference_mode():
            logits, value, pullback = network.vjp(flat(filled, common))
            pullback(torch.ones_like(logits), torch.ones_like(value))
        gradient = torch.cat([p.grad.flatten() for p in network.parameters()])
        outputs.append((logits, value, gradient.clone()))
        assert (logits[gone] == 0).all() and (logits[~gone] != 0).all()
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))


def test_more_padding_and_more_rows_make_no_difference():
    small, large = make(4), make(9)
    large.load_state_dict(small.state_dict())  # weights of any size
    entities, common = draw(ROWS + 40, 4)
    logits, value = small(flat(entities, common))
    padded = torch.cat((entities, torch.zeros(ROWS + 40, 5, FEATURES).double()), 1)
    more_logits, more_value = large(flat(padded, common))
    torch.testing.assert_close((logits, value), (more_logits[:, :4], more_value))
    alone = small(flat(entities[7:8], common[7:8]))
    torch.testing.assert_close((logits[7:8], value[7:8]), alone)


def test_an_empty_set_has_a_value_of_0():
    network, (entities, common) = make(3), draw(2, 3)
    entities[0, :, 0] = 0
    logits, value = network(flat(entities, common))
    assert (logits[0] == 0).all() and value[0] == 0 and value[1] != 0
    assert logits.isfinite().all()


def test_the_pullback_is_the_gradient():
    network, (entities, common) = make(5), draw(ROWS + 3, 5)
    FlatAdam(network)
    weight_logits = torch.randn(ROWS + 3, 5).double()
    weight_value = torch.randn(ROWS + 3).double()
    with torch.inference_mode():
        _, _, pullback = network.vjp(flat(entities, common))
        pullback(weight_logits, weight_value)
    logits, value = network(flat(entities, common))
    loss = (logits * weight_logits).sum() + (value * weight_value).sum()
    parameters = list(network.parameters())
    for parameter, expected in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        torch.testing.assert_close(parameter.grad, expected)
        assert expected.any()


def test_all_entities_need_a_row():
    obs = ObsSpec(kind="vector", shape=(4,), dtype="float32")
    settings = {"width": 8, "num_blocks": 1, "num_heads": 2, "generator": torch.Generator()}
    complaint = r"observations of vector \(4,\) are no rows .* 5 actions; set it to (\w+)"
    with pytest.raises(NetworkError, match=complaint) as error:
        SetActorCritic(obs, ActionSpec(nvec=(5,)), **settings)
    remedy = re.search(complaint, str(error.value))
    build(ppo.PPOConfig, {"env": "x", "encoder": remedy[1]}, "the remedy")
    with pytest.raises(NetworkError, match=r"each of 2\+2 actions"):
        SetActorCritic(obs, ActionSpec(nvec=(2, 2)), **settings)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"hidden_sizes": (8, 16)}, "all blocks are of one width"),
        ({"hidden_sizes": (9,)}, "a multiple of num_heads = 4"),
        ({"num_heads": 0}, "a multiple of num_heads = 0"),
        ({"normalize_obs": True}, "has no use for normalize_obs"),
        ({"popart": True}, "has no use for popart"),
        ({"learned_mask": True}, "encoder: set .* learned_mask .* choose one"),
    ],
)
def test_settings_that_do_not_fit_a_set(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        ppo.PPOConfig(env="x", encoder="set", **{"hidden_sizes": (8,), **changes})


@pytest.mark.parametrize(
    ("ids", "num_actions"), [((1, 0, 2, 3, 4, 5), None), ((0, 2), None), ((0, 1), 3)]
)
def test_row_i_is_of_action_i(ids, num_actions):
    games = (Game(env_id=env_id("Pick"), action_ids=ids),)
    with pytest.raises(ValueError, match="row i of the observation is of action i"):
        ppo.PPOConfig(games=games, encoder="set", num_actions=num_actions)


def test_as_many_actions_as_the_game_has():
    games = (Game(env_id=env_id("Pick"), action_ids=(0, 1, 2, 3, 4, 5)),)
    ppo.PPOConfig(games=games, encoder="set", num_actions=6)
    with pytest.raises(SpaceError, match="has 6 actions, num_actions is 7"):
        next(ppo.train(config(num_actions=7)))


def test_valid_actions_are_of_entities_that_are_there():
    # 311 numbers of 10 jobs are taken as rows of 31; those of JobShop are of 9, and more follows
    updates = ppo.train(config(env="rlmask_envs:rlmask/JobShop-v0", vectorization="native"))
    complaint = r"rlmask/JobShop-v0: action \d is valid, but .* set encoder to layers"
    with pytest.raises(NetworkError, match=complaint):
        next(updates)


def test_the_first_number_of_its_own_row_says_that_an_entity_is_there():
    network, (entities, common) = make(6), draw(5, 6)
    obs, there = flat(entities, common), entities[..., 0] > 0
    network.check_mask("game", obs, there)
    network.check_mask("game", obs, torch.zeros_like(there))
    row, action = (~there).nonzero()[0].tolist()
    there[row, action] = True
    with pytest.raises(NetworkError, match=f"game: action {action} .* number {action * FEATURES}"):
        network.check_mask("game", obs, there)


def config(**changes):
    return ppo.PPOConfig(
        **{"env": env_id("Pick"), **changes},
        encoder="set",
        hidden_sizes=(16,),
        num_envs=16,
        num_steps=16,
        num_minibatches=2,
        learning_rate=1e-2,
        entropy_coef=0.0,
        device="cpu",
    )


@pytest.mark.slow
def test_ppo_learns_to_pick_the_largest():
    *_, last = ppo.train(config(total_steps=16 * 16 * 40))
    # uniformly among k entities, k uniform from 2 to 6: (1/2 + 1/3 + 1/4 + 1/5 + 1/6) / 5 = 0.29
    assert last.metrics["rollout/episode_return"] > 0.9


def test_resume_is_exact():
    whole = list(ppo.train(config(total_steps=16 * 16 * 4)))[-1].capture()
    begun = ppo.train(config(total_steps=16 * 16 * 4))
    next(begun)
    state = next(begun).capture()
    *_, resumed = ppo.train(config(total_steps=16 * 16 * 4), resume=state)
    again = resumed.capture()
    for name, weight in whole["network"].items():
        assert torch.equal(weight, again["network"][name]), name


def test_it_begins_with_the_weights_of_another_size():
    small, large = make(4, seed=1), make(9, seed=2)
    weights = initial_weights(small.state_dict(), large.state_dict(), parts="trunk_and_head")
    for name, weight in small.state_dict().items():
        is_taken = not name.startswith("critic_head")
        assert torch.equal(weights[name], weight) == (is_taken or not weight.any()), name
