import copy
import dataclasses
import itertools
from contextlib import closing
from pathlib import Path

import envs_for_tests  # noqa: F401 (registers its envs)
import pytest
import torch

from rlmask import ops, ppo
from rlmask.evaluate import evaluate, summarize
from rlmask.optim import FlatAdam
from rlmask.turns import shuffled_in_turn
from rlmask.types import Rollout
from rlmask.vector import Game, make_vector

CORRIDOR = "rlmask-tests/Corridor-v0"
SMALL = {"num_envs": 4, "num_steps": 16, "num_minibatches": 2, "num_epochs": 2}


def config(env=CORRIDOR, **changes):
    return ppo.PPOConfig(**{"env": env, "total_steps": 256, **SMALL, **changes})


def last(updates):
    *_, update = updates
    return update


def greedy_return(update, **settings):
    """Evaluate while the trainer is paused: its envs are not touched."""
    envs = make_vector(seed=1, num_envs=8, stream=1, **settings)
    try:
        return summarize(evaluate(update.policy, envs, 64)).mean_return
    finally:
        envs.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env": ""}, "either env or games"),
        ({"games": (Game(env_id=CORRIDOR),)}, "either env or games"),
        ({"num_envs": 0}, "num_envs is 0"),
        ({"num_minibatches": 3}, "64 does not divide into num_minibatches = 3"),
        ({"total_steps": 0}, "total_steps is 0"),
        ({"gamma": 1.5}, "gamma is 1.5"),
        ({"learning_rate": 0.0}, "learning_rate is 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"hidden_sizes": ()}, "hidden_sizes"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_settings_that_contradict_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_every_field_says_what_it_is():
    source = Path(ppo.__file__).read_text().split("class PPOConfig")[1]
    for field in dataclasses.fields(ppo.PPOConfig):
        after = source.split(f"\n    {field.name}: ")[1]
        assert after.split("\n")[1].strip().startswith('"""')


def collected(env="rlmask-tests/Counter-v0", num_steps=12, **kwargs):
    settings = config(env, num_envs=2, num_steps=num_steps, env_kwargs=kwargs)
    generator = torch.Generator().manual_seed(0)
    envs = make_vector(settings.all_games, 2, seed=0)
    network = ppo.make_network(settings, envs.spec.obs, envs.spec.action, generator)
    obs, mask = envs.reset()
    device = torch.device("cpu")
    return network, *ppo.collect(envs, network, obs, mask, num_steps, generator, device)


def test_a_rollout_holds_what_happened():
    network, rollout, episodes, obs, mask = collected()
    # the env truncates after 5 steps: at t = 4 and 9
    assert rollout.truncated[:, 0].nonzero().flatten().tolist() == [4, 9]
    assert len(episodes) == 4 and not rollout.terminated.any()
    chosen = rollout.action_mask.gather(-1, rollout.action.unsqueeze(-1))
    assert chosen.all()
    logits, value = network(rollout.obs.flatten(0, 1))
    log_probs = ops.masked_log_softmax(logits, rollout.action_mask.flatten(0, 1))
    log_prob = log_probs.gather(1, rollout.action.flatten()[:, None])[:, 0]
    torch.testing.assert_close(rollout.log_prob.flatten(), log_prob)
    torch.testing.assert_close(rollout.value.flatten(), value)
    assert all(x.shape[:2] == (12, 2) for x in vars(rollout).values())
    assert obs.shape == rollout.obs[0].shape and mask.shape == rollout.action_mask[0].shape


@torch.no_grad()
def test_truncation_bootstraps_from_the_true_final_observation():
    network, rollout, _, obs, _ = collected()
    # Counter's obs is (tag, t): the true successor of the step at t is (tag, t + 1)
    successor = rollout.obs.clone()
    successor[..., 1] += 1
    expected = network(successor.flatten(0, 1))[1].view(12, 2)
    torch.testing.assert_close(rollout.next_value, expected)
    torch.testing.assert_close(rollout.next_value[-1], network(obs)[1])


def test_advantages_end_with_an_episode_and_bootstrap_where_it_was_cut():
    # two envs, three steps: env 0 terminates at t = 1, env 1 is truncated at t = 1
    settings = config(gamma=0.5, gae_lambda=0.25, num_envs=2)
    no, yes = [False, False], [True, False]
    value = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    next_value = torch.tensor([[3.0, 4.0], [70.0, 8.0], [9.0, 10.0]])
    reward = torch.tensor([[1.0, -1.0], [2.0, 0.0], [0.0, 3.0]])
    rollout = Rollout(
        obs=torch.arange(6).view(3, 2),
        action_mask=torch.ones(3, 2, 3, dtype=torch.bool),
        action=torch.zeros(3, 2, dtype=torch.int64),
        log_prob=torch.zeros(3, 2),
        value=value,
        next_value=next_value,
        reward=reward,
        terminated=torch.tensor([no, yes, no]),
        truncated=torch.tensor([no, yes[::-1], no]),
    )
    with closing(make_vector(settings.all_games, 2, 0)) as envs:
        state = ppo.initial_state(settings, envs, torch.device("cpu"))
    batch = ppo.with_advantages(rollout, state, settings)
    # δ = r + 0.5 V' - V (V' = 0 where terminated); A = δ + 0.5 * 0.25 A' unless the episode ended
    last = (0 + 4.5 - 5, 3 + 5 - 6)
    middle = (2 - 3, 0 + 4 - 4)
    first = (1 + 1.5 - 1 + 0.125 * middle[0], -1 + 2 - 2 + 0.125 * middle[1])
    expected = torch.tensor([*first, *middle, *last])
    torch.testing.assert_close(batch.advantage, expected)
    torch.testing.assert_close(batch.value_target, expected + value.flatten())
    assert batch.obs.tolist() == list(range(6))  # [T, N] -> [T*N]

    scaled = dataclasses.replace(settings, normalize_reward=True)
    same = ppo.with_advantages(rollout, state, scaled)
    # discounted returns: 1, 2.5 | 0 after the end; and -1, -0.5 | 3
    deviation = torch.tensor([1, 2.5, 0, -1, -0.5, 3.0]).std(correction=0)
    delta = reward / deviation + torch.tensor([[1.5, 2], [0, 4], [4.5, 5]]) - value
    torch.testing.assert_close(same.advantage[4:], delta[2], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("value_clip_range", [None, 0.1])
def test_a_step_is_the_step_of_autograd_and_torch(value_clip_range):
    settings = config(
        num_envs=2,
        num_steps=8,
        num_epochs=1,
        num_minibatches=1,
        clip_range=0.1,
        value_clip_range=value_clip_range,
        entropy_coef=0.3,
        value_coef=0.7,
        max_grad_norm=0.05,
    )
    envs = make_vector(settings.all_games, 2, seed=0)
    spec = envs.spec
    ours, theirs = (
        ppo.make_network(settings, spec.obs, spec.action, torch.Generator().manual_seed(0))
        for _ in range(2)
    )
    mask = torch.rand(16, 3) < 0.5
    mask[:, 1] = True
    batch = ppo.Batch(
        obs=torch.randint(6, (16,)),
        action_mask=mask,
        action=mask.int().argmax(-1),
        log_prob=-1 + 0.3 * torch.randn(16),
        value=torch.randn(16),
        advantage=3 + 2 * torch.randn(16),
        value_target=torch.randn(16),
    )
    metrics = ppo.learn(ours, FlatAdam(ours), batch, settings, 1e-2, torch.Generator())

    optimizer = torch.optim.Adam(theirs.parameters(), lr=1e-2, eps=1e-5)
    logits, value = theirs(batch.obs)
    log_probs = ops.masked_log_softmax(logits, mask)
    log_prob = log_probs.gather(1, batch.action[:, None])[:, 0]
    advantage = (batch.advantage - batch.advantage.mean()) / (batch.advantage.std() + 1e-8)
    loss = (
        ops.clipped_surrogate_loss(log_prob, batch.log_prob, advantage, 0.1).mean()
        + 0.7 * ops.value_loss(value, batch.value, batch.value_target, value_clip_range).mean()
        - 0.3 * ops.masked_entropy(log_probs, mask).mean()
    )
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.05)
    assert norm > 0.05
    optimizer.step()
    assert metrics["loss/grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    envs.close()


def test_each_minibatch_is_standardized_by_itself():
    rows = torch.tensor([[1.0, 2.0, 3.0], [10.0, 30.0, 50.0]])
    torch.testing.assert_close(ppo.standardize(rows), torch.tensor([[-1.0, 0.0, 1.0]] * 2))
    assert torch.equal(ppo.standardize(torch.ones(4, 1)), torch.ones(4, 1))
    next(ppo.train(config(num_minibatches=64)))  # of one sample each


def test_observations_are_scaled_by_what_was_seen_before_the_rollout():
    settings = config("rlmask-tests/Counter-v0", normalize_obs=True, num_envs=2, num_steps=8)
    envs = make_vector(settings.all_games, 2, seed=settings.seed)
    obs, mask = envs.reset()
    generator = torch.Generator().manual_seed(settings.seed)
    network = ppo.make_network(settings, envs.spec.obs, envs.spec.action, generator)
    seen, *_ = ppo.collect(envs, network, obs, mask, 8, generator, torch.device("cpu"))
    envs.close()
    after = next(ppo.train(settings)).capture()["network"]
    flat = seen.obs.flatten(0, 1).double()
    torch.testing.assert_close(after["obs_scaler.mean"], flat.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        after["obs_scaler.var"], flat.var(0, correction=0), rtol=1e-3, atol=1e-3
    )


def test_weights_that_are_not_finite_are_never_yielded():
    settings = config(learning_rate=1e38, num_epochs=1, num_minibatches=1)
    with pytest.raises(FloatingPointError, match="weights are not finite any more"):
        next(ppo.train(settings))


@pytest.mark.parametrize("before", [False, True])
def test_debug_ends_with_the_run(before):
    ops.set_debug(before)
    try:
        trainer = ppo.train(config(debug=True))
        next(trainer)
        trainer.close()
        assert ops.set_debug(before) == before
    finally:
        ops.set_debug(False)


@pytest.mark.parametrize("env", [CORRIDOR, "rlmask-tests/Target-v0"])
def test_the_first_ratio_is_one(env):
    """The softmax of the loss runs over the mask that the action was drawn under."""
    update = next(ppo.train(config(env, num_epochs=1, num_minibatches=1)))
    assert abs(update.metrics["loss/approx_kl"]) < 1e-6
    assert update.metrics["loss/clip_fraction"] == 0


def test_a_loss_without_the_mask_is_noticed(monkeypatch):
    """What `test_the_first_ratio_is_one` would see if the mask were left out of the loss."""
    masked = ppo.masked_ppo_loss

    def unmasked(logits, value, mask, *rest, **settings):
        return masked(logits, value, torch.ones_like(mask), *rest, **settings)

    monkeypatch.setattr(ppo, "masked_ppo_loss", unmasked)
    update = next(ppo.train(config(num_epochs=1, num_minibatches=1)))
    assert update.metrics["loss/approx_kl"] > 0.01


def test_a_sampler_without_the_mask_is_refused_by_the_env(monkeypatch):
    masked = ppo.masked_inverse_cdf

    def unmasked(logits, mask, uniform):
        return masked(logits, torch.ones_like(mask), uniform)

    monkeypatch.setattr(ppo, "masked_inverse_cdf", unmasked)
    with pytest.raises(ops.InvalidActionError, match="Corridor"):
        last(ppo.train(config()))


def test_the_entropy_is_over_the_valid_actions():
    update = next(ppo.train(config(num_epochs=1, num_minibatches=1, num_steps=64)))
    # weights of gain 0.01 make the first policy uniform: two of three actions, or three
    assert 0.5 < update.metrics["loss/entropy"] < 1.0986
    normalized = ppo.train(
        config(num_epochs=1, num_minibatches=1, num_steps=64, normalize_entropy=True)
    )
    assert next(normalized).metrics["loss/entropy"] == pytest.approx(1, abs=1e-3)


def test_learning_reaches_the_optimum_of_a_masked_corridor():
    update = last(ppo.train(config(total_steps=16_384, num_envs=16, learning_rate=1e-2)))
    # from place p of 0..4 to the goal at 5: 5 - p steps of -0.1 (the last one +1)
    games = (Game(env_id=CORRIDOR),)
    reached = greedy_return(update, games=games)
    always_right = evaluate(
        lambda obs, mask: torch.full((len(obs),), 1), make_vector(games, 8, 1, stream=1), 64
    )
    assert reached == pytest.approx(summarize(always_right).mean_return)


@pytest.mark.parametrize(
    ("env", "kwargs", "target"),
    [
        ("rlmask-tests/Target-v0", {}, 7.0),  # of 8, one a step for all parts right
        ("rlmask-tests/Target-v0", {"layout": "tuple"}, 7.0),
    ],
)
@pytest.mark.slow
def test_learning_multi_discrete(env, kwargs, target):
    settings = config(
        env,
        env_kwargs=kwargs,
        total_steps=10_240,
        num_envs=16,
        num_steps=32,
        num_minibatches=8,
        num_epochs=4,
        learning_rate=5e-3,
        gamma=0.5,
    )
    update = last(ppo.train(settings))
    assert greedy_return(update, games=settings.all_games) > target


@pytest.mark.slow
def test_learning_from_images():
    settings = config(
        "rlmask-tests/Grid-v0",
        total_steps=16_384,
        num_envs=16,
        num_steps=32,
        num_minibatches=4,
        num_epochs=4,
        learning_rate=3e-3,
        shared_torso=True,
        hidden_sizes=(32,),
        activation="relu",
    )
    first, *_, update = ppo.train(settings)
    name = "rollout/episode_length"  # from anywhere in 3 x 4 pixels to the corner: at most 5
    assert first.metrics[name] > 6
    assert update.metrics[name] < 4


def test_several_games_share_one_network_and_log_their_own_returns():
    games = (
        Game(env_id=CORRIDOR, action_ids=(4, 2, 0)),
        Game(env_id=CORRIDOR, env_kwargs={"length": 8}, action_ids=(1, 3, 5)),
    )
    settings = ppo.PPOConfig(games=games, total_steps=2048, **SMALL)
    update = last(ppo.train(settings))
    returns = {k: v for k, v in update.metrics.items() if k.startswith("rollout/episode_return")}
    assert set(returns) == {f"rollout/episode_return/{CORRIDOR}-{i}" for i in (0, 8)}
    # the longer corridor costs more steps
    assert (
        returns[f"rollout/episode_return/{CORRIDOR}-0"]
        > (returns[f"rollout/episode_return/{CORRIDOR}-8"])
    )
    assert settings.num_updates == 32 and update.env_steps == 2048
    assert 0.3 < update.metrics["mask/valid_fraction"] < 0.5  # of 6, two or three


def test_same_seed_same_run_other_seed_other_run():
    def curve(seed):
        return [update.metrics for update in ppo.train(config(seed=seed))]

    assert curve(3) == curve(3)
    assert curve(3) != curve(4)


def test_async_and_sync_are_the_same_run():
    runs = [
        [u.metrics for u in ppo.train(config(env, vectorization=v, total_steps=128))]
        for v, env in itertools.product(("sync", "async"), [f"envs_for_tests:{CORRIDOR}"])
    ]
    assert runs[0] == runs[1]


def test_a_run_does_not_touch_the_global_generator():
    before = torch.get_rng_state()
    last(ppo.train(config(total_steps=64)))
    assert torch.equal(torch.get_rng_state(), before)


def test_target_kl_ends_an_update_before_a_step_that_goes_too_far():
    # the first minibatch has ratio 1, up to rounding; the second sees what the step has done
    settings = config(target_kl=1e-4, learning_rate=0.1, num_epochs=10)
    update = next(ppo.train(settings))
    assert update.capture()["optimizer"]["step"] == 1
    free = next(ppo.train(dataclasses.replace(settings, target_kl=None)))
    assert free.capture()["optimizer"]["step"] == 20


def test_the_learning_rate_falls_to_zero_in_a_straight_line():
    rates = [u.metrics["train/learning_rate"] for u in ppo.train(config(learning_rate=1.0))]
    assert rates == pytest.approx([1.0, 0.75, 0.5, 0.25])
    flat = ppo.train(config(learning_rate=1.0, anneal_learning_rate=False))
    assert {u.metrics["train/learning_rate"] for u in flat} == {1.0}


def test_the_entropy_bonus_falls_to_zero_in_a_straight_line(monkeypatch):
    given, loss = [], ppo.masked_ppo_loss

    def spy(*tensors, **settings):
        given.append(settings["entropy_coef"])
        return loss(*tensors, **settings)

    monkeypatch.setattr(ppo, "masked_ppo_loss", spy)
    list(ppo.train(config(entropy_coef=0.4, anneal_entropy=True)))
    each = len(given) // 4
    assert given == pytest.approx([c for c in (0.4, 0.3, 0.2, 0.1) for _ in range(each)])
    given.clear()
    list(ppo.train(config(entropy_coef=0.4)))
    assert set(given) == {0.4}


@pytest.mark.parametrize("normalize", [False, True])
def test_capture_and_resume_in_the_middle(normalize):
    settings = config(
        "rlmask-tests/Counter-v0", normalize_obs=normalize, normalize_reward=normalize
    )
    whole = [update.metrics for update in ppo.train(settings)]
    trainer = ppo.train(settings)
    next(trainer)
    state = next(trainer).capture()
    trainer.close()
    rest = [update.metrics for update in ppo.train(settings, resume=state)]
    assert rest == whole[2:]


def test_a_gradient_that_is_not_finite_stops_before_it_does_harm():
    settings = config()
    envs = make_vector(settings.all_games, 4, seed=0)
    generator = torch.Generator().manual_seed(0)
    network = ppo.make_network(settings, envs.spec.obs, envs.spec.action, generator)
    optimizer = FlatAdam(network)
    before = optimizer.weights.clone()
    obs, mask = envs.reset()
    rollout: Rollout
    rollout, *_ = ppo.collect(envs, network, obs, mask, 16, generator, torch.device("cpu"))
    batch = ppo.Batch(
        obs=rollout.obs.flatten(0, 1),
        action_mask=rollout.action_mask.flatten(0, 1),
        action=rollout.action.flatten(),
        log_prob=rollout.log_prob.flatten(),
        value=rollout.value.flatten(),
        advantage=torch.full((64,), float("inf")),
        value_target=rollout.value.flatten(),
    )
    with pytest.raises(FloatingPointError, match="not finite"):
        ppo.learn(network, optimizer, batch, settings, 1e-3, generator)
    assert torch.equal(optimizer.weights, before)
    envs.close()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the message is about a missing GPU")
def test_cuda_without_a_gpu_is_one_clear_error():
    with pytest.raises(ValueError, match="set it to cpu or auto"):
        next(ppo.train(config(device="cuda")))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_learns_too():
    update = last(
        ppo.train(config(total_steps=16_384, num_envs=16, learning_rate=1e-2, device="cuda"))
    )
    assert greedy_return(update, games=(Game(env_id=CORRIDOR),)) > 0.6


# --- several games at once

TWO_GAMES = (
    Game(env_id=CORRIDOR, action_ids=(0, 1, 2)),
    Game(env_id=CORRIDOR, env_kwargs={"length": 4}, action_ids=(3, 2, 1)),
)
SHARED = {"games": TWO_GAMES, "shared_torso": True, "num_envs": 8}


@pytest.mark.parametrize("num_games", [1, 3])
def test_minibatches_have_equal_shares_of_the_games_in_turn(num_games):
    order = shuffled_in_turn(24, num_games, torch.Generator().manual_seed(0))
    assert sorted(order.tolist()) == list(range(24))
    assert (order % num_games == torch.arange(24) % num_games).all()
    if num_games == 1:  # one game is shuffled as ever
        assert torch.equal(order, torch.randperm(24, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(
    "parts",
    [{"popart": True}, {"game_heads": True, "game_stems": True}, {"normalize_reward": True}],
    ids=["popart", "parts a game", "scaled rewards"],
)
def test_a_resumed_run_of_several_games_is_the_same_run(parts):
    settings = config("", **SHARED, **parts)
    whole = [copy.deepcopy(update.capture()) for update in ppo.train(settings)]
    updates = ppo.train(settings)
    stopped = copy.deepcopy(next(updates).capture())
    updates.close()
    resumed = [copy.deepcopy(update.capture()) for update in ppo.train(settings, stopped)]
    assert len(resumed) == 1
    for key in ("network", "optimizer", "popart", "reward_scaler"):
        mine, theirs = resumed[-1][key], whole[-1][key]
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(torch.as_tensor(mine[n]), torch.as_tensor(theirs[n])) for n in mine)
    assert resumed[-1]["games"][1] == {"env_id": CORRIDOR, "action_ids": (3, 2, 1)}


@pytest.mark.slow
@pytest.mark.parametrize("parts", [{"popart": True}, {"game_heads": True}], ids=["popart", "heads"])
def test_one_network_learns_two_games_with(parts):
    """The union index of the step to the right is another in each game."""
    settings = config(
        "", **SHARED, total_steps=16_384, learning_rate=1e-2, entropy_coef=0.01, **parts
    )
    update = last(ppo.train(settings))
    with closing(make_vector(TWO_GAMES, 8, 1, stream=1)) as envs:
        episodes = evaluate(update.policy, envs, 64, max_episode_steps=1000)
    assert all(e.episode_return == pytest.approx(1 - 0.1 * e.episode_length) for e in episodes)
    assert max(e.episode_length for e in episodes) == 5


def test_popart_gives_raw_advantages_and_scaled_targets():
    settings = config("", **SHARED, popart=True)
    with closing(make_vector(TWO_GAMES, 8, 0)) as envs:
        state = ppo.initial_state(settings, envs, torch.device("cpu"))
        generator = torch.Generator().manual_seed(0)
        rollout, *_ = ppo.collect(
            envs, state.network, *envs.reset(), 16, generator, torch.device("cpu")
        )
    plain = dataclasses.replace(settings, popart=False)
    raw = ppo.with_advantages(rollout, state, plain)  # at first μ is 0 and σ 1
    scaled = ppo.with_advantages(rollout, state, settings)
    mean, deviation = (x.float().repeat(64) for x in (state.popart.mean, state.popart.deviation))
    of_game = raw.value_target.view(-1, 2)
    torch.testing.assert_close(state.popart.mean.float(), of_game.mean(0))
    torch.testing.assert_close(scaled.value_target, (raw.value_target - mean) / deviation)
    torch.testing.assert_close(scaled.advantage, raw.advantage / deviation)
    torch.testing.assert_close(scaled.value, (raw.value - mean) / deviation)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"game_heads": True}, "several games"),
        ({**SHARED, "env": "", "popart": True, "normalize_reward": True}, "choose one"),
        ({"games": TWO_GAMES, "env": "", "popart": True}, "shared_torso"),
        ({"games": TWO_GAMES, "env": "", "num_envs": 2, "num_steps": 1}, "multiple of the 2"),
    ],
)
def test_settings_of_several_games_that_do_not_hold(changes, said):
    with pytest.raises(ValueError, match=said):
        config(**changes)
