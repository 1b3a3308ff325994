"""Actor-Mimic: the experts of many games distilled into one policy over the valid actions.

The student plays all games, the teacher of each game says what it would do there, and the student's
softmax over the valid actions of the union is drawn towards it. Teachers can act in its place;
recorded states can take the place of both; a reward term can go beyond the teachers.

Reference: Parisotto, Ba & Salakhutdinov 2016, arXiv:1511.06342 (Actor-Mimic); Rusu et al. 2016,
arXiv:1511.06295 (Policy Distillation); Czarnecki et al. 2019, arXiv:1902.02186 (a comparison);
Schmitt et al. 2018, arXiv:1803.03835 (kickstarting).

Dimension key: `G` games, `T` num_steps, `N` num_envs, `B` batch_size, `A` union actions, `H`
features of a teacher. Rows of all games come in turn: row i is of game i modulo G.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rlmask.actor_mimic import ActorMimicNetwork
from rlmask.config import (
    check_at_least,
    check_envs,
    check_equal_shares,
    check_finite,
    check_positive,
    check_unit_interval,
)
from rlmask.episodes import RecentEpisodes, metric_suffixes
from rlmask.layers import linear_pullback
from rlmask.networks import choose_device
from rlmask.normalize import RewardScaler
from rlmask.ops import (
    BITS,
    Confidence,
    DistillTerms,
    PPOTerms,
    action_gap,
    argmax_regression_loss,
    auto_temperature,
    check_confidence,
    confidence_bonus,
    debugging,
    expected_entropy_loss,
    feature_regression_loss,
    generalized_advantage_estimation,
    linear_schedule,
    masked_argmax,
    masked_epsilon_greedy,
    masked_ppo_loss,
    masked_sample,
    policy_regression_loss,
    ppo_metrics,
    q_regression_loss,
    reverse_kl_loss,
    teacher_figures,
    unmasked_policy_regression_loss,
)
from rlmask.optim import FlatAdam
from rlmask.policies import actor_policy
from rlmask.quantize import QuantizedNetwork
from rlmask.recorded import read_states
from rlmask.states import Labelled, StateBuffer
from rlmask.teachers import Teacher, TeacherError, label
from rlmask.torso import Activation
from rlmask.turns import shuffled_in_turn
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

Student = ActorMimicNetwork | QuantizedNetwork

CALIBRATION_STEPS = 200  # of each env, to see the action gaps of teachers
LABEL_ROWS = 4096  # of recorded states that teachers see at once


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Settings of a distillation run."""

    teachers: tuple[str, ...] = ()
    """Of each game: the directory of a PPO, DQN or PQN run, or module:function, which gets
    observations and masks of the game itself and returns logits."""
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
    num_envs: int = 80
    """Envs stepped together, N."""
    seed: int = 0
    """Of everything random in the run."""
    total_steps: int = 500_000
    """Env steps over all envs; rounded up to whole updates."""
    num_steps: int = 16
    """Steps of each env between two times that it learns, T."""
    num_gradient_steps: int = 16
    """Gradient steps of an update."""
    batch_size: int = 320
    """States of a gradient step, an equal share of each game."""
    replay_capacity: int = 50_000
    """States that are kept, of each game."""
    learning_starts: int = 500
    """States of each game before the first gradient step."""
    recorded: str = ""
    """File of recorded states (`rlmask record RUN FILE.safetensors`) to learn from; nobody acts."""
    loss: Literal["policy", "reverse", "expected_entropy", "argmax", "values"] = "policy"
    """policy: KL(teacher || student); reverse: KL(student || teacher); expected_entropy: the cross
    entropy of the latter, as loss and as reward (Czarnecki et al. 2019); argmax: the teacher's best
    action; values: squared error of action values (both Rusu et al. 2016)."""
    temperature: float | Literal["auto"] = "auto"
    """τ of softmax(teacher's scores / τ); auto: 1 for a policy's logits, and for action values a
    quarter of the median gap between the best and the second, game by game."""
    mask_softmax: bool = True
    """False: learn through the softmax over all actions, to see what the mask is good for."""
    confidence_bonus: float = 0.0
    """α of a bonus α max c(a) in the loss `policy`, like a lower temperature."""
    confidence_of: Confidence = "log_probs"
    """c: log_probs, or probs; that of logits is refused, since it has no bound."""
    feature_coef: float = 0.0
    """β of the feature regression (Parisotto et al. 2016: 0.01); 0: none."""
    teacher_share_start: float = 0.0
    """Share of the steps at which the teacher acts, at first; 0: the student does."""
    teacher_share_end: float = 0.0
    """And from teacher_share_steps on (1 to 0 is DAgger, Ross et al. 2011)."""
    teacher_share_steps: int = 100_000
    """Env steps over which it changes in a straight line."""
    draw_actions: bool = False
    """Whoever acts draws from the softmax, in place of taking the best valid action."""
    epsilon: float = 0.1
    """Share of uniformly drawn valid actions, whoever acts."""
    distill_coef_start: float = 1.0
    """λ, weight of the distillation loss at first (kickstarting: Schmitt et al. 2018)."""
    distill_coef_end: float = 1.0
    """And from distill_coef_steps on."""
    distill_coef_steps: int = 500_000
    """Env steps over which it changes in a straight line."""
    reward_coef: float = 0.0
    """Weight of the games' own rewards, scaled game by game, in a PPO loss beside; 0: none."""
    gamma: float = 0.99
    """Discount per env step, of whatever reward there is."""
    gae_lambda: float = 0.95
    """λ of generalised advantage estimation."""
    clip_range: float = 0.2
    """ε of PPO's clipped surrogate."""
    value_coef: float = 0.5
    """Weight of the value loss."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus of the PPO loss, per nat."""
    learning_rate: float = 1e-3
    """Of Adam, at the start."""
    anneal_learning_rate: bool = True
    """Let the learning rate fall in a straight line to 0 at total_steps."""
    max_grad_norm: float = 1.0
    """Clip the gradient to this norm."""
    conv_filters: tuple[int, ...] = ()
    """Filters of 3x3 layers on images; none: Mnih et al. 2015, or one of 16 below 36 pixels."""
    hidden_sizes: tuple[int, ...] = (256,)
    """Widths of the fully connected layers."""
    activation: Activation = "relu"
    """After each fully connected layer."""
    game_stems: bool = False
    """Each game has a first layer of its own."""
    game_heads: bool = False
    """Each game has a last layer of its own (Policy Distillation), not one over the union."""
    weight_bits: int | None = None
    """Bits of the student's weights (2 to 16), a range for each output; None: float32."""
    activation_bits: int | None = None
    """Bits of its activations (2 to 16), a range for each layer; None: float32."""
    quantize_after: float = 0.5
    """Share of the updates after which they are so; 1: once training is over."""
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
        check_at_least(self, 1, "num_gradient_steps", "batch_size", "learning_starts")
        check_at_least(self, 1, "teacher_share_steps", "distill_coef_steps")
        check_unit_interval(self, "teacher_share_start", "teacher_share_end", "epsilon", "gamma")
        check_unit_interval(self, "gae_lambda")
        check_positive(self, "learning_rate", "max_grad_norm", "clip_range")
        check_finite(self, "learning_rate", "value_coef", "entropy_coef")
        for name in ("feature_coef", "reward_coef", "distill_coef_start", "distill_coef_end"):
            check_finite(self, name)
            check_at_least(self, 0, name)
        if self.temperature != "auto":
            check_positive(self, "temperature")
            check_finite(self, "temperature")
        check_equal_shares(self)
        num_games = len(self.all_games)
        if len(self.teachers) not in (0, num_games):
            raise ValueError(f"{len(self.teachers)} teachers for {num_games} games: name one each")
        least = max(self.learning_starts, self.steps_per_update // num_games)
        if self.replay_capacity < least:
            raise ValueError(f"replay_capacity is {self.replay_capacity}: it must be >= {least}")
        if not self.mask_softmax and self.loss != "policy":
            raise ValueError("mask_softmax: false is for the loss `policy` only")
        check_confidence(self.confidence_bonus, self.confidence_of)
        if self.confidence_bonus and not (self.loss == "policy" and self.mask_softmax):
            raise ValueError("confidence_bonus is for the loss `policy` with mask_softmax only")
        for name in ("weight_bits", "activation_bits"):
            if getattr(self, name) not in (None, *BITS):
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 2 to 16, or nothing")
        check_unit_interval(self, "quantize_after")
        self._check_on_policy()

    def _check_on_policy(self) -> None:
        if not self.is_on_policy:
            return
        others_act = self.epsilon > 0 or self.teacher_share_start > 0 or self.teacher_share_end > 0
        if self.recorded or others_act or not self.draw_actions:
            cause = "reward_coef" if self.reward_coef else "loss: expected_entropy"
            raise ValueError(
                f"{cause} learns from what the student's own policy does: set draw_actions to "
                "true, epsilon and teacher_share_* to 0, and recorded to nothing"
            )

    @property
    def is_on_policy(self) -> bool:
        """Whether there is a reward, so that it learns from the newest steps only."""
        return self.reward_coef > 0 or self.loss == "expected_entropy"

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
class Trajectories:
    """What the reward term reads of each of B steps."""

    action: Int[Tensor, " B"]
    log_prob: Float[Tensor, " B"]
    value: Float[Tensor, " B"]
    advantage: Float[Tensor, " B"]
    value_target: Float[Tensor, " B"]


def train(
    config: DistillConfig, teachers: Sequence[Teacher], resume: Mapping[str, Any] | None = None
) -> Generator[Update, None, None]:
    """Distil, yielding after every update; `resume` is what an earlier `Update.capture()` returned.

    The envs are closed when the generator is closed or exhausted. Sets torch's number of threads.

    Args:
        teachers: one a game, see `rlmask.experts.load_teachers`.

    Raises:
        EnvError, SpaceError, MaskError: as the envs give cause, before or during training.
        TeacherError: if a teacher does not fit, or is not the one that a resumed run had.
        RecordedError: if the file of recorded states cannot be used.
        FloatingPointError: if a gradient or weights are not finite. Nothing of that update is
            yielded: resuming goes back to the last checkpoint.
    """
    torch.set_num_threads(config.num_threads)
    device = choose_device(config.device)
    if len(teachers) != len(config.all_games):
        raise TeacherError(f"{len(teachers)} teachers for {len(config.all_games)} games")
    with debugging(config.debug), closing(envs_of(config)) as envs:
        yield from _train(config, teachers, envs, device, resume)


def _train(
    config: DistillConfig,
    teachers: Sequence[Teacher],
    envs: VectorEnv,
    device: torch.device,
    resume: Mapping[str, Any] | None,
) -> Generator[Update, None, None]:
    state = initial_state(config, teachers, envs, device)
    first_update = 1
    if resume is None:
        state.temperatures[:] = temperatures_of(config, teachers)
        if config.recorded:
            add_recorded(config, teachers, state)
        obs, action_mask = envs.reset()
    else:
        restore(state, teachers, resume)
        obs, action_mask = envs.restore(resume["envs"])
        first_update = resume["update"] + 1

    for update in range(first_update, config.num_updates + 1):
        now = scheduled(config, (update - 1) * config.steps_per_update)
        episodes: list[Episode] = []
        newest: Labelled | None = None
        trajectories: Trajectories | None = None
        if not config.recorded:
            played = collect(config, teachers, state, envs, obs, action_mask, now, device)
            obs, action_mask, episodes = played.obs, played.action_mask, played.episodes
            if config.is_on_policy:
                newest = played.states
                trajectories = with_advantages(config, teachers, state, played, device)
            else:
                state.states.add(played.states)
        batches = minibatches(config, state, newest)
        learned = learn(config, state, batches, trajectories, now, device)
        state.optimizer.check_weights()
        quantize(config, state.network, update)
        state.recent.add(episodes)

        yield Update(
            update=update,
            env_steps=update * config.steps_per_update,
            metrics={
                **state.recent.metrics(),
                **metrics_of(config, state, learned),
                "train/teacher_share": now.teacher_share,
                "train/distill_coef": now.distill_coef,
                "train/learning_rate": now.learning_rate,
            },
            episodes=episodes,
            policy=actor_policy(state.network, greedy=True),
            capture=partial(capture, state, teachers, envs, update),
        )


class Schedule(NamedTuple):
    """What changes with the env steps."""

    learning_rate: float
    teacher_share: float
    distill_coef: float


def scheduled(config: DistillConfig, env_steps: int) -> Schedule:
    """Return the schedules after some env steps."""
    learning_rate = config.learning_rate
    if config.anneal_learning_rate:
        num_steps = config.num_updates * config.steps_per_update
        learning_rate = linear_schedule(learning_rate, 0.0, num_steps, env_steps)
    return Schedule(
        learning_rate=learning_rate,
        teacher_share=linear_schedule(
            config.teacher_share_start,
            config.teacher_share_end,
            config.teacher_share_steps,
            env_steps,
        ),
        distill_coef=linear_schedule(
            config.distill_coef_start, config.distill_coef_end, config.distill_coef_steps, env_steps
        ),
    )


@dataclass(frozen=True, kw_only=True)
class State:
    """What changes from update to update; together with the envs, all that a checkpoint holds."""

    network: Student
    optimizer: FlatAdam
    states: StateBuffer
    temperatures: Float[Tensor, " G"]
    generator: torch.Generator  # of draws and shuffles, on the CPU
    reward_scaler: RewardScaler
    recent: RecentEpisodes


def initial_state(
    config: DistillConfig, teachers: Sequence[Teacher], envs: VectorEnv, device: torch.device
) -> State:
    """Return the state before the first update.

    Raises:
        SpaceError: if an action has several parts.
        TeacherError: if features are to be regressed and a teacher has none.
    """
    spec = envs.spec
    if len(spec.action.nvec) > 1:
        raise SpaceError(
            f"{spec.games[0].env_id}: an action has {len(spec.action.nvec)} parts; distill needs "
            "a Discrete action"
        )
    sizes = feature_sizes(config, teachers)
    generator = torch.Generator().manual_seed(config.seed)
    network = make_network(config, spec.obs, spec.action, sizes, generator).to(device)
    quantize(config, network, 0)
    num_games = len(teachers)
    return State(
        network=network,
        optimizer=FlatAdam(network),
        states=StateBuffer(
            num_games,
            config.replay_capacity,
            spec.obs,
            spec.action.num_actions,
            max(sizes, default=0),
            config.seed,
        ),
        temperatures=torch.ones(num_games),
        generator=generator,
        reward_scaler=RewardScaler(config.num_envs, config.gamma, num_games),
        recent=RecentEpisodes(game_names(config.all_games)),
    )


def feature_sizes(config: DistillConfig, teachers: Sequence[Teacher]) -> tuple[int, ...]:
    """Return the number of each teacher's features; nothing if they are not regressed.

    Raises:
        TeacherError: if a teacher has none.
    """
    if not config.feature_coef:
        return ()
    for teacher in teachers:
        if not teacher.num_features:
            raise TeacherError(
                f"teacher {teacher.name} is a function, without features; set feature_coef to 0"
            )
    return tuple(teacher.num_features for teacher in teachers)


def capture(
    state: State, teachers: Sequence[Teacher], envs: VectorEnv, update: int
) -> dict[str, Any]:
    """Return all that `train(config, teachers, resume=...)` needs to go on after an update."""
    return {
        "update": update,
        **envs.spec.capture(),
        "teachers": [{"name": t.name, "digest": t.digest} for t in teachers],
        "feature_sizes": [layer.out_features for layer in state.network.feature_maps],
        "network": state.network.state_dict(),
        "optimizer": state.optimizer.capture(),
        "states": state.states.capture(),
        "temperatures": state.temperatures,
        "generator": state.generator.get_state(),
        "reward_scaler": state.reward_scaler.capture(),
        "recent_episodes": state.recent.capture(),
        "envs": envs.capture(),
    }


def restore(state: State, teachers: Sequence[Teacher], captured: Mapping[str, Any]) -> None:
    """Bring the initial state to what was captured; nothing is shared with it afterwards.

    Raises:
        TeacherError: if a teacher's weights are not what they were.
    """
    for teacher, before in zip(teachers, captured["teachers"], strict=True):
        if teacher.digest != before["digest"]:
            raise TeacherError(
                f"the weights of teacher {teacher.name} are not those that this run began with; "
                "put them back, or start another run"
            )
    state.network.load_state_dict(captured["network"])
    state.optimizer.restore(captured["optimizer"])
    state.states.restore(captured["states"])
    state.temperatures[:] = captured["temperatures"]
    state.generator.set_state(captured["generator"])
    state.reward_scaler.restore(captured["reward_scaler"])
    state.recent.restore(captured["recent_episodes"])


def load_policy(
    config: DistillConfig, state: Mapping[str, Any], *, greedy: bool, seed: int
) -> Policy:
    """Return the policy of a captured state, on the CPU; rows are of the games in turn.

    Args:
        greedy: the best valid action; otherwise draw from the softmax over the valid ones.
        seed: of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    return actor_policy(load_network(config, state), greedy=greedy, generator=generator)


def load_network(config: DistillConfig, state: Mapping[str, Any]) -> Student:
    """Return the network of a captured state, on the CPU."""
    sizes = state["feature_sizes"]
    network = make_network(config, *captured_specs(state), sizes, torch.Generator())
    network.load_state_dict(state["network"])
    return network


def make_network(
    config: DistillConfig,
    obs: ObsSpec,
    action: ActionSpec,
    feature_sizes: Sequence[int],
    generator: torch.Generator,
) -> Student:
    """Return the network that a config describes, for an observation and an action spec."""
    with torch.random.fork_rng(devices=()):  # torch's layers draw weights that are replaced
        network = ActorMimicNetwork(
            obs,
            action,
            len(config.all_games),
            conv_filters=config.conv_filters,
            hidden_sizes=config.hidden_sizes,
            activation=config.activation,
            game_stems=config.game_stems,
            game_heads=config.game_heads,
            value_head=config.is_on_policy,
            normalize_obs=False,
            feature_sizes=feature_sizes,
            generator=generator,
        )
    if config.weight_bits is None and config.activation_bits is None:
        return network
    return QuantizedNetwork(network, config.weight_bits, config.activation_bits)


def quantize(config: DistillConfig, network: Student, update: int) -> None:
    """Quantise a network that is to be so, if it is time after an update."""
    if isinstance(network, QuantizedNetwork):
        network.quantize(update >= config.quantize_after * config.num_updates)


def temperatures_of(config: DistillConfig, teachers: Sequence[Teacher]) -> Float[Tensor, " G"]:
    """Return the temperature of each teacher.

    `auto` plays some steps of every game, the teachers acting, to see the gaps between the values
    of their best actions.
    """
    temperatures = torch.ones(len(teachers))
    if config.temperature != "auto":
        return temperatures.fill_(config.temperature)
    if all(teacher.kind == "policy" for teacher in teachers):
        return temperatures
    generator = torch.Generator().manual_seed(config.seed)
    gaps = []
    with closing(envs_of(config)) as envs:
        obs, mask = envs.reset()
        for _ in range(CALIBRATION_STEPS):
            scores = label(teachers, obs, mask).scores
            gaps.append(action_gap(scores, mask).view(-1, len(teachers)))
            step = envs.step(masked_epsilon_greedy(scores, mask, config.epsilon, generator))
            obs, mask = step.obs, step.action_mask
    for game, teacher in enumerate(teachers):
        if teacher.kind == "values":
            temperatures[game] = auto_temperature(torch.cat(gaps)[:, game])
    return temperatures


def add_recorded(config: DistillConfig, teachers: Sequence[Teacher], state: State) -> None:
    """Put recorded states into the buffer, the newest if they are too many, with their labels."""
    obs, mask = read_states(Path(config.recorded), config.all_games)
    rows = len(teachers) * (LABEL_ROWS // len(teachers))
    newest = len(teachers) * config.replay_capacity
    blocks = zip(obs[-newest:].split(rows), mask[-newest:].split(rows), strict=True)
    for block in blocks:
        state.states.add(label(teachers, *block, state.states.num_features))


class Played(NamedTuple):
    """The facts of T steps of N envs, and where the envs are now."""

    states: Labelled  # [T*N]
    logits: Float[Tensor, " T N A"]
    action: Int[Tensor, " T N"]
    log_prob: Float[Tensor, " T N"]
    value: Float[Tensor, " T N"]
    next_value: Float[Tensor, " T N"]
    reward: Float[Tensor, " T N"]
    terminated: Bool[Tensor, " T N"]
    truncated: Bool[Tensor, " T N"]
    obs: Tensor  # [N, *obs]
    action_mask: Bool[Tensor, " N A"]
    episodes: list[Episode]


@torch.inference_mode()
def collect(
    config: DistillConfig,
    teachers: Sequence[Teacher],
    state: State,
    envs: VectorEnv,
    obs: Tensor,
    action_mask: Bool[Tensor, " N A"],
    now: Schedule,
    device: torch.device,
) -> Played:
    """Step the envs T times, and ask the teachers about every state.

    obs [N, *obs] and action_mask [N, A] are on the CPU, as the envs give and take them.
    """
    facts: list[tuple[Tensor, ...]] = []
    ends: list[tuple[int, VectorStep]] = []
    temperature = state.temperatures.repeat(config.num_envs // len(teachers)).unsqueeze(-1)
    for t in range(config.num_steps):
        logits, value = (x.cpu() for x in state.network(obs.to(device)))
        action, log_prob = act(logits, action_mask, config, state.generator)
        if now.teacher_share:
            scores = label(teachers, obs, action_mask).scores / temperature
            shown, _ = act(scores, action_mask, config, state.generator)
            is_shown = torch.rand(len(action), generator=state.generator) < now.teacher_share
            action = torch.where(is_shown, shown, action)
        step = envs.step(action)
        happened = step.reward, step.terminated, step.truncated
        facts.append((obs, action_mask, logits, action, log_prob, value, *happened))
        if step.episodes:
            ends.append((t, step))
        obs, action_mask = step.obs, step.action_mask

    all_obs, masks, logits, action, log_prob, value, reward, terminated, truncated = (
        torch.stack(fact) for fact in zip(*facts, strict=True)
    )
    next_value = value
    if config.is_on_policy:
        next_value = successor_values(state.network, value, obs, ends, len(teachers), device)
    seen = all_obs.flatten(0, 1), masks.flatten(0, 1)
    return Played(
        states=label(teachers, *seen, state.states.num_features),
        logits=logits,
        action=action,
        log_prob=log_prob,
        value=value,
        next_value=next_value,
        reward=reward,
        terminated=terminated,
        truncated=truncated,
        obs=obs,
        action_mask=action_mask,
        episodes=[episode for _, step in ends for episode in step.episodes],
    )


def act(
    scores: Float[Tensor, " N A"],
    action_mask: Bool[Tensor, " N A"],
    config: DistillConfig,
    generator: torch.Generator,
) -> tuple[Int[Tensor, " N"], Float[Tensor, " N"]]:
    """Return one valid action a row, and its log-probability where it was drawn.

    Raises:
        FloatingPointError: if a score of a valid action is not finite.
    """
    if not (scores.isfinite() | ~action_mask).all():
        raise FloatingPointError(
            "scores are not finite. Look for huge observations, or lower learning_rate"
        )
    log_prob = torch.zeros(len(scores))
    if config.draw_actions:
        action, log_prob = masked_sample(scores, action_mask, generator)
    else:
        action = masked_argmax(scores, action_mask)
    if config.epsilon:
        anything, _ = masked_sample(torch.zeros_like(scores), action_mask, generator)
        explores = torch.rand(len(scores), generator=generator) < config.epsilon
        action = torch.where(explores, anything, action)
    return action, log_prob


def successor_values(
    network: Student,
    value: Float[Tensor, " T N"],
    last_obs: Tensor,
    ends: list[tuple[int, VectorStep]],
    num_games: int,
    device: torch.device,
) -> Float[Tensor, " T N"]:
    """Return the value of the true successor of each step, of the final obs of truncated ones."""
    next_value = torch.cat([value[1:], network(last_obs.to(device))[1].cpu().unsqueeze(0)])
    for t, step in ends:
        cut = step.truncated[step.ended] & ~step.terminated[step.ended]
        if cut.any():
            index = step.ended[cut]
            final = network(step.final_obs[cut].to(device), (index % num_games).to(device))
            next_value[t, index] = final[1].cpu()
    return next_value


@torch.inference_mode()
def with_advantages(
    config: DistillConfig,
    teachers: Sequence[Teacher],
    state: State,
    played: Played,
    device: torch.device,
) -> Trajectories:
    """Return the steps in one row, [T, N] -> [T*N], with advantages of whatever reward there is.

    That of the expected-entropy loss is minus the loss of the next state: with it, student-driven
    distillation is the gradient of one objective (Czarnecki et al. 2019, theorem 2).
    """
    ended = played.terminated | played.truncated
    reward = torch.zeros_like(played.reward)
    if config.reward_coef:
        state.reward_scaler.observe(played.reward, ended)
        reward = config.reward_coef * state.reward_scaler.scale(played.reward)
    if config.loss == "expected_entropy":
        last = label(teachers, played.obs, played.action_mask)
        last_logits = state.network(played.obs.to(device))[0].cpu()
        cost = torch.stack(
            [
                loss_of(config, logits, states, state.temperatures).loss
                for logits, states in (
                    *zip(played.logits, split(played.states, config.num_envs), strict=True),
                    (last_logits, last),
                )
            ]
        )  # [T + 1, N]
        reward -= cost[1:] * ~ended
    advantage = generalized_advantage_estimation(
        reward,
        played.value,
        played.next_value,
        config.gamma * ~played.terminated,
        ended,
        config.gae_lambda,
    )
    return Trajectories(
        action=played.action.flatten(),
        log_prob=played.log_prob.flatten(),
        value=played.value.flatten(),
        advantage=advantage.flatten(),
        value_target=(advantage + played.value).flatten(),
    )


def minibatches(
    config: DistillConfig, state: State, newest: Labelled | None
) -> Iterator[tuple[Labelled, Tensor | None]]:
    """Give the minibatches of an update: drawn from all states, or rows of the newest in turn.

    With the latter come their indices, for what else is known of them.
    """
    size, count = config.batch_size, config.num_gradient_steps
    if newest is None:
        if len(state.states) >= config.learning_starts:
            for states in split(state.states.sample(size * count), size):
                yield states, None
        return
    num_games = len(config.all_games)
    passes = -(-size * count // len(newest.obs))
    order = shuffled_in_turn(len(newest.obs), num_games, state.generator, passes)
    for rows in order[: size * count].split(size):
        yield tree_map(lambda x, rows=rows: x[rows], newest), rows


class Learned(NamedTuple):
    """What is logged of a gradient step."""

    logits: Float[Tensor, " B A"]
    scores: Float[Tensor, " B A"]
    action_mask: Bool[Tensor, " B A"]
    loss: Float[Tensor, " B"]
    feature_loss: Float[Tensor, ""]
    norm: float
    ppo: PPOTerms | None


@torch.inference_mode()
def learn(
    config: DistillConfig,
    state: State,
    batches: Iterator[tuple[Labelled, Tensor | None]],
    trajectories: Trajectories | None,
    now: Schedule,
    device: torch.device,
) -> list[Learned]:
    """Take the gradient steps of an update; return what to log of each.

    The loss is the mean within each game and then over the games, which have equal shares.

    Raises:
        FloatingPointError: if a gradient is not finite; the weights are then as before that step.
    """
    network, learned = state.network, []
    temperatures = state.temperatures.to(device)
    for batch, rows in batches:
        states = tree_map(lambda x: x.to(device), batch)
        share = now.distill_coef / len(states.obs)
        logits, value, features, pullback = network.vjp_features(states.obs)
        terms = loss_of(config, logits, states, temperatures)
        grad_logits, grad_value, grad_features, ppo = terms.grad * share, None, None, None
        feature_loss = terms.loss.new_zeros(())
        if config.feature_coef:
            feature_loss, grad_features = regress_features(
                network, features, states.features, config.feature_coef * share
            )
        if trajectories is not None and rows is not None:
            steps = tree_map(lambda x, rows=rows: x[rows].to(device), trajectories)
            ppo, grad_policy, grad_value = masked_ppo_loss(
                logits,
                value,
                states.action_mask,
                steps.action,
                steps.log_prob,
                steps.value,
                steps.advantage,
                steps.value_target,
                clip_range=config.clip_range,
                value_clip_range=None,
                value_coef=config.value_coef,
                entropy_coef=config.entropy_coef,
                normalize_entropy=False,
            )
            grad_logits += grad_policy
        pullback(grad_logits, grad_value, grad_features)
        norm = state.optimizer.step(now.learning_rate, config.max_grad_norm)
        labels = states.scores, states.action_mask
        learned.append(Learned(logits, *labels, terms.loss, feature_loss, norm, ppo))
    return learned


def loss_of(
    config: DistillConfig,
    logits: Float[Tensor, " B A"],
    states: Labelled,
    temperatures: Float[Tensor, " G"],
) -> DistillTerms:
    """Return the distillation loss of some states, in turn, and its gradient by the logits."""
    scores, mask = states.scores, states.action_mask
    if config.loss == "values":
        return q_regression_loss(logits, scores, mask)
    if config.loss == "argmax":
        return argmax_regression_loss(logits, scores, mask)
    temperature = temperatures.repeat(len(logits) // len(temperatures))
    if config.loss == "reverse":
        return reverse_kl_loss(logits, scores, mask, temperature)
    if config.loss == "expected_entropy":
        return expected_entropy_loss(logits, scores, mask, temperature)
    if not config.mask_softmax:
        return unmasked_policy_regression_loss(logits, scores, mask, temperature)
    terms = policy_regression_loss(logits, scores, mask, temperature)
    if not config.confidence_bonus:
        return terms
    bonus = confidence_bonus(logits, mask, config.confidence_bonus, config.confidence_of)
    return DistillTerms(terms.loss + bonus.loss, terms.grad + bonus.grad)


def regress_features(
    network: Student,
    features: Float[Tensor, " B H"],
    teacher_features: Float[Tensor, " B E"],
    coef: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, " B H"]]:
    """Return the mean loss of the feature regression, and its gradient by the student's features.

    That of each game's map, of a teacher's E features or fewer, goes to its `grad`.
    """
    maps = [layer for layer in network.feature_maps if isinstance(layer, nn.Linear)]
    num_games = len(maps)
    grad_features = torch.empty_like(features)
    losses = []
    for game, layer in enumerate(maps):
        own = features[game::num_games].contiguous()
        target = teacher_features[game::num_games, : layer.out_features]
        loss, grad = feature_regression_loss(layer(own), target)
        grad_own = torch.empty_like(own)
        linear_pullback(layer, own, grad * coef, grad_own)
        grad_features[game::num_games] = grad_own
        losses.append(loss.mean())
    return torch.stack(losses).mean(), grad_features


@torch.inference_mode()
def metrics_of(config: DistillConfig, state: State, learned: list[Learned]) -> dict[str, float]:
    """Return the metrics of some gradient steps, game by game where there are several."""
    if not learned:
        return {}
    names = game_names(config.all_games)
    logits = torch.cat([step.logits for step in learned]).cpu()
    scores = torch.cat([step.scores for step in learned]).cpu()
    mask = torch.cat([step.action_mask for step in learned]).cpu()
    temperature = state.temperatures.repeat(len(logits) // len(names))
    of_rows = teacher_figures(logits, scores, mask, temperature)
    metrics = {
        "loss/distill": torch.cat([step.loss for step in learned]).mean().item(),
        "loss/grad_norm": sum(step.norm for step in learned) / len(learned),
        "mask/valid_fraction": mask.float().mean().item(),
    }
    if config.feature_coef:
        losses = torch.stack([step.feature_loss for step in learned])
        metrics["loss/feature_regression"] = losses.mean().item()
    if learned[0].ppo is not None:
        terms = [step.ppo for step in learned if step.ppo is not None]
        metrics.update(ppo_metrics(terms, config.clip_range))
    for game, suffix in enumerate(metric_suffixes(names)):
        for key, rows in of_rows.items():
            metrics[f"distill/{key}{suffix}"] = rows[game :: len(names)].mean().item()
        metrics[f"distill/temperature{suffix}"] = state.temperatures[game].item()
    return metrics
