import math

import pytest
import torch
from envs_for_tests import env_id

from rlmask import run
from rlmask.evaluate import evaluate, summarize
from rlmask.ops import InvalidActionError
from rlmask.ppo import PPOConfig
from rlmask.runs import RunConfig, RunOptions
from rlmask.types import ActionSpec, Episode, ObsSpec
from rlmask.vector import EnvError, Game, VectorSpec, VectorStep, make_vector


class Scripted:
    """Env i has episodes of i + 1 steps; the return of its k-th, from 0, is 10 i + k.

    Env `endless` plays `good` such episodes; its next does not end.
    """

    def __init__(self, num_envs, endless=None, good=0):
        self.num_envs = num_envs
        self.endless, self.good = endless, good
        self.t, self.episode = torch.zeros(2, num_envs, dtype=torch.int64)
        self.spec = VectorSpec(
            obs=ObsSpec(kind="discrete", shape=(), dtype="int64", n=num_envs),
            action=ActionSpec(nvec=(3,)),
            games=(Game(env_id="Scripted-v0"),),
            obs_offsets=(0,),
        )
        self.masks = torch.tensor([[True, False, True]]).expand(num_envs, 3)
        self.actions = []

    def reset(self):
        return self.t.clone(), self.masks

    def step(self, action):
        self.actions.append(action)
        assert len(self.actions) < 1000, "this goes on for ever"
        self.t += 1
        length = torch.arange(self.num_envs) + 1
        if self.endless is not None and self.episode[self.endless] >= self.good:
            length[self.endless] = 1_000_000
        ended = (self.t == length).nonzero()[:, 0]
        episodes = [
            Episode(game=0, episode_return=10.0 * i + self.episode[i].item(), episode_length=i + 1)
            for i in ended.tolist()
        ]
        self.t[ended] = 0
        self.episode[ended] += 1
        return VectorStep(
            obs=self.t.clone(),
            action_mask=self.masks,
            reward=torch.zeros(self.num_envs),
            action_valid=torch.ones(self.num_envs, dtype=torch.bool),
            terminated=self.t == 0,
            truncated=torch.zeros(self.num_envs, dtype=torch.bool),
            ended=ended,
            final_obs=ended.clone(),
            final_action_mask=self.masks[ended],
            episodes=episodes,
        )

    def capture(self):
        raise NotImplementedError

    def restore(self, state):
        raise NotImplementedError

    def close(self):
        pass


class Script:
    """A policy that writes down what it was shown, and takes the first or the last valid action."""

    def __init__(self, take="first"):
        self.take = take
        self.obs, self.masks = [], []

    def __call__(self, obs, action_mask):
        self.obs.append(obs.clone())
        self.masks.append(action_mask.clone())
        numbers = torch.arange(action_mask.shape[-1])
        if self.take == "first":
            return torch.where(action_mask, numbers, 99).amin(-1)
        return torch.where(action_mask, numbers, -1).amax(-1)


def counter_envs(num_envs, enforce=True, **env_kwargs):
    games = (Game(env_id=env_id("Counter"), env_kwargs=env_kwargs),)
    return make_vector(games, num_envs, seed=0, enforce=enforce)


def test_every_env_plays_its_own_share():
    # 6 episodes in 4 envs are 2, 2, 1, 1. The first six to end would be three of env 0, after steps
    # 1, 2, 3, one of env 1 after step 2 ... and none of env 3.
    envs = Scripted(4)
    episodes = evaluate(Script(), envs, 6)
    assert [e.episode_return for e in episodes] == [0, 1, 10, 11, 20, 30]
    assert [e.episode_length for e in episodes] == [1, 1, 2, 2, 3, 4]
    assert len(envs.actions) == 4  # then envs 1 and 3 have ended the last two


def test_fewer_episodes_than_envs():
    episodes = evaluate(Script(), Scripted(4), 2)
    assert [e.episode_return for e in episodes] == [0, 10]


