import copy
import dataclasses
from contextlib import closing
from pathlib import Path

import envs_for_tests  # noqa: F401 (registers its envs)
import pytest
import torch
from playing import env_id
from torch import nn

import rlmask
from rlmask import ops, ppo, recurrent_ppo, runs
from rlmask.evaluate import evaluate, summarize
from rlmask.experts import initial_of, load_teacher
from rlmask.optim import FlatAdam
from rlmask.policies import RecurrentPolicy
from rlmask.recurrent_network import recent_mask
from rlmask.run import train
from rlmask.runs import RunConfig, RunOptions
from rlmask.teachers import TeacherError
from rlmask.transfer import TransferError
from rlmask.types import ActionSpec, ObsSpec
from rlmask.vector import Game, make_vector

CORRIDOR, COUNTER = "rlmask-tests/Corridor-v0", "rlmask-tests/Counter-v0"
SMALL = {"num_envs": 4, "num_steps": 16, "num_minibatches": 2, "num_epochs": 2}
SIZES = {"hidden_sizes": (8,), "recurrent_size": 8, "memory_length": 4}
KINDS = [
    {"cell": "gru"},
    {"cell": "lstm"},
    {"cell": "gru", "attention": "luong"},
    {"cell": "lstm", "attention": "bahdanau"},
]
TINY_MAZE = {"num_doors": 2, "corridor_length": 3, "min_length": 2}
CPU = torch.device("cpu")


def config(env=CORRIDOR, **changes):
    settings = {"env": env, "total_steps": 256, **SMALL, **SIZES, **changes}
    return recurrent_ppo.RecurrentPPOConfig(**settings)


def last(updates):
    *_, update = updates
    return update


def network_of(settings, obs=None, num_actions=3):
    obs = obs or ObsSpec(kind="vector", shape=(2,), dtype="float32")
    spec = ActionSpec(nvec=(num_actions,))
    return recurrent_ppo.make_network(settings, obs, spec, torch.Generator().manual_seed(0))


@pytest.fixture(params=KINDS, ids=lambda kind: " ".join(kind.values()))
def kind(request):
    return request.param


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env": ""}, "either env or games"),
        ({"env": "", "games": (Game(env_id=CORRIDOR),)}, "plays one env: set env, not games"),
        ({"num_minibatches": 3}, "num_envs = 4 does not divide into num_minibatches = 3"),
        ({"memory_length": 0}, "memory_length is 0"),
        ({"recurrent_size": 0}, "recurrent_size is 0"),
        ({"gamma": 1.5}, "gamma is 1.5"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
    ],
)
def test_settings_that_contradict_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_every_field_says_what_it_is():
    source = Path(recurrent_ppo.__file__).read_text().split("class RecurrentPPOConfig")[1]
    for field in dataclasses.fields(recurrent_ppo.RecurrentPPOConfig):
        after = source.split(f"\n    {field.name}: ")[1]
        assert after.split("\n")[1].strip().startswith('"""')


def rollouts(settings, count, num_steps, gain=1.0):
    """Return the network, `count` rollouts in a row, each (remembered before, it, age), and obs.

    `gain` makes the first policy, which is near uniform, one that says something.
    """
    generator, found = torch.Generator().manual_seed(0), []
    with closing(make_vector(settings.all_games, settings.num_envs, seed=0)) as envs:
        network = recurrent_ppo.make_network(settings, envs.spec.obs, envs.spec.action, generator)
        network.actor_head.weight.data *= gain
        remembered, (obs, mask) = network.nothing(settings.num_envs), envs.reset()
        for _ in range(count):
            before = remembered
            rollout, age, _, remembered, obs, mask = recurrent_ppo.collect(
                envs, network, before, obs, mask, num_steps, generator
            )
            found.append((before, rollout, age))
    return network, found, obs


