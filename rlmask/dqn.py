"""Deep Q-learning over the valid actions: double, dueling, n-step, prioritised, C51, QR-DQN.

Act epsilon-greedily among the valid actions, keep what happened with the mask of either end, and
learn from minibatches of it. Each maximum, and each mean, runs over the mask of the very state that
it is about: that of s in the dueling mean, that of s' in the target.

Reference: Mnih et al. 2015, doi:10.1038/nature14236; Hessel et al. 2018, arXiv:1710.02298 (the
combination).

Dimension key: `N` num_envs, `B` batch_size, `A` union actions, `Z` numbers an action.
"""

import copy
import math
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlmask.config import (
    check_at_least,
    check_envs,
    check_equal_shares,
    check_finite,
    check_positive,
    check_unit_interval,
)
from rlmask.episodes import RecentEpisodes
from rlmask.joint_replay import JointReplay, seeds_of
from rlmask.learned_mask import (
    admissible_mask,
    head_of,
    load_head,
    validity_metrics,
    with_learned_mask,
)
from rlmask.networks import QNetwork, choose_device
from rlmask.normalize import RewardScaler
from rlmask.ops import (
    QTerms,
    bootstrap_mask,
    categorical_loss,
    check_action,
    choose_values,
    debugging,
    discounted,
    linear_schedule,
    masked_epsilon_greedy,
    masked_max,
    project_categorical,
    quantile_huber_loss,
    td_loss,
    values_of,
    values_of_gradient,
)
from rlmask.optim import FlatAdam, flatten_weights
from rlmask.policies import narrowing, q_policy
from rlmask.replay import Replay, least_capacity
from rlmask.torso import Activation
from rlmask.transfer import Initial
from rlmask.types import (
    ActionSpec,
    Episode,
    ObsSpec,
    Policy,
    Transition,
    Update,
    captured_specs,
    tree_map,
)
from rlmask.validity import ValidityConfig
from rlmask.vector import (
    Game,
    MaskSource,
    SpaceError,
    VectorEnv,
    Vectorization,
    envs_of,
    game_names,
    games_of,
)


