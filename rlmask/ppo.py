"""Proximal policy optimisation over the valid actions.

Collect T steps of N envs, estimate advantages, then a few epochs of minibatches on the clipped
surrogate; in each the softmax runs over the mask that was stored with the observation.

Reference: Schulman et al. 2017, arXiv:1707.06347; Huang & Ontañón 2022, arXiv:2006.14171 (masks).

Dimension key: `T` num_steps, `N` num_envs, `B` batch, `A` union actions.
"""

from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rlmask.actor_mimic import ActorMimicNetwork
from rlmask.config import (
    check_at_least,
    check_envs,
    check_finite,
    check_positive,
    check_unit_interval,
)
from rlmask.episodes import RecentEpisodes
from rlmask.learned_mask import head_of, load_head, validity_metrics, with_learned_mask
from rlmask.networks import ActorCritic, choose_device
from rlmask.normalize import PopArt, RewardScaler
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
from rlmask.policies import actor_policy, narrowing
from rlmask.set_network import SetActorCritic
from rlmask.torso import Activation
from rlmask.transfer import Initial
from rlmask.turns import shuffled_in_turn
from rlmask.types import (
    ActionSpec,
    Episode,
    ObsSpec,
    Policy,
    Rollout,
    Update,
    captured_specs,
    split,
    tree_map,
)
from rlmask.validity import ValidityConfig
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

PPONetwork = ActorCritic | ActorMimicNetwork | SetActorCritic