@pytest.mark.parametrize("env", [COUNTER, CORRIDOR, "rlmask-tests/Grid-v0"])
def test_learning_sees_the_probabilities_of_collection(kind, env):
    """The ratio is 1 before the first step, with ends of episodes within and across chunks."""
    settings = config(env, **kind)
    network, found, _ = rollouts(settings, 3, num_steps=21, gain=50.0)
    for before, rollout, age in found:
        ended = rollout.terminated | rollout.truncated
        assert ended[:-1].any()
        logits, value = network(rollout.obs, age, before.state.clone(), before.history)
        log_probs = ops.masked_log_softmax(logits, rollout.action_mask)
        log_prob = log_probs.gather(-1, rollout.action.unsqueeze(-1)).squeeze(-1)
        ratio = (log_prob - rollout.log_prob).exp()
        torch.testing.assert_close(ratio, torch.ones(21, 4), rtol=0, atol=1e-5)
        torch.testing.assert_close(value, rollout.value, rtol=0, atol=1e-5)
    assert (found[1][0].age > 0).any()  # an episode went on from the chunk before


def test_an_episode_knows_nothing_of_the_one_before(kind):
    """Two in one chunk are as each alone, to the last bit, whatever the first one showed."""
    network = network_of(config(**kind))
    obs, age = torch.randn(10, 3, 2), torch.arange(5).repeat(2).unsqueeze(1).expand(10, 3)
    nothing = network.nothing(3)
    logits, value = network(obs, age, nothing.state, nothing.history)
    for episode in (slice(0, 5), slice(5, 10)):
        alone = network(obs[episode], age[episode], nothing.state, nothing.history)
        torch.testing.assert_close((logits[episode], value[episode]), alone)
    # what was before the chunk, and the first episode, do not matter to the second
    for content in (1e4, float("nan")):
        other = obs.clone()
        other[:5] = content
        dirty = torch.full_like(nothing.state, content), nothing.history + content
        again, values = network(other, age, *dirty)
        assert torch.equal(again[5:], logits[5:]) and torch.equal(values[5:], value[5:])
    obs.requires_grad_()
    logits, _ = network(obs, age, nothing.state, nothing.history)
    (gradient,) = torch.autograd.grad((logits[5:] * torch.randn(5, 3, 3)).sum(), obs)
    assert not gradient[:5].any() and gradient[5].any()


def test_what_is_remembered_matters(kind):
    network = network_of(config(**kind))
    obs, age = torch.randn(6, 1, 2), torch.arange(6).unsqueeze(1)
    nothing = network.nothing(1)
    obs.requires_grad_()
    logits, _ = network(obs, age, nothing.state, nothing.history)
    (gradient,) = torch.autograd.grad(logits[-1].square().sum(), obs)
    assert gradient.flatten(1).abs().sum(1).all()  # every step of the episode


def test_the_mask_of_recent_observations():
    age, length = torch.tensor([[0, 1, 7], [1, 2, 8]]), 3
    # the last is the present one; those before it are of the episode if it is as old
    assert recent_mask(age, length).tolist() == [
        [[False, False, True], [False, True, True], [True, True, True]],
        [[False, True, True], [True, True, True], [True, True, True]],
    ]
    assert recent_mask(age, 1).all()


@torch.no_grad()
def test_truncation_bootstraps_with_the_memory_of_its_own_episode(kind):
    """Counter shows (tag, t) and is cut after 5 steps: episodes are played once more, by hand."""
    settings = config(COUNTER, **kind)
    network, found, next_obs = rollouts(settings, 2, num_steps=12)
    _, first, _ = found[0]
    _, second, age = found[1]
    obs = torch.cat([first.obs, second.obs, next_obs.unsqueeze(0)])
    ages = torch.cat([found[0][2], age])
    checked = 0
    for t in range(24):
        for env in range(4):
            start = t - int(ages[t, env])
            seen = obs[start : t + 1, env]
            successor = seen[-1] + torch.tensor([0.0, 1.0])
            episode = torch.cat([seen, successor.unsqueeze(0)]).unsqueeze(1)
            steps = torch.arange(len(episode)).unsqueeze(1)
            nothing = network.nothing(1)
            _, values = network(episode, steps, nothing.state, nothing.history)
            rollout = first if t < 12 else second
            got = rollout.next_value[t % 12, env], rollout.value[t % 12, env]
            torch.testing.assert_close(got, (values[-1, 0], values[-2, 0]), rtol=0, atol=1e-5)
            checked += bool(rollout.truncated[t % 12, env])
    assert checked == 4 * 4