@dataclass(frozen=True, kw_only=True)
class DQNConfig:
    """Settings of a masked DQN run."""

    env: str = ""
    """Gymnasium id of the env; `module:Name-v0` imports the module first."""
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the env, as YAML: '{is_rainy: true}'."""
    mask_source: MaskSource = "auto"
    """Where the env keeps its mask: info or obs ["action_mask"], or method action_masks()."""
    games: tuple[Game, ...] = ()
    """Several games in place of `env`, each with the union action that each of its actions is."""
    num_actions: int | None = None
    """Size of the union action set; None: as many as the games name."""
    vectorization: Vectorization = "sync"
    """sync: one process, best for quick envs; async: one process an env; native: the env's own."""
    num_envs: int = 8
    """Envs stepped together, N."""
    seed: int = 0
    """Of everything random in the run."""
    total_steps: int = 200_000
    """Env steps over all envs; rounded up to whole updates."""
    num_steps: int = 1
    """Steps of each env in a phase, before it learns."""
    num_gradient_steps: int = 2
    """Gradient steps in a phase: one in num_envs x num_steps / num_gradient_steps env steps."""
    phases_per_update: int = 256
    """Phases (step, then learn) of an update, which is what is logged, evaluated and saved."""
    batch_size: int = 128
    """Transitions of a gradient step."""
    learning_starts: int = 1000
    """Env steps before the first gradient step."""
    replay_capacity: int = 100_000
    """Observations that are kept, over all envs: an episode of L steps has L + frame_stack."""
    frame_stack: int = 1
    """Frames that the env stacks along an observation's last axis; each is then kept once."""
    learning_rate: float = 5e-4
    """Of Adam, at the start."""
    anneal_learning_rate: bool = False
    """Let the learning rate fall in a straight line to 0 at total_steps."""
    max_grad_norm: float = 10.0
    """Clip the gradient to this norm."""
    gamma: float = 0.99
    """Discount per env step."""
    n_step: int = 1
    """Steps of reward before the target bootstraps; fewer at the end of an episode."""
    double: bool = True
    """The online network chooses the next action, the target network values it."""
    dueling: bool = False
    """A state value and advantages with mean 0 over the valid actions (Wang et al. 2016)."""
    distribution: Literal["none", "categorical", "quantile"] = "none"
    """What is learned: a value; categorical: C51 (Bellemare et al. 2017); quantile: QR-DQN."""
    num_atoms: int = 51
    """Atoms of the categorical distribution."""
    v_min: float = -10.0
    """Lowest atom, in units of discounted return."""
    v_max: float = 10.0
    """Highest atom."""
    num_quantiles: int = 32
    """Quantiles of the quantile distribution (Dabney et al. 2018)."""
    huber_delta: float | None = 1.0
    """Where the loss turns linear, in units of value (not for categorical); None: squared error."""
    target_update_period: int = 250
    """Gradient steps between two updates of the target network, at the end of a phase."""
    target_update_rate: float = 1.0
    """Share τ of the online weights it then takes over: 1 copies them, less is Polyak averaging.
    Of k updates due in one phase it takes 1 - (1 - τ)^k over."""
    epsilon_start: float = 1.0
    """Share of uniformly drawn valid actions, at first."""
    epsilon_end: float = 0.05
    """And from epsilon_steps on."""
    epsilon_steps: int = 20_000
    """Env steps over which it falls in a straight line."""
    prioritized: bool = False
    """Draw transitions by their last error (Schaul et al. 2016), not uniformly."""
    priority_exponent: float = 0.6
    """α of the priorities: 0 is uniform."""
    importance_exponent: float = 0.4
    """β of the importance weights at the start; it rises in a straight line to 1 at total_steps."""
    normalize_reward: bool = False
    """Divide rewards by the running standard deviation of the discounted return, game by game."""
    conv_filters: tuple[int, ...] = ()
    """Filters of 3x3 layers on images; none: Mnih et al. 2015, or one of 16 below 36 pixels."""
    hidden_sizes: tuple[int, ...] = (128, 128)
    """Widths of the fully connected layers."""
    activation: Activation = "relu"
    """After each fully connected layer."""
    game_stems: bool = False
    """Each of several games has a first layer of its own."""
    game_heads: bool = False
    """Each of several games has a last layer of its own, not one over the union."""
    learned_mask: bool = False
    """Narrow the mask by one learned from what the env says of the actions that were taken."""
    validity: ValidityConfig = field(default_factory=ValidityConfig)
    """How that is learned."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one."""
    num_threads: int = 1
    """Torch threads. One is fastest for small networks, and the only count exact on resume."""
    debug: bool = False
    """Check every mask and action in every op."""

    def __post_init__(self) -> None:
        """Check what no type can say.

        Raises:
            ValueError: names the fields and the remedy.
        """
        check_envs(self)
        check_at_least(self, 1, "num_gradient_steps", "phases_per_update", "batch_size")
        check_at_least(self, 1, "learning_starts", "n_step", "num_quantiles", "frame_stack")
        check_at_least(self, 1, "target_update_period", "epsilon_steps")
        check_at_least(self, 2, "num_atoms")
        check_unit_interval(self, "gamma", "epsilon_start", "epsilon_end", "priority_exponent")
        check_unit_interval(self, "target_update_rate", "importance_exponent")
        check_positive(self, "learning_rate", "max_grad_norm", "target_update_rate", "huber_delta")
        check_finite(self, "learning_rate", "v_min", "v_max")
        if self.distribution == "quantile" and not math.isfinite(self.huber_delta or math.inf):
            raise ValueError(
                f"huber_delta is {self.huber_delta}: the quantile loss needs a finite number"
            )
        if self.v_min >= self.v_max:
            raise ValueError(f"v_min is {self.v_min}: it must be below v_max, {self.v_max}")
        if self.learning_starts > self.num_updates * self.steps_per_update:
            raise ValueError(
                f"learning_starts is {self.learning_starts}: it must be <= total_steps, "
                f"{self.total_steps}, or nothing is learned"
            )
        check_equal_shares(self)
        if (self.game_stems or self.game_heads) and len(self.all_games) == 1:
            raise ValueError("game_stems and game_heads are for several games")
        least = least_capacity(self.num_envs, self.frame_stack)
        if self.replay_capacity < least:
            raise ValueError(f"replay_capacity is {self.replay_capacity}: it must be >= {least}")

    @property
    def steps_per_phase(self) -> int:
        """Env steps between two times that it learns."""
        return self.num_envs * self.num_steps

    @property
    def steps_per_update(self) -> int:
        """Env steps between two updates."""
        return self.steps_per_phase * self.phases_per_update

    @property
    def num_updates(self) -> int:
        """Updates in the whole run."""
        return -(-self.total_steps // self.steps_per_update)

    @property
    def num_outputs(self) -> int:
        """Numbers an action, Z."""
        sizes = {"none": 1, "categorical": self.num_atoms, "quantile": self.num_quantiles}
        return sizes[self.distribution]

    @property
    def all_games(self) -> tuple[Game, ...]:
        """The games, one of them if `env` is set."""
        return games_of(self)


def train(
    config: DQNConfig,
    resume: Mapping[str, Any] | None = None,
    initial: Initial | None = None,
) -> Generator[Update, None, None]:
    """Train, yielding after every update; `resume` is what an earlier `Update.capture()` returned.

    The envs are closed when the generator is closed or exhausted. Sets torch's number of threads.

    Args:
        initial: makes the first weights of the random ones, by name (see `rlmask.transfer`).

    Raises:
        EnvError, SpaceError, MaskError: as the envs give cause, before or during training.
        ReplayError: if observations are not stacked as `frame_stack` says.
        FloatingPointError: if a gradient or weights are not finite. Nothing of that update is
            yielded: resuming goes back to the last checkpoint.
    """
    torch.set_num_threads(config.num_threads)
    device = choose_device(config.device)
    with debugging(config.debug), closing(with_learned_mask(envs_of(config), config)) as envs:
        yield from _train(config, envs, device, resume, initial)


def _train(
    config: DQNConfig,
    envs: VectorEnv,
    device: torch.device,
    resume: Mapping[str, Any] | None,
    initial: Initial | None,
) -> Generator[Update, None, None]:
    state = initial_state(config, envs, device)
    first_update = 1
    if resume is None:
        if initial is not None:
            state.network.load_state_dict(initial(state.network.state_dict()))
            state.target_weights.copy_(state.optimizer.weights)
        obs, action_mask = envs.reset()
        state.replay.start(obs, admissible_mask(envs, action_mask))
    else:
        restore(state, resume)
        obs, action_mask = envs.restore(resume["envs"])
        state.replay.resume(obs, admissible_mask(envs, action_mask))
        first_update = resume["update"] + 1
    first_learning_phase = -(-config.learning_starts // config.steps_per_phase)

    for update in range(first_update, config.num_updates + 1):
        episodes: list[Episode] = []
        seen: list[Learned] = []
        drawn: Transition | None = None
        epsilon = learning_rate = 0.0
        phases = range((update - 1) * config.phases_per_update, update * config.phases_per_update)
        for phase in phases:
            epsilon, learning_rate, beta = scheduled(config, phase * config.steps_per_phase)
            obs, action_mask, ended = collect(
                config, envs, state, obs, action_mask, epsilon, device
            )
            episodes += ended
            learning_phase = phase + 1 - first_learning_phase
            if learning_phase >= 0:
                learned, drawn = learn(state, config, learning_rate, beta, device)
                seen += learned
                if rate := target_rate(config, learning_phase):
                    state.target_weights.lerp_(state.optimizer.weights, rate)
        state.optimizer.check_weights()
        state.recent.add(episodes)

        yield Update(
            update=update,
            env_steps=update * config.steps_per_update,
            metrics={
                **state.recent.metrics(),
                **validity_metrics(envs),
                **metrics_of(seen, drawn, state.network),
                "replay/transitions": float(len(state.replay)),
                "train/epsilon": epsilon,
                "train/learning_rate": learning_rate,
            },
            episodes=episodes,
            policy=narrowing(q_policy(state.network), head_of(envs)),
            capture=partial(capture, state, envs, update),
        )


def target_rate(config: DQNConfig, learning_phase: int) -> float:
    """Return the share of the online weights that the target takes over after a phase, from 0 on.

    That of the updates that are due since the phase before: 0 of none, 1 - (1 - τ)^k of k.
    """
    before, after = (
        phases * config.num_gradient_steps // config.target_update_period
        for phases in (learning_phase, learning_phase + 1)
    )
    return 1.0 - (1.0 - config.target_update_rate) ** (after - before)


def scheduled(config: DQNConfig, env_steps: int) -> tuple[float, float, float]:
    """Return epsilon, learning rate and importance exponent after some env steps."""
    epsilon = linear_schedule(
        config.epsilon_start, config.epsilon_end, config.epsilon_steps, env_steps
    )
    learning_rate = config.learning_rate
    if config.anneal_learning_rate:
        num_steps = config.num_updates * config.steps_per_update
        learning_rate = linear_schedule(learning_rate, 0.0, num_steps, env_steps)
    beta = linear_schedule(config.importance_exponent, 1.0, config.total_steps, env_steps)
    return epsilon, learning_rate, beta


@dataclass(frozen=True, kw_only=True)
class State:
    """What changes from update to update; together with the envs, all that a checkpoint holds."""

    network: QNetwork
    optimizer: FlatAdam
    target: QNetwork
    target_weights: Float[Tensor, " W"]
    replay: Replay | JointReplay
    reward_scaler: RewardScaler
    generator: torch.Generator  # of the exploration, on the CPU
    recent: RecentEpisodes


def initial_state(config: DQNConfig, envs: VectorEnv, device: torch.device) -> State:
    """Return the state before the first update.

    Raises:
        SpaceError: if an action has several parts: there is no maximum over each of them.
    """
    nvec = envs.spec.action.nvec
    if len(nvec) > 1:
        raise SpaceError(
            f"{envs.spec.games[0].env_id}: an action has {len(nvec)} parts, {nvec}; dqn needs a "
            "Discrete action, ppo takes several"
        )
    generator = torch.Generator().manual_seed(config.seed)
    network = make_network(config, envs.spec.obs, envs.spec.action, generator).to(device)
    target = copy.deepcopy(network)
    return State(
        network=network,
        optimizer=FlatAdam(network),
        target=target,
        target_weights=flatten_weights(target),
        replay=make_replay(config, envs.spec.obs, envs.spec.action.num_actions),
        reward_scaler=RewardScaler(config.num_envs, config.gamma, len(config.all_games)),
        generator=generator,
        recent=RecentEpisodes(game_names(config.all_games)),
    )


def make_replay(config: DQNConfig, obs: ObsSpec, num_actions: int) -> Replay | JointReplay:
    """Return an empty buffer, or one for each of several games."""
    make = partial(
        Replay,
        obs=obs,
        num_actions=num_actions,
        frame_stack=config.frame_stack,
        prioritized=config.prioritized,
        priority_exponent=config.priority_exponent,
    )
    count = len(config.all_games)
    if count == 1:
        return make(config.num_envs, config.replay_capacity, seed=config.seed)
    each = config.num_envs // count, config.replay_capacity // count
    return JointReplay([make(*each, seed=seed) for seed in seeds_of(config.seed, count)])


def capture(state: State, envs: VectorEnv, update: int) -> dict[str, Any]:
    """Return all that `train(config, resume=...)` needs to go on after an update."""
    return {
        "update": update,
        **envs.spec.capture(),
        "network": state.network.state_dict(),
        "target": state.target.state_dict(),
        "optimizer": state.optimizer.capture(),
        "replay": state.replay.capture(),
        "reward_scaler": state.reward_scaler.capture(),
        "generator": state.generator.get_state(),
        "recent_episodes": state.recent.capture(),
        "envs": envs.capture(),
    }


def restore(state: State, captured: Mapping[str, Any]) -> None:
    """Bring the initial state to what was captured; nothing is shared with it afterwards."""
    state.network.load_state_dict(captured["network"])
    state.target.load_state_dict(captured["target"])
    state.optimizer.restore(captured["optimizer"])
    state.replay.restore(captured["replay"])
    state.reward_scaler.restore(captured["reward_scaler"])
    state.generator.set_state(captured["generator"])
    state.recent.restore(captured["recent_episodes"])


def load_policy(config: DQNConfig, state: Mapping[str, Any], *, greedy: bool, seed: int) -> Policy:
    """Return the policy of a captured state, on the CPU.

    Args:
        greedy: the best valid action; otherwise epsilon-greedy, as at the end of training.
        seed: of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    epsilon = 0.0 if greedy else config.epsilon_end
    policy = q_policy(load_network(config, state), epsilon=epsilon, generator=generator)
    return narrowing(policy, load_head(config, state))


def load_network(config: DQNConfig, state: Mapping[str, Any]) -> QNetwork:
    """Return the network of a captured state, on the CPU."""
    network = make_network(config, *captured_specs(state), torch.Generator())
    network.load_state_dict(state["network"])
    return network


def make_network(
    config: DQNConfig, obs: ObsSpec, action: ActionSpec, generator: torch.Generator
) -> QNetwork:
    """Return the network that a config describes, for an observation and an action spec."""
    support = None
    if config.distribution == "categorical":
        support = torch.linspace(config.v_min, config.v_max, config.num_atoms)
    with torch.random.fork_rng(devices=()):  # torch's layers draw weights that are replaced
        return QNetwork(
            obs,
            action,
            conv_filters=config.conv_filters,
            hidden_sizes=config.hidden_sizes,
            activation=config.activation,
            dueling=config.dueling,
            layer_norm=False,
            num_outputs=config.num_outputs,
            support=support,
            num_games=len(config.all_games),
            game_stems=config.game_stems,
            game_heads=config.game_heads,
            generator=generator,
        )


@torch.inference_mode()
def collect(
    config: DQNConfig,
    envs: VectorEnv,
    state: State,
    obs: Tensor,
    action_mask: Bool[Tensor, " N A"],
    epsilon: float,
    device: torch.device,
) -> tuple[Tensor, Tensor, list[Episode]]:
    """Step the envs and store what happened; return the next obs and mask, and ended episodes.

    obs [N, *obs] and action_mask [N, A] are on the CPU, as the envs give and take them.
    """
    episodes: list[Episode] = []
    for _ in range(config.num_steps):
        values = state.network.values(obs.to(device), action_mask.to(device)).cpu()
        action = masked_epsilon_greedy(values, action_mask, epsilon, state.generator)
        step = envs.step(action)
        state.replay.add(
            action,
            step.reward,
            step.terminated,
            step.obs,
            admissible_mask(envs, step.action_mask),
            step.ended,
            step.final_obs,
            step.final_action_mask,
        )
        if config.normalize_reward:
            ended = step.terminated | step.truncated
            state.reward_scaler.observe(step.reward.unsqueeze(0), ended.unsqueeze(0))
        obs, action_mask = step.obs, step.action_mask
        episodes += step.episodes
    return obs, action_mask, episodes


class Learned(NamedTuple):
    """What is logged of a gradient step."""

    loss: Tensor  # [B]
    error: Tensor  # [B]
    norm: float


@torch.inference_mode()
def learn(
    state: State,
    config: DQNConfig,
    learning_rate: float,
    importance_exponent: float,
    device: torch.device,
) -> tuple[list[Learned], Transition]:
    """Take the gradient steps of a phase; return what to log of each, and what was drawn.

    Their minibatches are drawn together, and the targets of all are from before the first step.

    Raises:
        FloatingPointError: if a gradient is not finite; the weights are then as before that step.
    """
    size = config.batch_size
    drawn, index, weight = state.replay.sample(
        size,
        num_batches=config.num_gradient_steps,
        gamma=config.gamma,
        n_step=config.n_step,
        importance_exponent=importance_exponent,
    )
    if config.normalize_reward:  # what is stored is raw, as the scale changes
        drawn = replace(drawn, reward=state.reward_scaler.scale(drawn.reward.unsqueeze(0))[0])
    if device.type != "cpu":
        drawn, weight = tree_map(lambda x: x.to(device), drawn), weight.to(device)
    if config.learned_mask:  # an eliminated action that was tried is not admissible
        own = drawn.action_mask.scatter(-1, drawn.action.unsqueeze(-1), True)
        drawn = replace(drawn, action_mask=own)
    check_action(drawn.action_mask, drawn.action)
    targets = targets_of(state, drawn, config.double)
    learned: list[Learned] = []
    columns = drawn.obs, drawn.action_mask, drawn.action, targets, weight / size
    minibatches = zip(*(x.chunk(config.num_gradient_steps) for x in columns), strict=True)
    for obs, mask, action, target, share in minibatches:
        outputs, pullback = state.network.vjp(obs, mask)
        terms = loss_of(values_of(outputs, action), target, config)
        pullback(values_of_gradient(terms.grad * share.unsqueeze(-1), action, outputs))
        norm = state.optimizer.step(learning_rate, config.max_grad_norm)
        learned.append(Learned(terms.loss, terms.error, norm))
    if config.prioritized:
        errors = torch.cat([step.error for step in learned])
        state.replay.update_priorities(index, errors.cpu())
    return learned, drawn


def targets_of(state: State, drawn: Transition, double: bool) -> Float[Tensor, " B Z"]:
    """Return reward plus discounted value, or distribution, of the best valid next action.

    The best by the online network if `double`, else by the target network; its value is always the
    target network's.
    """
    mask = bootstrap_mask(drawn.next_action_mask, drawn.discount)
    predictions = state.target.forward(drawn.next_obs, mask)
    if double:
        scores = state.network.values(drawn.next_obs, mask)
    else:
        scores = state.target.expected(predictions)
    best = choose_values(scores, mask, predictions)
    support = state.target.support
    if support is None:
        return discounted(drawn.reward, drawn.discount, best)
    return project_categorical(torch.softmax(best, -1), drawn.reward, drawn.discount, support)


def loss_of(
    prediction: Float[Tensor, " B Z"], target: Float[Tensor, " B Z"], config: DQNConfig
) -> QTerms:
    """Return the loss of what is predicted of the chosen actions."""
    if config.distribution == "categorical":
        return categorical_loss(prediction, target)
    if config.distribution == "quantile":
        return quantile_huber_loss(prediction, target, config.huber_delta or math.nan)
    return td_loss(prediction, target, config.huber_delta)


@torch.inference_mode()
def metrics_of(
    seen: list[Learned], drawn: Transition | None, network: QNetwork
) -> dict[str, float]:
    """Return the metrics of some gradient steps, and of what was drawn last; none of none."""
    if drawn is None:
        return {}
    values = network.values(drawn.obs, drawn.action_mask)
    return {
        "loss/q": torch.cat([step.loss for step in seen]).mean().item(),
        "loss/td_error": torch.cat([step.error for step in seen]).mean().item(),
        "loss/grad_norm": sum(step.norm for step in seen) / len(seen),
        "loss/q_value": masked_max(values, drawn.action_mask).mean().item(),
        "mask/valid_fraction": drawn.action_mask.float().mean().item(),
    }