@dataclass(frozen=True, kw_only=True)
class PPOConfig:
    """Settings of a masked PPO run."""

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
    num_envs: int = 64
    """Envs stepped together, N."""
    seed: int = 0
    """Of everything random in the run."""
    total_steps: int = 1_000_000
    """Env steps over all envs; rounded up to whole updates."""
    num_steps: int = 128
    """Steps of each env between two updates, T."""
    num_epochs: int = 4
    """Passes over a rollout."""
    num_minibatches: int = 8
    """Gradient steps in a pass."""
    learning_rate: float = 2.5e-4
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
    anneal_entropy: bool = False
    """Let it fall in a straight line to 0 at total_steps."""
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
    """Divide rewards by the running standard deviation of the discounted return, game by game."""
    popart: bool = False
    """Normalise value targets, game by game, and keep outputs in place (Hessel et al. 2018)."""
    conv_filters: tuple[int, ...] = ()
    """Filters of 3x3 layers on images; none: Mnih et al. 2015, or one of 16 below 36 pixels."""
    hidden_sizes: tuple[int, ...] = (64, 64)
    """Widths of the fully connected layers."""
    activation: Activation = "tanh"
    """After each fully connected layer."""
    shared_torso: bool = False
    """Policy and value share all layers but the last."""
    encoder: Literal["layers", "set"] = "layers"
    """set: observations are rows, one for each action; hidden_sizes are blocks of attention among
    them, and the policy fits any number of rows (`rlmask.set_network`)."""
    num_heads: int = 4
    """Of the attention of the encoder `set`."""
    game_stems: bool = False
    """Each of several games has a first layer of its own (needs shared_torso)."""
    game_heads: bool = False
    """Each of several games has a last layer of its own, not one over the union (the same)."""
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
        check_at_least(self, 1, "num_epochs", "num_minibatches")
        if self.steps_per_update % self.num_minibatches:
            raise ValueError(
                f"num_envs x num_steps = {self.steps_per_update} does not divide into "
                f"num_minibatches = {self.num_minibatches}"
            )
        num_games = len(self.all_games)
        if self.minibatch_size % num_games:
            raise ValueError(
                f"a minibatch is {self.minibatch_size} steps (num_envs x num_steps / "
                f"num_minibatches): it must be a multiple of the {num_games} games, which have "
                "equal shares"
            )
        own_parts = self.game_stems or self.game_heads
        if own_parts and not (num_games > 1 and self.shared_torso):
            raise ValueError(
                "game_stems and game_heads are for several games, with shared_torso: true"
            )
        if self.popart and self.normalize_reward:
            raise ValueError("popart and normalize_reward do the same: choose one")
        if self.popart and num_games > 1 and not self.shared_torso:
            raise ValueError("popart on several games needs shared_torso: true")
        if self.encoder == "set":
            self._check_set()
        check_unit_interval(self, "gamma", "gae_lambda")
        check_positive(self, "learning_rate", "clip_range", "value_clip_range")
        check_positive(self, "max_grad_norm", "target_kl")
        check_finite(self, "learning_rate", "entropy_coef", "value_coef")

    def _check_set(self) -> None:
        other = ("conv_filters", "normalize_obs", "popart", "shared_torso", "game_stems")
        given = [name for name in (*other, "game_heads") if getattr(self, name)]
        ids = self.all_games[0].action_ids
        if given or len(self.all_games) > 1:
            what = given[0] if given else "games"
            raise ValueError(f"encoder: set is for one game, and has no use for {what}")
        if self.learned_mask:
            raise ValueError(
                "encoder: set is for problems of any size, learned_mask for one: choose one"
            )
        if ids is not None and ids != tuple(range(self.num_actions or len(ids))):
            raise ValueError(
                f"action_ids is {ids}, num_actions {self.num_actions}: with encoder: set row i of "
                "the observation is of action i; leave out both"
            )
        width = self.hidden_sizes[0]
        if set(self.hidden_sizes) != {width} or self.num_heads < 1 or width % self.num_heads:
            raise ValueError(
                f"hidden_sizes is {self.hidden_sizes}: with encoder: set all blocks are of one "
                f"width, a multiple of num_heads = {self.num_heads}"
            )

    @property
    def steps_per_update(self) -> int:
        """Env steps between two updates."""
        return self.num_envs * self.num_steps

    @property
    def minibatch_size(self) -> int:
        """Steps of a gradient step."""
        return self.steps_per_update // self.num_minibatches

    @property
    def num_updates(self) -> int:
        """Updates in the whole run."""
        return -(-self.total_steps // self.steps_per_update)

    @property
    def all_games(self) -> tuple[Game, ...]:
        """The games, one of them if `env` is set."""
        return games_of(self)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What the loss reads of each of B steps."""

    obs: Tensor  # [B, *obs]
    action_mask: Tensor  # [B, A]
    action: Tensor  # [B, *parts]
    log_prob: Tensor  # [B], and so the rest
    value: Tensor
    advantage: Tensor
    value_target: Tensor


def train(
    config: PPOConfig,
    resume: Mapping[str, Any] | None = None,
    initial: Initial | None = None,
) -> Generator[Update, None, None]:
    """Train, yielding after every update; `resume` is what an earlier `Update.capture()` returned.

    The envs are closed when the generator is closed or exhausted. Sets torch's number of threads.

    Args:
        initial: makes the first weights of the random ones, by name (see `rlmask.transfer`).

    Raises:
        EnvError, SpaceError, MaskError: as the envs give cause, before or during training.
        NetworkError: if their observations are not what the network is for.
        FloatingPointError: if scores, a gradient or weights are not finite. Nothing of that update
            is yielded: resuming goes back to the last checkpoint.
    """
    torch.set_num_threads(config.num_threads)
    device = choose_device(config.device)
    with debugging(config.debug), closing(with_learned_mask(envs_of(config), config)) as envs:
        yield from _train(config, envs, device, resume, initial)


def _train(
    config: PPOConfig,
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
        obs, action_mask = envs.reset()
    else:
        restore(state, resume)
        obs, action_mask = envs.restore(resume["envs"])
        first_update = resume["update"] + 1

    for update in range(first_update, config.num_updates + 1):
        learning_rate = config.learning_rate
        if config.anneal_learning_rate:
            learning_rate = linear_schedule(learning_rate, 0.0, config.num_updates, update - 1)
        entropy_coef = config.entropy_coef
        if config.anneal_entropy:
            entropy_coef = linear_schedule(entropy_coef, 0.0, config.num_updates, update - 1)
        rollout, episodes, obs, action_mask = collect(
            envs, state.network, obs, action_mask, config.num_steps, state.generator, device
        )
        state.recent.add(episodes)
        batch = with_advantages(rollout, state, config)
        losses = learn(
            state.network,
            state.optimizer,
            batch,
            replace(config, entropy_coef=entropy_coef),
            learning_rate,
            state.generator,
        )
        state.optimizer.check_weights()
        if state.network.obs_scaler is not None:
            state.network.obs_scaler.observe(batch.obs)

        yield Update(
            update=update,
            env_steps=update * config.steps_per_update,
            metrics={
                **state.recent.metrics(),
                **validity_metrics(envs),
                **losses,
                "loss/explained_variance": explained_variance(
                    batch.value, batch.value_target
                ).item(),
                "mask/valid_fraction": batch.action_mask.float().mean().item(),
                "train/learning_rate": learning_rate,
            },
            episodes=episodes,
            policy=narrowing(actor_policy(state.network, greedy=True), head_of(envs)),
            capture=partial(capture, state, envs, update),
        )


@dataclass(frozen=True, kw_only=True)
class State:
    """What changes from update to update; together with the envs, all that a checkpoint holds."""

    network: PPONetwork
    optimizer: FlatAdam
    generator: torch.Generator  # of draws and shuffles, on the CPU
    reward_scaler: RewardScaler
    popart: PopArt
    recent: RecentEpisodes


def initial_state(config: PPOConfig, envs: VectorEnv, device: torch.device) -> State:
    """Return the state before the first update."""
    generator = torch.Generator().manual_seed(config.seed)
    network = make_network(config, envs.spec.obs, envs.spec.action, generator).to(device)
    return State(
        network=network,
        optimizer=FlatAdam(network),
        generator=generator,
        reward_scaler=RewardScaler(config.num_envs, config.gamma, len(config.all_games)),
        popart=PopArt(len(config.all_games)),
        recent=RecentEpisodes(game_names(config.all_games)),
    )


def capture(state: State, envs: VectorEnv, update: int) -> dict[str, Any]:
    """Return all that `train(config, resume=...)` needs to go on after an update."""
    return {
        "update": update,
        **envs.spec.capture(),
        "network": state.network.state_dict(),
        "optimizer": state.optimizer.capture(),
        "generator": state.generator.get_state(),
        "reward_scaler": state.reward_scaler.capture(),
        "popart": state.popart.capture(),
        "recent_episodes": state.recent.capture(),
        "envs": envs.capture(),
    }


def restore(state: State, captured: Mapping[str, Any]) -> None:
    """Bring the initial state to what was captured; nothing is shared with it afterwards."""
    state.network.load_state_dict(captured["network"])
    state.optimizer.restore(captured["optimizer"])
    state.generator.set_state(captured["generator"])
    state.reward_scaler.restore(captured["reward_scaler"])
    state.popart.restore(captured["popart"])
    state.recent.restore(captured["recent_episodes"])


def load_policy(config: PPOConfig, state: Mapping[str, Any], *, greedy: bool, seed: int) -> Policy:
    """Return the policy of a captured state, on the CPU.

    Args:
        greedy: the best valid action; otherwise draw from the softmax over the valid ones.
        seed: of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    policy = actor_policy(load_network(config, state), greedy=greedy, generator=generator)
    return narrowing(policy, load_head(config, state))


def load_network(config: PPOConfig, state: Mapping[str, Any]) -> PPONetwork:
    """Return the network of a captured state, on the CPU."""
    network = make_network(config, *captured_specs(state), torch.Generator())
    network.load_state_dict(state["network"])
    return network


def make_network(
    config: PPOConfig, obs: ObsSpec, action: ActionSpec, generator: torch.Generator
) -> PPONetwork:
    """Return the network that a config describes, for an observation and an action spec."""
    num_games = len(config.all_games)
    with torch.random.fork_rng(devices=()):  # torch's layers draw weights that are replaced
        if config.encoder == "set":
            return SetActorCritic(
                obs,
                action,
                width=config.hidden_sizes[0],
                num_blocks=len(config.hidden_sizes),
                num_heads=config.num_heads,
                generator=generator,
            )
        if num_games > 1 and config.shared_torso:
            return ActorMimicNetwork(
                obs,
                action,
                num_games,
                conv_filters=config.conv_filters,
                hidden_sizes=config.hidden_sizes,
                activation=config.activation,
                game_stems=config.game_stems,
                game_heads=config.game_heads,
                value_head=True,
                normalize_obs=config.normalize_obs,
                generator=generator,
            )
        return ActorCritic(
            obs,
            action,
            conv_filters=config.conv_filters,
            hidden_sizes=config.hidden_sizes,
            activation=config.activation,
            shared_torso=config.shared_torso,
            normalize_obs=config.normalize_obs,
            generator=generator,
        )


def collect(
    envs: VectorEnv,
    network: PPONetwork,
    obs: Tensor,
    action_mask: Tensor,
    num_steps: int,
    generator: torch.Generator,
    device: torch.device,
) -> tuple[Rollout, list[Episode], Tensor, Tensor]:
    """Step the envs T times; return the rollout, ended episodes, and the next obs and mask.

    obs [N, *obs] and action_mask [N, A] are on the CPU, as the envs give and take them.
    """
    nvec = envs.spec.action.nvec
    uniform = torch.rand(
        (num_steps, envs.num_envs, *envs.spec.action.shape), generator=generator
    ).to(device)
    # only what is needed later: a garbage collection looks at every tensor that is alive
    facts: list[tuple[Tensor, ...]] = []
    ends: list[tuple[int, VectorStep]] = []
    for t in range(num_steps):
        obs, action_mask = obs.to(device), action_mask.to(device)
        with torch.inference_mode():
            logits, value = network(obs)
        try:
            with torch.inference_mode():
                action, log_prob = masked_inverse_cdf(
                    split_parts(logits, nvec), split_parts(action_mask, nvec), uniform[t]
                )
            step = envs.step(action.cpu())
        except (RuntimeError, InvalidActionError) as error:
            if logits.isfinite().all():
                raise
            raise FloatingPointError(
                "the policy's scores are not finite. Look for huge observations, or lower "
                "learning_rate"
            ) from error
        happened = step.reward, step.terminated, step.truncated
        facts.append((obs, action_mask, action, log_prob, value, *happened))
        if step.episodes:
            ends.append((t, step))
        obs, action_mask = step.obs, step.action_mask

    all_obs, masks, actions, log_prob, value, reward, terminated, truncated = (
        torch.stack(fact).to(device) for fact in zip(*facts, strict=True)
    )
    check_entities(envs, network, all_obs, masks)
    rollout = Rollout(
        obs=all_obs,
        action_mask=masks,
        action=actions,
        log_prob=log_prob.sum(-1) if len(nvec) > 1 else log_prob,
        value=value,
        next_value=successor_values(network, value, obs.to(device), ends, len(envs.spec.games)),
        reward=reward,
        terminated=terminated,
        truncated=truncated,
    )
    episodes = [episode for _, step in ends for episode in step.episodes]
    return rollout, episodes, obs, action_mask


def check_entities(envs: VectorEnv, network: PPONetwork, obs: Tensor, masks: Tensor) -> None:
    """Raise `NetworkError` if a network for sets would take a valid action for one not there."""
    if isinstance(network, SetActorCritic):
        network.check_mask(envs.spec.games[0].env_id, obs, masks)


@torch.inference_mode()
def successor_values(
    network: PPONetwork,
    value: Tensor,
    last_obs: Tensor,
    ends: list[tuple[int, VectorStep]],
    num_games: int,
) -> Tensor:
    """Return the value of the true successor of each step [T, N].

    It is the value of the next row, except where the env has reset: there the final observation
    counts. (Of a terminated step the value is not used.)

    Args:
        value: [T, N], of the observations that were acted on.
        last_obs: [N, *obs], what is seen after the last step.
        ends: t and the step, wherever an episode ended.
        num_games: env i plays game i modulo so many.
    """
    next_value = torch.cat([value[1:], network(last_obs)[1].unsqueeze(0)])
    for t, step in ends:
        cut = step.truncated[step.ended] & ~step.terminated[step.ended]
        if cut.any():
            index = step.ended[cut].to(value.device)
            final_obs = step.final_obs[cut].to(value.device)
            next_value[t, index] = network(final_obs, index % num_games)[1]
    return next_value


def with_advantages(rollout: Rollout, state: State, config: PPOConfig) -> Batch:
    """Return a rollout's steps in one row, [T, N] -> [T*N], with advantages and value targets.

    With `popart` the network's values are of normalised targets; advantages are raw, then divided.
    """
    ended = rollout.terminated | rollout.truncated
    reward, value, next_value = rollout.reward, rollout.value, rollout.next_value
    if config.normalize_reward:
        state.reward_scaler.observe(reward, ended)
        reward = state.reward_scaler.scale(reward)
    if config.popart:
        value, next_value = state.popart.raw(value), state.popart.raw(next_value)
    advantage = generalized_advantage_estimation(
        reward,
        value,
        next_value,
        config.gamma * ~rollout.terminated,
        ended,
        config.gae_lambda,
    )
    value_target = advantage + value
    if config.popart and state.network.critic_head is not None:
        critic = state.network.critic_head
        state.popart.observe(value_target, critic.weight, critic.bias)
        value, value_target = state.popart.scaled(value), state.popart.scaled(value_target)
        advantage = state.popart.divided(advantage)
    batch = Batch(
        obs=rollout.obs,
        action_mask=rollout.action_mask,
        action=rollout.action,
        log_prob=rollout.log_prob,
        value=value,
        advantage=advantage,
        value_target=value_target,
    )
    return tree_map(lambda x: x.flatten(0, 1), batch)


@torch.inference_mode()
def learn(
    network: PPONetwork,
    optimizer: FlatAdam,
    batch: Batch,
    config: PPOConfig,
    learning_rate: float,
    generator: torch.Generator,
) -> dict[str, float]:
    """Run the epochs of one update; return the mean losses of the last one.

    Raises:
        FloatingPointError: if a gradient is not finite; the weights are then as before that step.
    """
    nvec = network.action_spec.nvec
    size, num_games = config.minibatch_size, len(config.all_games)
    seen: list[PPOTerms] = []
    norms: list[float] = []
    for _ in range(config.num_epochs):
        order = shuffled_in_turn(config.steps_per_update, num_games, generator)
        order = order.to(batch.obs.device)
        shuffled = tree_map(lambda x, order=order: x[order], batch)
        if config.normalize_advantage:
            advantage = standardize(shuffled.advantage.view(-1, size)).flatten()
            shuffled = replace(shuffled, advantage=advantage)
        seen, norms = [], []
        for minibatch in split(shuffled, size):
            logits, value, pullback = network.vjp(minibatch.obs)
            terms, grad_logits, grad_value = masked_ppo_loss(
                split_parts(logits, nvec),
                value,
                split_parts(minibatch.action_mask, nvec),
                minibatch.action,
                minibatch.log_prob,
                minibatch.value,
                minibatch.advantage,
                minibatch.value_target,
                clip_range=config.clip_range,
                value_clip_range=config.value_clip_range,
                value_coef=config.value_coef,
                entropy_coef=config.entropy_coef,
                normalize_entropy=config.normalize_entropy,
            )
            seen.append(terms)
            if config.target_kl is not None and mean_kl(terms) > 1.5 * config.target_kl:
                return losses_of(seen, norms, config)  # before a step that goes further still
            pullback(join_parts(grad_logits, nvec), grad_value)
            norms.append(optimizer.step(learning_rate, config.max_grad_norm))
    return losses_of(seen, norms, config)


def mean_kl(terms: PPOTerms) -> float:
    """Return the estimate of KL(π_old || π) over a minibatch, in nats."""
    return float(approximate_kl(terms.log_ratio).mean())


def losses_of(seen: list[PPOTerms], norms: list[float], config: PPOConfig) -> dict[str, float]:
    """Return the metrics of some minibatches and of the steps taken, if any."""
    norm = {"loss/grad_norm": sum(norms) / len(norms)} if norms else {}
    return {**ppo_metrics(seen, config.clip_range), **norm}


def standardize(x: Float[Tensor, " M B"]) -> Float[Tensor, " M B"]:
    """Shift and scale each row to mean 0 and standard deviation 1; single numbers stay."""
    if x.shape[-1] < 2:
        return x
    std, mean = torch.std_mean(x, -1, keepdim=True)
    return (x - mean) / (std + 1e-8)