@pytest.mark.parametrize("endless", [0, 1])
def test_an_episode_that_does_not_end_is_an_error(endless):
    with pytest.raises(EnvError, match=r"Scripted-v0 did not end in 50 steps.*time limit"):
        evaluate(Script(), Scripted(2, endless), 2, max_episode_steps=50)


def test_the_limit_is_on_an_episode_not_on_the_evaluation():
    # env 1 needs 2 steps for each of its 20 episodes
    assert len(evaluate(Script(), Scripted(2), 40, max_episode_steps=10)) == 40


def test_an_env_that_has_played_its_share_may_walk_in_circles():
    # 20 episodes each: env 0 has its own after 20 steps, env 1 after 40
    envs = Scripted(2, endless=0, good=20)
    assert len(evaluate(Script(), envs, 40, max_episode_steps=10)) == 40


def test_the_policy_sees_the_masks_and_its_actions_are_taken():
    policy, envs = Script("last"), Scripted(2)
    evaluate(policy, envs, 2)
    assert torch.equal(torch.stack(policy.masks), torch.stack([envs.masks] * 2))
    assert torch.equal(torch.stack(envs.actions), torch.full((2, 2), 2))
    assert torch.stack(policy.obs).tolist() == [[0, 0], [0, 1]]


def test_a_policy_that_remembers_is_told_where_episodes_begin():
    told = []

    class Remembers(Script):
        def __call__(self, obs, action_mask):
            told.append("act")
            return super().__call__(obs, action_mask)

        def forget(self, rows=None):
            told.append(None if rows is None else rows.tolist())

    evaluate(Remembers(), Scripted(2), 4)
    # env 0 ends at every step, env 1 at every second one
    assert told == [None, "act", [0], "act", [0, 1], "act", [0], "act", [0, 1]]


def test_without_the_mask_the_policy_sees_that_all_is_valid():
    policy = Script()
    evaluate(policy, Scripted(2), 2, use_mask=False)
    assert all(mask.all() for mask in policy.masks)


def test_figures():
    # mean of 1, 2, 6 is 3; variance (4 + 1 + 9) / 2 = 7; standard error sqrt(7 / 3)
    episodes = [
        Episode(game=0, episode_return=1.0, episode_length=2, invalid_actions=2),
        Episode(game=0, episode_return=2.0, episode_length=3),
        Episode(game=1, episode_return=6.0, episode_length=5, invalid_actions=1),
    ]
    figures = summarize(episodes)
    assert figures.mean_return == 3
    assert figures.standard_error == pytest.approx(math.sqrt(7 / 3))
    assert figures.episodes == 3
    assert figures.mean_length == pytest.approx((2 + 3 + 5) / 3)
    assert figures.invalid_actions == pytest.approx(3 / 10)


def test_one_episode_has_no_standard_error():
    figures = summarize([Episode(game=0, episode_return=-2.5, episode_length=4)])
    assert (figures.mean_return, figures.mean_length, figures.episodes) == (-2.5, 4, 1)
    assert math.isnan(figures.standard_error)


def test_no_episode_has_no_figures():
    with pytest.raises(ValueError, match="no episode"):
        summarize([])


def evaluated(settings, policy, num_episodes=None, seed=None, **options):
    config = RunConfig(algo="ppo", settings=settings, options=RunOptions(**options))
    return run.evaluate_games(config, policy, num_episodes=num_episodes, seed=seed)


def test_an_endless_episode_is_cut_and_that_is_said():
    # Counter goes on for 5 steps: cut after 3, it has given 1 + 2 + 3
    settings = PPOConfig(env=env_id("Counter"))
    with pytest.warns(run.CutWarning, match="4 of 4 evaluation episodes were cut after 3 steps"):
        figures, _ = evaluated(settings, Script(), eval_episodes=4, eval_max_episode_steps=3)
    assert (figures.mean_return, figures.mean_length, figures.episodes) == (6, 3, 4)
    figures, _ = evaluated(settings, Script(), eval_episodes=4, eval_max_episode_steps=6)
    assert (figures.mean_return, figures.mean_length) == (15, 5)


