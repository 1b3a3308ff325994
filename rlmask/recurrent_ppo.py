"""Proximal policy optimisation over the valid actions, with a policy that remembers.

As `rlmask.ppo`, but for what memory asks for: a rollout is learned as N sequences of T steps, a
minibatch is some of the envs, and the gradient goes through the whole of a sequence. The memory of
each env at the start of the rollout is kept; inside, it begins anew wherever an episode did.

References: Schulman et al. 2017, arXiv:1707.06347; Huang & Ontañón 2022, arXiv:2006.14171 (masks);
Wierstra et al. 2010, doi:10.1093/jigpal/jzp049 (recurrent policy gradients).

Dimension key: `T` num_steps, `N` num_envs, `A` union actions, `S` state, `M` memory_length.
"""

from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rlmask.config import (
    check_at_least,
    check_envs,
    check_finite,
    check_positive,
    check_unit_interval,
)
from rlmask.episodes import RecentEpisodes
from rlmask.networks import choose_device
from rlmask.normalize import RewardScaler
from rlmask.ops import (
    InvalidActionError,
    PPOTerms,
    approximate_kl,
    debugging,
    explained_variance,
    generalized_advantage_estimation,
    join_parts,
    linear_schedule,
    masked_inverse_cdf,
    masked_ppo_loss,
    ppo_metrics,
    split_parts,
)
from rlmask.optim import FlatAdam
from rlmask.policies import RecurrentPolicy
from rlmask.recurrent import Cell
from rlmask.recurrent_network import Attention, Recollection, RecurrentActorCritic
from rlmask.torso import Activation
from rlmask.types import (
    ActionSpec,
    Episode,
    ObsSpec,
    Policy,
    Rollout,
    Update,
    captured_specs,
    tree_map,
)
from rlmask.vector import (
    Game,
    MaskSource,
    VectorEnv,
    Vectorization,
    VectorStep,
    envs_of,
    game_names,
    games_of,
)


