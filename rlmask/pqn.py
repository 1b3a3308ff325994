"""Parallelised Q-learning over the valid actions: no replay buffer and no target network.

Step many envs for a few steps, compute λ-returns of the greedy policy over the valid actions, learn
them by a few epochs of minibatches, and forget. Layer norm keeps it from diverging.

Reference: Gallici et al. 2024, arXiv:2407.04811, algorithm 1; the returns are Peng's Q(λ) (Peng &
Williams 1996, doi:10.1007/BF00114731).

Dimension key: `T` num_steps, `N` num_envs, `B` batch, `A` union actions.
"""

from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlmask.config import (
    check_at_least,
    check_envs,
    check_finite,
    check_positive,
    check_unit_interval,
)
from rlmask.episodes import RecentEpisodes
from rlmask.networks import QNetwork, choose_device
from rlmask.ops import (
    QTerms,
    check_action,
    debugging,
    lambda_return,
    linear_schedule,
    masked_epsilon_greedy,
    masked_max,
    td_loss,
    values_of,
    values_of_gradient,
)
from rlmask.optim import FlatAdam
from rlmask.policies import q_policy
from rlmask.torso import Activation
from rlmask.transfer import Initial
from rlmask.types import (
    ActionSpec,
    Episode,
    ObsSpec,
    Policy,
    Update,
    captured_specs,
    split,
    tree_map,
)
from rlmask.vector import (
    Game,
    MaskSource,
    SpaceError,
    VectorEnv,
    Vectorization,
    VectorStep,
    envs_of,
    game_names,
    games_of,
)