def test_a_step_is_the_step_of_autograd_and_torch():
    """Against PyTorch's cell step by step, its Adam and its clipping."""
    settings = config(
        COUNTER, num_epochs=1, num_minibatches=1, entropy_coef=0.3, value_coef=0.7,
        max_grad_norm=0.05, hidden_sizes=(6,), recurrent_size=5, clip_range=0.1,
    )  # fmt: skip
    ours, theirs = network_of(settings), network_of(settings)
    steps, envs = 6, 4
    age = torch.tensor([[3, 0, 1, 2], [4, 1, 0, 3]]).repeat(3, 1)
    mask = torch.rand(steps, envs, 3) < 0.5
    mask[..., 1] = True
    batch = recurrent_ppo.Batch(
        obs=torch.randn(steps, envs, 2),
        age=age,
        action_mask=mask,
        action=mask.int().argmax(-1),
        log_prob=-1 + 0.3 * torch.randn(steps, envs),
        value=torch.randn(steps, envs),
        advantage=3 + 2 * torch.randn(steps, envs),
        value_target=torch.randn(steps, envs),
    )
    before = ours.nothing(envs)
    before.state.copy_(torch.randn(envs, 5))
    metrics = recurrent_ppo.learn(
        ours, FlatAdam(ours), batch, before, settings, 1e-2, torch.Generator()
    )

    optimizer = torch.optim.Adam(theirs.parameters(), lr=1e-2, eps=1e-5)
    own, cell = theirs.core.cell, nn.GRUCell(6, 5)
    names = {"weight_ih": "weight_input", "weight_hh": "weight_state"}
    names |= {"bias_ih": "bias_input", "bias_hh": "bias_state"}
    for name, mine in names.items():
        delattr(cell, name)
        setattr(cell, name, getattr(own, mine))
    state, outputs = before.state, []
    for t in range(steps):
        state = state * (age[t] > 0).float().unsqueeze(-1)
        state = cell(theirs.torso(batch.obs[t])[0], state)
        outputs.append(state)
    logits, value = theirs.heads(torch.stack(outputs))
    log_probs = ops.masked_log_softmax(logits, mask)
    log_prob = log_probs.gather(-1, batch.action.unsqueeze(-1)).squeeze(-1)
    advantage = (batch.advantage - batch.advantage.mean()) / (batch.advantage.std() + 1e-8)
    loss = (
        ops.clipped_surrogate_loss(log_prob, batch.log_prob, advantage, 0.1).mean()
        + 0.7 * ops.value_loss(value, batch.value, batch.value_target, None).mean()
        - 0.3 * ops.masked_entropy(log_probs, mask).mean()
    )
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.05)
    assert norm > 0.05
    optimizer.step()
    assert metrics["loss/grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("env", [CORRIDOR, "rlmask-tests/Target-v0"])
def test_the_first_ratio_is_one(env, kind):
    """The softmax of the loss runs over the mask that the action was drawn under."""
    update = next(recurrent_ppo.train(config(env, num_epochs=1, num_minibatches=1, **kind)))
    assert abs(update.metrics["loss/approx_kl"]) < 1e-6
    assert update.metrics["loss/clip_fraction"] == 0


def test_a_loss_without_the_mask_is_noticed(monkeypatch):
    """What `test_the_first_ratio_is_one` would see if the mask were left out of the loss."""
    masked = recurrent_ppo.masked_ppo_loss

    def unmasked(logits, value, mask, *rest, **settings):
        return masked(logits, value, torch.ones_like(mask), *rest, **settings)

    monkeypatch.setattr(recurrent_ppo, "masked_ppo_loss", unmasked)
    update = next(recurrent_ppo.train(config(num_epochs=1, num_minibatches=1)))
    assert update.metrics["loss/approx_kl"] > 0.01


def test_a_sampler_without_the_mask_is_refused_by_the_env(monkeypatch):
    masked = recurrent_ppo.masked_inverse_cdf

    def unmasked(logits, mask, uniform):
        return masked(logits, torch.ones_like(mask), uniform)

    monkeypatch.setattr(recurrent_ppo, "masked_inverse_cdf", unmasked)
    with pytest.raises(ops.InvalidActionError, match="Corridor"):
        last(recurrent_ppo.train(config()))


def test_the_entropy_is_over_the_valid_actions():
    first = config(num_epochs=1, num_minibatches=1, num_steps=64)
    update = next(recurrent_ppo.train(first))
    # weights of gain 0.01 make the first policy uniform: two of three actions, or three
    assert 0.5 < update.metrics["loss/entropy"] < 1.0986
    normalized = dataclasses.replace(first, normalize_entropy=True)
    update = next(recurrent_ppo.train(normalized))
    assert update.metrics["loss/entropy"] == pytest.approx(1, abs=1e-3)


def test_weights_that_are_not_finite_are_never_yielded():
    settings = config(learning_rate=1e38, num_epochs=1, num_minibatches=1)
    with pytest.raises(FloatingPointError, match="weights are not finite any more"):
        next(recurrent_ppo.train(settings))


def test_a_resumed_run_is_the_same_run(kind):
    settings = config(COUNTER, normalize_obs=True, normalize_reward=True, num_steps=12, **kind)
    settings = dataclasses.replace(settings, total_steps=5 * 48)
    whole = [(copy.deepcopy(u.capture()), u.metrics) for u in recurrent_ppo.train(settings)]
    trainer = recurrent_ppo.train(settings)
    next(trainer)
    stopped = copy.deepcopy(next(trainer).capture())
    trainer.close()
    assert (stopped["remembered"]["age"] > 0).any() and stopped["remembered"]["state"].any()
    resumed = recurrent_ppo.train(settings, stopped)
    rest = [(copy.deepcopy(u.capture()), u.metrics) for u in resumed]
    assert len(rest) == 3
    for (mine, metrics), (theirs, expected) in zip(rest, whole[2:], strict=True):
        assert metrics == expected
        for key in ("network", "optimizer", "remembered", "reward_scaler"):
            assert mine[key].keys() == theirs[key].keys()
            for name in mine[key]:
                one, other = torch.as_tensor(mine[key][name]), torch.as_tensor(theirs[key][name])
                assert torch.equal(one, other), (key, name)


def test_same_seed_same_run_and_the_global_generator_is_left_alone():
    def curve(seed):
        return [u.metrics for u in recurrent_ppo.train(config(seed=seed, total_steps=128))]

    before = torch.get_rng_state()
    assert curve(3) == curve(3)
    assert curve(3) != curve(4)
    assert torch.equal(torch.get_rng_state(), before)


def test_target_kl_ends_an_update_before_a_step_that_goes_too_far():
    settings = config(target_kl=1e-4, learning_rate=0.1, num_epochs=10)
    update = next(recurrent_ppo.train(settings))
    assert update.capture()["optimizer"]["step"] == 1
    free = next(recurrent_ppo.train(dataclasses.replace(settings, target_kl=None)))
    assert free.capture()["optimizer"]["step"] == 20


@pytest.mark.usefixtures("types_are_not_checked")
def test_a_policy_forgets_rows_that_there_are(kind):
    policy = RecurrentPolicy(network_of(config(**kind)), greedy=True)
    policy.forget(torch.tensor([0, 5]))  # nothing is remembered yet
    policy(torch.zeros(3, 2), torch.ones(3, 3, dtype=torch.bool))
    policy.forget(torch.tensor([2, 0], dtype=torch.int32))
    for rows in ([3], [0, -1]):
        with pytest.raises(ValueError, match="the last call had 0 to 2"):
            policy.forget(torch.tensor(rows))
    for rows in (torch.ones(3, dtype=torch.bool), torch.zeros(1)):
        with pytest.raises(ValueError, match="give their numbers"):
            policy.forget(rows)
    policy.forget(torch.tensor([], dtype=torch.int64))


@pytest.mark.parametrize("greedy", [True, False])
def test_a_policy_step_by_step_is_the_network_on_whole_episodes(kind, greedy):
    network = network_of(config(**kind))
    with torch.no_grad():
        network.actor_head.weight.mul_(100)
    obs, mask = torch.randn(9, 3, 2), torch.rand(9, 3, 3) < 0.6
    mask[..., 2] = True
    age = torch.tensor([[0, 0, 0], [1, 1, 1], [0, 2, 2], [1, 3, 0], [2, 4, 1]])
    age = torch.cat([age, age[-1] + torch.arange(1, 5).unsqueeze(1)])
    policy = RecurrentPolicy(network, greedy=greedy, generator=torch.Generator().manual_seed(2))
    got = []
    for t in range(9):
        if t:
            policy.forget((age[t] == 0).nonzero().flatten())
        got.append(policy(obs[t], mask[t]))
    nothing = network.nothing(3)
    logits, _ = network(obs, age, nothing.state, nothing.history)
    if greedy:
        expected = ops.masked_argmax(logits, mask)
    else:
        generator = torch.Generator().manual_seed(2)
        uniform = torch.stack([torch.rand(3, generator=generator) for _ in range(9)])
        expected, _ = ops.masked_inverse_cdf(logits, mask, uniform)
    assert torch.equal(torch.stack(got), expected)
    policy.forget()
    assert torch.equal(policy(obs[0], mask[0]), got[0]) or not greedy
    assert policy(obs[0, :2], mask[0, :2]).shape == (2,)  # other rows: begun anew


def maze_return(policy, **sizes):
    games = (Game(env_id=env_id("TMaze"), env_kwargs=sizes),)
    with closing(make_vector(games, 32, 1, stream=1, vectorization="native")) as envs:
        return summarize(evaluate(policy, envs, 512)).mean_return


@pytest.mark.slow
@pytest.mark.parametrize(("attention", "steps"), [("none", 16_384), ("luong", 8_192)])
def test_who_remembers_learns_the_maze(attention, steps):
    settings = config(
        env_id("TMaze"), env_kwargs=TINY_MAZE, vectorization="native", attention=attention,
        num_envs=32, num_steps=32, num_epochs=4, learning_rate=1e-2, total_steps=steps,
        recurrent_size=16, hidden_sizes=(16,),
    )  # fmt: skip
    update = last(recurrent_ppo.train(settings))
    assert maze_return(update.policy, **TINY_MAZE) > 0.95


@pytest.mark.slow
def test_who_does_not_is_right_half_the_time():
    settings = ppo.PPOConfig(
        env=env_id("TMaze"), env_kwargs=TINY_MAZE, vectorization="native",
        num_envs=32, num_steps=32, num_epochs=4, learning_rate=1e-2, total_steps=16_384,
    )  # fmt: skip
    update = last(ppo.train(settings))
    # 512 episodes at 1/2: the standard deviation of the mean is 0.022
    assert maze_return(update.policy, **TINY_MAZE) == pytest.approx(0.5, abs=0.1)


class Silent:
    """A display that shows nothing."""

    def start(self, run_dir, total_steps, env_steps):
        pass

    def update(self, env_steps, metrics):
        pass

    def say(self, text):
        pass

    def stop(self):
        pass


def test_a_run_of_it_is_played_but_neither_teaches_nor_gives_weights(tmp_path):
    settings = config(env_id("TMaze"), env_kwargs=TINY_MAZE, total_steps=64)
    options = RunOptions(eval_episodes=4)
    run_dir = tmp_path / "run"
    own = RunConfig(algo="recurrent_ppo", settings=settings, options=options)
    runs.create(run_dir, own)
    train(run_dir, Silent())
    assert 0 <= maze_return(rlmask.load(run_dir), **TINY_MAZE) <= 1
    (game,) = settings.all_games
    with pytest.raises(TeacherError, match="a run of recurrent_ppo, whose scores depend on what"):
        load_teacher(str(run_dir), game, 0, CPU)
    from_it = RunOptions(init_from=str(run_dir))
    plain = ppo.PPOConfig(env=settings.env, env_kwargs=TINY_MAZE)
    for given in (own, RunConfig(algo="ppo", settings=plain, options=options)):
        with pytest.raises(TransferError, match="does not take weights of recurrent_ppo"):
            initial_of(dataclasses.replace(given, options=from_it))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_learns_and_resumes_too():
    settings = config(
        env_id("TMaze"), env_kwargs=TINY_MAZE, vectorization="native", attention="luong",
        num_envs=32, num_steps=32, learning_rate=1e-2, total_steps=16_384, device="cuda",
    )  # fmt: skip
    trainer = recurrent_ppo.train(settings)
    next(trainer)
    stopped = copy.deepcopy(next(trainer).capture())
    trainer.close()
    update = last(recurrent_ppo.train(settings, stopped))
    assert maze_return(update.policy, **TINY_MAZE) > 0.9