@dataclass(frozen=True, kw_only=True)
class RecurrentPPOConfig:
    """Settings of a masked PPO run whose policy remembers."""

    env: str = ""
    """Gymnasium id of the env; `module:Name-v0` imports the module first."""
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the env, as YAML: '{is_rainy: true}'."""
    mask_source: MaskSource = "auto"
    """Where the env keeps its mask: info or obs ["action_mask"], or method action_masks()."""
    games: tuple[Game, ...] = ()
    """None: a policy that remembers plays one env."""
    num_actions: int | None = None
    """Size of the union action set; None: as many as the env has."""
    vectorization: Vectorization = "sync"
    """sync: one process, best for quick envs; async: one process an env; native: the env's own."""
    num_envs: int = 64
    """Envs stepped together, N."""
    seed: int = 0
    """Of everything random in the run."""
    total_steps: int = 1_000_000
    """Env steps over all envs; rounded up to whole updates."""
    num_steps: int = 64
    """Steps of each env between two updates, T: through so many the gradient goes."""
    num_epochs: int = 4
    """Passes over a rollout."""
    num_minibatches: int = 4
    """Gradient steps in a pass; each is on all steps of its share of the envs."""
    learning_rate: float = 1e-3
    """Of Adam, at the start."""
    anneal_learning_rate: bool = True
    """Let the learning rate fall in a straight line to 0 at total_steps."""
    gamma: float = 0.99
    """Discount per env step."""
    gae_lambda: float = 0.95
    """λ of generalised advantage estimation (Schulman et al. 2016)."""
    clip_range: float = 0.2
    """ε of the clipped surrogate (Schulman et al. 2017)."""
    value_clip_range: float | None = None
    """Clip steps of the value to this, in units of (scaled) reward; None: do not clip."""
    entropy_coef: float = 0.01
    """Weight of the entropy bonus, per nat."""
    normalize_entropy: bool = False
    """Divide each state's entropy by the log of its number of valid actions."""
    value_coef: float = 0.5
    """Weight of the value loss."""
    max_grad_norm: float = 0.5
    """Clip the gradient to this norm."""
    target_kl: float | None = None
    """Stop an update's epochs once the KL divergence exceeds 1.5 times this (nats); None: never."""
    normalize_advantage: bool = True
    """Shift and scale the advantages of a minibatch to mean 0 and standard deviation 1."""
    normalize_obs: bool = False
    """Scale vector observations by their running mean and standard deviation."""
    normalize_reward: bool = False
    """Divide rewards by the running standard deviation of the discounted return."""
    conv_filters: tuple[int, ...] = ()
    """Filters of 3x3 layers on images; none: Mnih et al. 2015, or one of 16 below 36 pixels."""
    hidden_sizes: tuple[int, ...] = (64,)
    """Widths of the fully connected layers before the cell."""
    activation: Activation = "tanh"
    """After each fully connected layer."""
    cell: Cell = "gru"
    """What remembers: gru or lstm."""
    recurrent_size: int = 64
    """Units of the cell."""
    attention: Attention = "none"
    """Look into the last observations at each step: luong (multiplicative), bahdanau (additive)."""
    memory_length: int = 16
    """How many of the episode's last observations attention sees, M; the present one is one."""
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
        if self.games:
            raise ValueError("recurrent_ppo plays one env: set env, not games; ppo plays several")
        check_envs(self)
        check_at_least(self, 1, "num_epochs", "num_minibatches", "recurrent_size", "memory_length")
        if self.num_envs % self.num_minibatches:
            raise ValueError(
                f"num_envs = {self.num_envs} does not divide into num_minibatches = "
                f"{self.num_minibatches}: a minibatch is some of the envs, all steps of each"
            )
        check_unit_interval(self, "gamma", "gae_lambda")
        check_positive(self, "learning_rate", "clip_range", "value_clip_range")
        check_positive(self, "max_grad_norm", "target_kl")
        check_finite(self, "learning_rate", "entropy_coef", "value_coef")

    @property
    def steps_per_update(self) -> int:
        """Env steps between two updates."""
        return self.num_envs * self.num_steps

    @property
    def num_updates(self) -> int:
        """Updates in the whole run."""
        return -(-self.total_steps // self.steps_per_update)

    @property
    def all_games(self) -> tuple[Game, ...]:
        """The env, as the one game."""
        return games_of(self)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What the loss reads of T steps of N envs; all that network and loss see of a minibatch."""

    obs: Tensor  # [T, N, *obs]
    age: Tensor  # [T, N]
    action_mask: Tensor  # [T, N, A]
    action: Tensor  # [T, N, *parts]
    log_prob: Tensor  # [T, N], and so the rest
    value: Tensor
    advantage: Tensor
    value_target: Tensor


def train(
    config: RecurrentPPOConfig, resume: Mapping[str, Any] | None = None
) -> Generator[Update, None, None]:
    """Train, yielding after every update; `resume` is what an earlier `Update.capture()` returned.

    The envs are closed when the generator is closed or exhausted. Sets torch's number of threads.

    Raises:
        EnvError, SpaceError, MaskError: as the envs give cause, before or during training.
        FloatingPointError: if scores, a gradient or weights are not finite. Nothing of that update
            is yielded: resuming goes back to the last checkpoint.
    """
    torch.set_num_threads(config.num_threads)
    device = choose_device(config.device)
    with debugging(config.debug), closing(envs_of(config)) as envs:
        yield from _train(config, envs, device, resume)


def _train(
    config: RecurrentPPOConfig,
    envs: VectorEnv,
    device: torch.device,
    resume: Mapping[str, Any] | None,
) -> Generator[Update, None, None]:
    state = initial_state(config, envs, device)
    first_update = 1
    if resume is None:
        remembered = state.network.nothing(config.num_envs)
        obs, action_mask = envs.reset()
    else:
        restore(state, resume)
        remembered = tree_map(lambda x: x.to(device), Recollection(**resume["remembered"]))
        obs, action_mask = envs.restore(resume["envs"])
        first_update = resume["update"] + 1

    for update in range(first_update, config.num_updates + 1):
        learning_rate = config.learning_rate
        if config.anneal_learning_rate:
            learning_rate = linear_schedule(learning_rate, 0.0, config.num_updates, update - 1)
        before = remembered
        rollout, age, episodes, remembered, obs, action_mask = collect(
            envs, state.network, before, obs, action_mask, config.num_steps, state.generator
        )
        state.recent.add(episodes)
        batch = with_advantages(rollout, age, state, config)
        losses = learn(
            state.network, state.optimizer, batch, before, config, learning_rate, state.generator
        )
        state.optimizer.check_weights()
        if state.network.obs_scaler is not None:
            state.network.obs_scaler.observe(batch.obs.flatten(0, 1))

        yield Update(
            update=update,
            env_steps=update * config.steps_per_update,
            metrics={
                **state.recent.metrics(),
                **losses,
                "loss/explained_variance": explained_variance(
                    batch.value.flatten(), batch.value_target.flatten()
                ).item(),
                "mask/valid_fraction": batch.action_mask.float().mean().item(),
                "train/learning_rate": learning_rate,
            },
            episodes=episodes,
            policy=RecurrentPolicy(state.network, greedy=True),
            capture=partial(capture, state, envs, remembered, update),
        )


@dataclass(frozen=True, kw_only=True)
class State:
    """What changes from update to update; a checkpoint has the envs and what is remembered too."""

    network: RecurrentActorCritic
    optimizer: FlatAdam
    generator: torch.Generator  # of draws and shuffles, on the CPU
    reward_scaler: RewardScaler
    recent: RecentEpisodes


def initial_state(config: RecurrentPPOConfig, envs: VectorEnv, device: torch.device) -> State:
    """Return the state before the first update."""
    generator = torch.Generator().manual_seed(config.seed)
    network = make_network(config, envs.spec.obs, envs.spec.action, generator).to(device)
    return State(
        network=network,
        optimizer=FlatAdam(network),
        generator=generator,
        reward_scaler=RewardScaler(config.num_envs, config.gamma),
        recent=RecentEpisodes(game_names(config.all_games)),
    )


def capture(state: State, envs: VectorEnv, remembered: Recollection, update: int) -> dict[str, Any]:
    """Return all that `train(config, resume=...)` needs to go on after an update."""
    return {
        "update": update,
        **envs.spec.capture(),
        "network": state.network.state_dict(),
        "optimizer": state.optimizer.capture(),
        "generator": state.generator.get_state(),
        "reward_scaler": state.reward_scaler.capture(),
        "recent_episodes": state.recent.capture(),
        "remembered": dict(vars(remembered)),
        "envs": envs.capture(),
    }


def restore(state: State, captured: Mapping[str, Any]) -> None:
    """Bring the initial state to what was captured; nothing is shared with it afterwards."""
    state.network.load_state_dict(captured["network"])
    state.optimizer.restore(captured["optimizer"])
    state.generator.set_state(captured["generator"])
    state.reward_scaler.restore(captured["reward_scaler"])
    state.recent.restore(captured["recent_episodes"])


def load_policy(
    config: RecurrentPPOConfig, state: Mapping[str, Any], *, greedy: bool, seed: int
) -> Policy:
    """Return the policy of a captured state, on the CPU; it remembers, see `RecurrentPolicy`.

    Args:
        greedy: the best valid action; otherwise draw from the softmax over the valid ones.
        seed: of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    return RecurrentPolicy(load_network(config, state), greedy=greedy, generator=generator)


def load_network(config: RecurrentPPOConfig, state: Mapping[str, Any]) -> RecurrentActorCritic:
    """Return the network of a captured state, on the CPU."""
    network = make_network(config, *captured_specs(state), torch.Generator())
    network.load_state_dict(state["network"])
    return network


def make_network(
    config: RecurrentPPOConfig, obs: ObsSpec, action: ActionSpec, generator: torch.Generator
) -> RecurrentActorCritic:
    """Return the network that a config describes, for an observation and an action spec."""
    with torch.random.fork_rng(devices=()):  # torch's layers draw weights that are replaced
        return RecurrentActorCritic(
            obs,
            action,
            conv_filters=config.conv_filters,
            hidden_sizes=config.hidden_sizes,
            activation=config.activation,
            normalize_obs=config.normalize_obs,
            cell=config.cell,
            recurrent_size=config.recurrent_size,
            attention=config.attention,
            memory_length=config.memory_length,
            generator=generator,
        )


def collect(
    envs: VectorEnv,
    network: RecurrentActorCritic,
    remembered: Recollection,
    obs: Tensor,
    action_mask: Tensor,
    num_steps: int,
    generator: torch.Generator,
) -> tuple[Rollout, Tensor, list[Episode], Recollection, Tensor, Tensor]:
    """Step the envs T times.

    obs [N, *obs] and action_mask [N, A] are on the CPU, as the envs give and take them.

    Returns:
        The rollout, the age of the episode at each of its steps [T, N], the episodes that ended,
        and what there is to go on from: what is remembered, obs and mask.
    """
    device = remembered.state.device
    shape = (num_steps, envs.num_envs, *envs.spec.action.shape)
    uniform = torch.rand(shape, generator=generator).to(device)
    facts: list[tuple[Tensor, ...]] = []
    cut: list[tuple[int, Tensor, Tensor]] = []  # t, envs, values of the final observations
    episodes: list[Episode] = []
    state, age = remembered.state, remembered.age
    with torch.inference_mode():
        recent = network.encode(remembered.history)
    for t in range(num_steps):
        obs, action_mask = obs.to(device), action_mask.to(device)
        with torch.inference_mode():
            logits, value, state, recent = network.act(obs, age, state, recent)
        action, log_prob, step = act(envs, logits, action_mask, uniform[t])
        happened = step.reward, step.terminated, step.truncated
        facts.append((obs, age, action_mask, action, log_prob, value, *happened))
        age = age + 1
        if step.episodes:
            cut += final_values(network, t, step, age, state, recent)
            episodes += step.episodes
            age[step.ended.to(device)] = 0
        obs, action_mask = step.obs, step.action_mask

    all_obs, ages, masks, actions, log_prob, value, reward, terminated, truncated = (
        torch.stack(fact).to(device) for fact in zip(*facts, strict=True)
    )
    with torch.inference_mode():
        last_value = network.act(obs.to(device), age, state, recent)[1]
    rollout = Rollout(
        obs=all_obs,
        action_mask=masks,
        action=actions,
        log_prob=log_prob,
        value=value,
        next_value=successor_values(value, last_value, cut),
        reward=reward,
        terminated=terminated,
        truncated=truncated,
    )
    past = len(remembered.history)
    history = torch.cat([remembered.history, all_obs])[num_steps:] if past else remembered.history
    after = Recollection(state=state, history=history, age=age)
    return rollout, ages, episodes, after, obs, action_mask


def act(
    envs: VectorEnv, logits: Tensor, action_mask: Tensor, uniform: Tensor
) -> tuple[Tensor, Tensor, VectorStep]:
    """Draw a valid action in every env and take it; return it, its log-probability, and the step.

    Raises:
        FloatingPointError: if the scores are not finite.
    """
    nvec = envs.spec.action.nvec
    try:
        with torch.inference_mode():
            action, log_prob = masked_inverse_cdf(
                split_parts(logits, nvec), split_parts(action_mask, nvec), uniform
            )
        return action, log_prob.sum(-1) if len(nvec) > 1 else log_prob, envs.step(action.cpu())
    except (RuntimeError, InvalidActionError) as error:
        if logits.isfinite().all():
            raise
        raise FloatingPointError(
            "the policy's scores are not finite. Look for huge observations, or lower learning_rate"
        ) from error


@torch.inference_mode()
def final_values(
    network: RecurrentActorCritic,
    t: int,
    step: VectorStep,
    age: Tensor,
    state: Tensor,
    recent: Tensor,
) -> list[tuple[int, Tensor, Tensor]]:
    """Return t, the envs whose episode was cut at this step, and the values of what they saw last.

    They are seen with the memory of their own episode; age [N], state [N, S] and recent
    [M - 1, N, H] are what it would have gone on with.
    """
    is_cut = step.truncated[step.ended] & ~step.terminated[step.ended]
    if not is_cut.any():
        return []
    index = step.ended[is_cut].to(age.device)
    final_obs = step.final_obs[is_cut].to(age.device)
    value = network.act(final_obs, age[index], state[index], recent[:, index])[1]
    return [(t, index, value)]


@torch.inference_mode()
def successor_values(
    value: Float[Tensor, " T N"],
    last_value: Float[Tensor, " N"],
    cut: list[tuple[int, Tensor, Tensor]],
) -> Float[Tensor, " T N"]:
    """Return the value of the true successor of each step.

    It is the value of the next row, except where an episode was cut: there it is one of
    `final_values`. (Of a terminated step the value is not used.)
    """
    next_value = torch.cat([value[1:], last_value.unsqueeze(0)])
    for t, index, final_value in cut:
        next_value[t, index] = final_value
    return next_value


def with_advantages(
    rollout: Rollout, age: Tensor, state: State, config: RecurrentPPOConfig
) -> Batch:
    """Return a rollout's steps with advantages and value targets, [T, N]."""
    ended = rollout.terminated | rollout.truncated
    reward = rollout.reward
    if config.normalize_reward:
        state.reward_scaler.observe(reward, ended)
        reward = state.reward_scaler.scale(reward)
    advantage = generalized_advantage_estimation(
        reward,
        rollout.value,
        rollout.next_value,
        config.gamma * ~rollout.terminated,
        ended,
        config.gae_lambda,
    )
    return Batch(
        obs=rollout.obs,
        age=age,
        action_mask=rollout.action_mask,
        action=rollout.action,
        log_prob=rollout.log_prob,
        value=rollout.value,
        advantage=advantage,
        value_target=advantage + rollout.value,
    )


def learn(
    network: RecurrentActorCritic,
    optimizer: FlatAdam,
    batch: Batch,
    before: Recollection,
    config: RecurrentPPOConfig,
    learning_rate: float,
    generator: torch.Generator,
) -> dict[str, float]:
    """Run the epochs of one update; return the mean losses of the last one.

    Args:
        before: what was remembered at the start of the rollout.

    Raises:
        FloatingPointError: if a gradient is not finite; the weights are then as before that step.
    """
    seen: list[PPOTerms] = []
    norms: list[float] = []
    for _ in range(config.num_epochs):
        order = torch.randperm(config.num_envs, generator=generator).to(batch.obs.device)
        seen, norms = [], []
        for rows in order.chunk(config.num_minibatches):
            minibatch = tree_map(lambda x, rows=rows: x[:, rows], batch)
            logits, value = network.forward(
                minibatch.obs, minibatch.age, before.state[rows], before.history[:, rows]
            )
            terms, gradients = loss_of(minibatch, logits, value, config, network.action_spec.nvec)
            seen.append(terms)
            if config.target_kl is not None and mean_kl(terms) > 1.5 * config.target_kl:
                return losses_of(seen, norms, config)  # before a step that goes further still
            optimizer.gradient.zero_()
            torch.autograd.backward((logits, value), gradients)
            norms.append(optimizer.step(learning_rate, config.max_grad_norm))
    return losses_of(seen, norms, config)


@torch.no_grad()
def loss_of(
    minibatch: Batch,
    logits: Float[Tensor, " T N A"],
    value: Float[Tensor, " T N"],
    config: RecurrentPPOConfig,
    nvec: tuple[int, ...],
) -> tuple[PPOTerms, tuple[Tensor, Tensor]]:
    """Return the terms of the loss, and its gradient by logits [T, N, A] and value [T, N]."""
    flat = tree_map(lambda x: x.flatten(0, 1), minibatch)
    if config.normalize_advantage:
        flat = replace(flat, advantage=standardize(flat.advantage))
    terms, grad_logits, grad_value = masked_ppo_loss(
        split_parts(logits.flatten(0, 1), nvec),
        value.flatten(),
        split_parts(flat.action_mask, nvec),
        flat.action,
        flat.log_prob,
        flat.value,
        flat.advantage,
        flat.value_target,
        clip_range=config.clip_range,
        value_clip_range=config.value_clip_range,
        value_coef=config.value_coef,
        entropy_coef=config.entropy_coef,
        normalize_entropy=config.normalize_entropy,
    )
    return terms, (join_parts(grad_logits, nvec).view_as(logits), grad_value.view_as(value))


def mean_kl(terms: PPOTerms) -> float:
    """Return the estimate of KL(π_old || π) over a minibatch, in nats."""
    return float(approximate_kl(terms.log_ratio).mean())


def losses_of(
    seen: list[PPOTerms], norms: list[float], config: RecurrentPPOConfig
) -> dict[str, float]:
    """Return the metrics of some minibatches and of the steps taken, if any."""
    norm = {"loss/grad_norm": sum(norms) / len(norms)} if norms else {}
    return {**ppo_metrics(seen, config.clip_range), **norm}


def standardize(x: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Shift and scale to mean 0 and standard deviation 1; a single number stays."""
    if len(x) < 2:
        return x
    std, mean = torch.std_mean(x)
    return (x - mean) / (std + 1e-8)