@dataclass(frozen=True, kw_only=True)
class PQNConfig:
    """Settings of a masked PQN run."""

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
    total_steps: int = 500_000
    """Env steps over all envs; rounded up to whole updates."""
    num_steps: int = 32
    """Steps of each env between two updates, T."""
    num_epochs: int = 2
    """Passes over what was just seen."""
    num_minibatches: int = 4
    """Gradient steps in a pass."""
    learning_rate: float = 5e-4
    """Of Adam, at the start."""
    anneal_learning_rate: bool = True
    """Let the learning rate fall in a straight line to 0 at total_steps."""
    max_grad_norm: float = 10.0
    """Clip the gradient to this norm."""
    gamma: float = 0.99
    """Discount per env step."""
    q_lambda: float = 0.65
    """λ of the returns: 0 bootstraps after one step, 1 at the end of the episode or rollout."""
    huber_delta: float | None = None
    """Where the loss turns linear, in units of value; None: squared error."""
    epsilon_start: float = 1.0
    """Share of uniformly drawn valid actions, at first."""
    epsilon_end: float = 0.05
    """And from epsilon_steps on."""
    epsilon_steps: int = 50_000
    """Env steps over which it falls in a straight line."""
    conv_filters: tuple[int, ...] = ()
    """Filters of 3x3 layers on images; none: Mnih et al. 2015, or one of 16 below 36 pixels."""
    hidden_sizes: tuple[int, ...] = (128, 128)
    """Widths of the fully connected layers."""
    activation: Activation = "relu"
    """After each fully connected layer."""
    layer_norm: bool = True
    """Before each activation; what makes up for the target network."""
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
        check_at_least(self, 1, "num_epochs", "num_minibatches", "epsilon_steps")
        if self.steps_per_update % self.num_minibatches:
            raise ValueError(
                f"num_envs x num_steps = {self.steps_per_update} does not divide into "
                f"num_minibatches = {self.num_minibatches}"
            )
        check_unit_interval(self, "gamma", "q_lambda", "epsilon_start", "epsilon_end")
        check_positive(self, "learning_rate", "max_grad_norm", "huber_delta")
        check_finite(self, "learning_rate")

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
        """The games, one of them if `env` is set."""
        return games_of(self)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What the loss reads of each of B steps."""

    obs: Tensor  # [B, *obs]
    action_mask: Tensor  # [B, A]
    action: Tensor  # [B]
    value_target: Tensor  # [B]


def train(
    config: PQNConfig,
    resume: Mapping[str, Any] | None = None,
    initial: Initial | None = None,
) -> Generator[Update, None, None]:
    """Train, yielding after every update; `resume` is what an earlier `Update.capture()` returned.

    The envs are closed when the generator is closed or exhausted. Sets torch's number of threads.

    Args:
        initial: makes the first weights of the random ones, by name (see `rlmask.transfer`).

    Raises:
        EnvError, SpaceError, MaskError: as the envs give cause, before or during training.
        FloatingPointError: if a gradient or weights are not finite. Nothing of that update is
            yielded: resuming goes back to the last checkpoint.
    """
    torch.set_num_threads(config.num_threads)
    device = choose_device(config.device)
    with debugging(config.debug), closing(envs_of(config)) as envs:
        yield from _train(config, envs, device, resume, initial)


def _train(
    config: PQNConfig,
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
        epsilon = linear_schedule(
            config.epsilon_start,
            config.epsilon_end,
            config.epsilon_steps,
            (update - 1) * config.steps_per_update,
        )
        batch, episodes, obs, action_mask = collect(
            envs, state, obs, action_mask, config, epsilon, device
        )
        state.recent.add(episodes)
        losses = learn(state, batch, config, learning_rate)
        state.optimizer.check_weights()

        yield Update(
            update=update,
            env_steps=update * config.steps_per_update,
            metrics={
                **state.recent.metrics(),
                **losses,
                "mask/valid_fraction": batch.action_mask.float().mean().item(),
                "train/epsilon": epsilon,
                "train/learning_rate": learning_rate,
            },
            episodes=episodes,
            policy=q_policy(state.network),
            capture=partial(capture, state, envs, update),
        )


@dataclass(frozen=True, kw_only=True)
class State:
    """What changes from update to update; together with the envs, all that a checkpoint holds."""

    network: QNetwork
    optimizer: FlatAdam
    generator: torch.Generator  # of exploration and shuffles, on the CPU
    recent: RecentEpisodes


def initial_state(config: PQNConfig, envs: VectorEnv, device: torch.device) -> State:
    """Return the state before the first update.

    Raises:
        SpaceError: if an action has several parts: there is no maximum over each of them.
    """
    nvec = envs.spec.action.nvec
    if len(nvec) > 1:
        raise SpaceError(
            f"{envs.spec.games[0].env_id}: an action has {len(nvec)} parts, {nvec}; pqn needs a "
            "Discrete action, ppo takes several"
        )
    generator = torch.Generator().manual_seed(config.seed)
    network = make_network(config, envs.spec.obs, envs.spec.action, generator).to(device)
    return State(
        network=network,
        optimizer=FlatAdam(network),
        generator=generator,
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
        "recent_episodes": state.recent.capture(),
        "envs": envs.capture(),
    }


def restore(state: State, captured: Mapping[str, Any]) -> None:
    """Bring the initial state to what was captured; nothing is shared with it afterwards."""
    state.network.load_state_dict(captured["network"])
    state.optimizer.restore(captured["optimizer"])
    state.generator.set_state(captured["generator"])
    state.recent.restore(captured["recent_episodes"])


def load_policy(config: PQNConfig, state: Mapping[str, Any], *, greedy: bool, seed: int) -> Policy:
    """Return the policy of a captured state, on the CPU.

    Args:
        greedy: the best valid action; otherwise epsilon-greedy, as at the end of training.
        seed: of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    epsilon = 0.0 if greedy else config.epsilon_end
    return q_policy(load_network(config, state), epsilon=epsilon, generator=generator)


def load_network(config: PQNConfig, state: Mapping[str, Any]) -> QNetwork:
    """Return the network of a captured state, on the CPU."""
    network = make_network(config, *captured_specs(state), torch.Generator())
    network.load_state_dict(state["network"])
    return network


def make_network(
    config: PQNConfig, obs: ObsSpec, action: ActionSpec, generator: torch.Generator
) -> QNetwork:
    """Return the network that a config describes, for an observation and an action spec."""
    with torch.random.fork_rng(devices=()):  # torch's layers draw weights that are replaced
        return QNetwork(
            obs,
            action,
            conv_filters=config.conv_filters,
            hidden_sizes=config.hidden_sizes,
            activation=config.activation,
            dueling=False,
            layer_norm=config.layer_norm,
            num_outputs=1,
            support=None,
            generator=generator,
        )