def test_figures_of_a_real_env():
    # the reward of step t is t: 1 + 2 + 3 + 4 + 5 until the time limit
    figures = summarize(evaluate(Script(), counter_envs(2), 3))
    assert (figures.mean_return, figures.mean_length, figures.episodes) == (15, 5, 3)
    assert figures.standard_error == 0
    assert figures.invalid_actions == 0


def test_every_invalid_action_is_counted():
    # action a is valid where a + 1 divides t. Action 2 at t = 0, 1, 2, 3, 4: invalid at 1, 2, 4.
    envs = counter_envs(2, enforce=False)
    figures = summarize(evaluate(Script("last"), envs, 4, use_mask=False))
    assert figures.invalid_actions == 3 / 5
    assert figures.mean_return == 15  # the env minds no invalid action


def test_a_policy_that_keeps_to_the_mask_takes_no_invalid_action():
    envs = counter_envs(2, enforce=False)
    figures = summarize(evaluate(Script("last"), envs, 4, use_mask=True))
    assert figures.invalid_actions == 0


def test_an_invalid_action_is_an_error_where_masks_are_enforced():
    with pytest.raises(InvalidActionError, match=r"Counter-v0, env 0, episode 1, step 1: action 2"):
        evaluate(Script("last"), counter_envs(2), 2, use_mask=False)


def test_each_game_has_its_own_figures():
    # Counter gives 1 + 2 + 3 + 4 + 5 in 5 steps, Malformed (not told to do wrong) 4 times 1
    counter = Game(env_id=env_id("Counter"), action_ids=(0, 1, 2))
    other = Game(env_id=env_id("Malformed"), action_ids=(0, 1, 2, 3))
    episodes = evaluate(Script(), make_vector((counter, other), 4, seed=0), 6)
    returns = {game: [e.episode_return for e in episodes if e.game == game] for game in (0, 1)}
    assert returns == {0: [15, 15, 15], 1: [4, 4, 4]}
    settings = PPOConfig(games=(counter, other), num_envs=2)
    figures, by_name = evaluated(settings, Script(), 3)
    assert (figures.mean_return, figures.mean_length) == ((15 + 4) / 2, (5 + 4) / 2)
    assert figures.episodes == 6
    assert by_name == {
        f"eval/{name}/{env_id(game)}": value
        for game, values in (("Counter", (15, 0, 3, 5, 0)), ("Malformed", (4, 0, 3, 4, 0)))
        for name, value in zip(vars(figures), values, strict=True)
    }


def test_games_of_the_same_env_are_told_apart():
    # last=2 ends a Counter after 2 steps, with 1 + 2 = 3
    short = Game(env_id=env_id("Counter"), env_kwargs={"last": 2}, action_ids=(0, 1, 2))
    long = Game(env_id=env_id("Counter"), action_ids=(0, 1, 2))
    _, by_name = evaluated(PPOConfig(games=(short, long), num_envs=2), Script(), 1)
    returns = [value for name, value in by_name.items() if name.startswith("eval/mean_return")]
    assert sorted(returns) == [3, 15]


@pytest.mark.parametrize("num_episodes", [1, 3, 16, 40])
def test_as_many_episodes_as_were_asked_for(num_episodes):
    settings = PPOConfig(env=env_id("Counter"))
    figures, by_name = evaluated(settings, Script(), num_episodes)
    assert figures.episodes == num_episodes
    assert by_name["eval/episodes"] == num_episodes


def test_the_seed_decides_the_episodes():
    def starts(seed):
        policy = Script()
        evaluated(PPOConfig(env="Taxi-v4", seed=3), policy, 1, seed=seed)
        return policy.obs[0].tolist()

    assert starts(5) == starts(5)
    assert starts(5) != starts(6)
    assert starts(None) == starts(3)  # the run's own


def test_evaluation_plays_other_episodes_than_training():
    policy = Script()
    evaluated(PPOConfig(env="Taxi-v4", seed=0), policy, 16)
    obs, _ = make_vector((Game(env_id="Taxi-v4"),), 16, seed=0).reset()
    assert policy.obs[0].tolist() != obs.tolist()