@torch.inference_mode()
def collect(
    envs: VectorEnv,
    state: State,
    obs: Tensor,
    action_mask: Bool[Tensor, " N A"],
    config: PQNConfig,
    epsilon: float,
    device: torch.device,
) -> tuple[Batch, list[Episode], Tensor, Tensor]:
    """Step the envs T times; return the steps with their λ-returns, and the next obs and mask.

    obs [N, *obs] and action_mask [N, A] are on the CPU, as the envs give and take them.
    """
    facts: list[tuple[Tensor, ...]] = []
    ends: list[tuple[int, VectorStep]] = []
    for t in range(config.num_steps):
        values = state.network.values(obs.to(device), action_mask.to(device)).cpu()
        action = masked_epsilon_greedy(values, action_mask, epsilon, state.generator)
        step = envs.step(action)
        best = masked_max(values, action_mask)
        happened = step.reward, step.terminated, step.truncated
        facts.append((obs, action_mask, action, best, *happened))
        if step.episodes:
            ends.append((t, step))
        obs, action_mask = step.obs, step.action_mask

    all_obs, masks, actions, best, reward, terminated, truncated = (
        torch.stack(fact) for fact in zip(*facts, strict=True)
    )
    value_target = lambda_return(
        reward,
        successor_values(state.network, best, obs, action_mask, ends, device),
        config.gamma * ~terminated,
        terminated | truncated,
        config.q_lambda,
    )
    rollout = Batch(obs=all_obs, action_mask=masks, action=actions, value_target=value_target)
    batch = tree_map(lambda x: x.flatten(0, 1).to(device), rollout)  # [T, N] -> [T*N]
    episodes = [episode for _, step in ends for episode in step.episodes]
    return batch, episodes, obs, action_mask


def successor_values(
    network: QNetwork,
    best: Float[Tensor, " T N"],
    last_obs: Tensor,
    last_mask: Bool[Tensor, " N A"],
    ends: list[tuple[int, VectorStep]],
    device: torch.device,
) -> Float[Tensor, " T N"]:
    """Return the highest value among the valid actions of the true successor of each step.

    It is that of the next row, except where the env has reset: there the final observation counts,
    with its mask. (Of a terminated step the value is not used.)

    Args:
        best: [T, N], of the observations that were acted on.
        last_obs, last_mask: what is seen after the last step.
        ends: t and the step, wherever an episode ended.
    """

    def best_of(obs: Tensor, mask: Tensor) -> Tensor:
        return masked_max(network.values(obs.to(device), mask.to(device)).cpu(), mask)

    next_best = torch.cat([best[1:], best_of(last_obs, last_mask).unsqueeze(0)])
    for t, step in ends:
        cut = step.truncated[step.ended] & ~step.terminated[step.ended]
        if cut.any():
            final = best_of(step.final_obs[cut], step.final_action_mask[cut])
            next_best[t, step.ended[cut]] = final
    return next_best


@torch.inference_mode()
def learn(state: State, batch: Batch, config: PQNConfig, learning_rate: float) -> dict[str, float]:
    """Run the epochs of one update; return the mean losses of the last one.

    Raises:
        FloatingPointError: if a gradient is not finite; the weights are then as before that step.
    """
    size = config.steps_per_update // config.num_minibatches
    seen: list[QTerms] = []
    norms: list[float] = []
    check_action(batch.action_mask, batch.action)
    for _ in range(config.num_epochs):
        order = torch.randperm(config.steps_per_update, generator=state.generator)
        order = order.to(batch.obs.device)
        shuffled = tree_map(lambda x, order=order: x[order], batch)
        seen, norms = [], []
        for minibatch in split(shuffled, size):
            outputs, pullback = state.network.vjp(minibatch.obs, minibatch.action_mask)
            prediction = values_of(outputs, minibatch.action)
            terms = td_loss(prediction, minibatch.value_target.unsqueeze(-1), config.huber_delta)
            pullback(values_of_gradient(terms.grad / size, minibatch.action, outputs))
            seen.append(terms)
            norms.append(state.optimizer.step(learning_rate, config.max_grad_norm))
    return {
        "loss/q": torch.cat([terms.loss for terms in seen]).mean().item(),
        "loss/td_error": torch.cat([terms.error for terms in seen]).mean().item(),
        "loss/grad_norm": sum(norms) / len(norms),
        "loss/q_value": batch.value_target.mean().item(),
    }
