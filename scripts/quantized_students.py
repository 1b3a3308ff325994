"""Compare students of few bits with the float one: return, agreement, KL, bytes.

After `rlmask distill configs/distill/quantized.yaml`, or a part of it:

    python scripts/quantized_students.py runs/quantized --out docs/quantization.png

Of every run below DIRECTORY/students, and of the float students quantised after training, each
against the float student of its seed. All play the same episodes. Agreement and KL are on states
that the float student visits, of every game alike; so are those of the check in onnxruntime, where
every student's exported policy has to choose the actions of its network. A row is the mean over
seeds. What is done is kept in DIRECTORY/quantized.json, and not done again while the weights of
student, float student and experts are the same.
"""

import argparse
import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from rlmask.actor_mimic import ActorMimicNetwork
from rlmask.charts import INK, STUDENT, STYLE, TEACHER, bare
from rlmask.checkpoint import replace_synced
from rlmask.experts import digest_of, load_teachers
from rlmask.export import PolicyGraph, bits_of, exported, onnx_bytes
from rlmask.ops import masked_argmax, masked_kl, masked_log_softmax, masked_sample
from rlmask.policies import actor_policy
from rlmask.quantize import QuantizedNetwork, quantized
from rlmask.run import play_games
from rlmask.runs import ALGORITHMS, RunConfig, read_run
from rlmask.teachers import Teacher, label, random_policy, teacher_policy
from rlmask.types import Policy
from rlmask.vector import game_names, make_vector, short_names
from rlmask.words import markdown_table

ENVS_PER_GAME = 16
CALIBRATION_BATCHES = 64
FLOAT, AFTER = "student", " after training"
PAIRS = ("float", "teacher")  # agreement with them, and KL to them
Network = ActorMimicNetwork | QuantizedNetwork


def visited(network: Network, config: RunConfig, steps: int, seed: int) -> list[tuple[Tensor, ...]]:
    """Return observations and masks of some steps of 16 envs a game, the student drawing."""
    games = config.eval_games
    envs = make_vector(
        games,
        ENVS_PER_GAME * len(games),
        seed,
        vectorization=config.eval_vectorization,
        num_actions=config.settings.num_actions,
        stream=1,
    )
    generator, seen = torch.Generator().manual_seed(seed), []
    with closing(envs), torch.inference_mode():
        obs, mask = envs.reset()
        for _ in range(steps):
            seen.append((obs.clone(), mask.clone()))
            action, _ = masked_sample(network(obs)[0], mask, generator)
            step = envs.step(action)
            obs, mask = step.obs, step.action_mask
    return seen


def returns(config: RunConfig, policy: Policy, episodes: int) -> dict[str, list[float]]:
    """Return the mean return of each game, and its standard error."""
    played = play_games(config, policy, num_episodes=episodes, seed=0)
    count = len(config.eval_games)
    of_games = [[e.episode_return for e in played if e.game == game] for game in range(count)]
    return {
        "returns": [float(np.mean(one)) for one in of_games],
        "errors": [float(np.std(one, ddof=1) / len(one) ** 0.5) for one in of_games],
    }


def drawing(network: Network) -> Policy:
    """Return a policy that draws, as the experiment's evaluations do."""
    return actor_policy(network, greedy=False, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def compared(logits: Tensor, other: Tensor, mask: Tensor, temperature: float = 1.0) -> list[float]:
    """Return agreement, and KL(other || logits) in nats."""
    same = masked_argmax(logits, mask) == masked_argmax(other, mask)
    log_p, log_q = (masked_log_softmax(z, mask) for z in (other / temperature, logits))
    return [same.float().mean().item(), masked_kl(log_p, log_q, mask).mean().item()]


def in_onnxruntime(model: bytes, obs: Tensor, mask: Tensor) -> Tensor:
    """Return the actions of a model."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    given = {"obs": obs.numpy(), "action_mask": mask.numpy()}
    return torch.from_numpy(session.run(["action"], given)[0])


def figures(
    network: Network, config: RunConfig, labels: dict[str, Any], episodes: int
) -> dict[str, Any]:
    """Return what is to be known of one student."""
    obs, mask = labels["obs"], labels["mask"]
    with torch.inference_mode():
        logits = network(obs)[0]
    int8 = isinstance(network, QuantizedNetwork) and (network.weight_bits or 99) <= 8
    program = exported(PolicyGraph(network, int8), network.obs_spec, network.action_spec)
    model = onnx_bytes(program, {})
    action = in_onnxruntime(model, obs, mask)
    differ = action != masked_argmax(logits, mask)
    best = torch.where(mask, logits, -torch.inf).topk(2).values
    temperature = config.settings.temperature
    return {
        **returns(config, drawing(network), episodes),
        "float": compared(logits, labels["float"], mask),
        "teacher": compared(logits, labels["teacher"], mask, temperature),
        "bytes": len(model),
        "states": len(obs),
        "differ": int(differ.sum()),
        "largest_gap": float((best[:, 0] - best[:, 1])[differ].max()) if differ.any() else 0.0,
    }


def students(directory: Path) -> dict[str, tuple[RunConfig, Network]]:
    """Return config and network of every complete run, by name: what it is, a dash, its seed."""
    found = {}
    for run_dir in sorted((directory / "students").iterdir()):
        if (run_dir / "result.json").is_file():
            config, state = read_run(run_dir)
            if config.algo == "distill":
                network = ALGORITHMS[config.algo].load_network(config.settings, state)
                found[run_dir.name] = config, network
    return found


def digests_of(
    name: str, runs: dict[str, tuple[RunConfig, Network]], teachers: Sequence[Teacher]
) -> list[str]:
    """Return the digests of all weights that the figures of a player are of.

    A student that was quantised after training has those of its float student.
    """
    networks = [runs[of][1] for of in (name, float_of(name)) if of in runs]
    return [*map(digest_of, networks), *(teacher.digest for teacher in teachers)]


def measure(directory: Path, episodes: int, states: int, bits: Sequence[int]) -> dict[str, Any]:
    """Return the figures of all players, and keep them."""
    path = directory / "quantized.json"
    done: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    if done.get("protocol") != [episodes, states]:
        done = {"protocol": [episodes, states]}

    def keep(name: str, what: Any) -> None:
        done[name] = what
        if isinstance(what, dict):
            done[name] = {**what, "weights": digests_of(name, runs, teachers)}
        replace_synced(path, json.dumps(done, indent=1).encode())
        print(name, what, flush=True)

    torch.set_num_threads(1)
    runs = students(directory)
    floats = {name: run for name, run in runs.items() if name == float_of(name)}
    if not floats:
        raise SystemExit(f"{directory} has no float student whose training is over")
    config = next(iter(floats.values()))[0]
    teachers = load_teachers(config.settings)
    for name, of in list(done.items()):
        if isinstance(of, dict) and of.get("weights") != digests_of(name, runs, teachers):
            del done[name]  # trained again, or gone
    names = short_names(game_names(config.eval_games))
    keep("games", names)
    others = {"teacher": teacher_policy(teachers, greedy=False, seed=0), "random": random_policy(0)}
    for name, policy in others.items():
        if name not in done:
            keep(name, returns(config, policy, episodes))
    steps = -(-states // (ENVS_PER_GAME * len(names)))
    for float_name, (config, network) in floats.items():
        wanted = {
            name: student
            for name, (_, student) in runs.items()
            if name == float_name
            or (float_of(name) == float_name and isinstance(student, QuantizedNetwork))
        }
        after = {f"{number} bits{AFTER}-{seed_of(float_name)}": number for number in bits}
        if done.keys() >= {*wanted, *after}:
            continue
        seen = visited(network, config, 4 * steps, seed=1)[::4]
        obs, mask = (torch.cat(parts) for parts in zip(*seen, strict=True))
        with torch.inference_mode():
            labels = {
                "obs": obs,
                "mask": mask,
                "float": network(obs)[0],
                "teacher": label(teachers, obs, mask).scores,
            }
        batches = [obs for obs, _ in visited(network, config, CALIBRATION_BATCHES, seed=2)]
        for name, number in after.items():
            wanted[name] = quantized(network, number, number, batches)
        for name, student in wanted.items():
            if name not in done:
                own_bits = bits_of(student) or 32
                keep(name, {"bits": own_bits, **figures(student, config, labels, episodes)})
    return done


def what_of(name: str) -> str:
    """Return what a student is, without its seed."""
    return name.rpartition("-")[0]


def seed_of(name: str) -> str:
    """Return the seed of a student."""
    return name.rpartition("-")[2]


def float_of(name: str) -> str:
    """Return the float student of the same seed."""
    return f"{FLOAT}-{seed_of(name)}"


def score(done: dict[str, Any], name: str, of: str | None = None) -> np.ndarray:
    """Return the score of each game in %: 0 is random valid moves, 100 is `of`.

    That is the float student of the same seed, if nothing else is given.
    """
    whos = name, of or float_of(name), "random"
    mine, other, least = (np.array(done[who]["returns"]) for who in whos)
    return 100 * (mine - least) / (other - least)


def error(done: dict[str, Any], names: Sequence[str]) -> float:
    """Return the standard error of the mean score in % of the float student's, over episodes."""
    squares = []
    for name in names:
        of = float_of(name)
        float_student, least = (np.array(done[who]["returns"]) for who in (of, "random"))
        errors = [np.array(done[who]["errors"]) for who in (name, of)]
        squares.append(np.square(100 * np.hypot(*errors) / (float_student - least)))
    return float(np.sqrt(np.sum(squares)) / np.size(squares))


def kinds(done: dict[str, Any]) -> dict[str, list[str]]:
    """Return the names of the students of each kind, from many bits to few."""
    found: dict[str, list[str]] = {}
    ofs = [(name, of) for name, of in done.items() if isinstance(of, dict) and "bits" in of]
    for name, _ in sorted(ofs, key=lambda pair: (-pair[1]["bits"], pair[0])):
        found.setdefault(what_of(name), []).append(name)
    return found


def rows_of(done: dict[str, Any]) -> list[list[str]]:
    """Return the rows of the table."""
    rows = []
    for what, names in kinds(done).items():
        first = done[names[0]]
        of_float = np.mean([score(done, name) for name in names], 0)
        of_expert = np.mean([score(done, name, "teacher") for name in names], 0)
        means = {key: np.mean([done[name][key] for name in names], 0) for key in PAIRS}
        trained = "float32" if what == FLOAT else f"{first['bits']} bits"
        rows.append(
            [
                trained + (AFTER if what.endswith(AFTER) else ""),
                str(len(names)),
                f"{of_float.mean():.1f}"
                + (f" ± {error(done, names):.1f}" if what != FLOAT else ""),
                ", ".join(f"{score(done, name).mean():.0f}" for name in names),
                ", ".join(f"{x:.0f}" for x in of_float),
                f"{np.median(of_expert):.0f}",
                f"{100 * means['float'][0]:.1f}",
                f"{means['float'][1]:.4f}",
                f"{100 * means['teacher'][0]:.1f}",
                f"{means['teacher'][1]:.4f}",
                f"{first['bytes']:,}",
                f"{sum(done[n]['differ'] for n in names)} of {first['states'] * len(names):,}",
            ]
        )
    return rows


HEAD = [
    "weights and activations",
    "seeds",
    "mean, % of float",
    "each seed",
    "each game",
    "median, % of experts",
    "agreement with float, %",
    "KL to float",
    "agreement with experts, %",
    "KL to experts",
    "bytes (ONNX)",
    "other actions in onnxruntime",
]


def draw(done: dict[str, Any], path: Path) -> None:
    """Draw return and agreement over the bits."""
    ink = {name: value for name, value in STYLE.items() if not name.startswith("svg")}
    with rc_context(ink):
        figure = Figure(figsize=(9.0, 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        for trained, color, text in (
            (True, STUDENT, "quantised while it learns"),
            (False, TEACHER, "quantised after training"),
        ):
            points = [
                (
                    done[names[0]]["bits"],
                    np.mean([score(done, name).mean() for name in names]),
                    np.mean([100 * done[name]["float"][0] for name in names]),
                )
                for what, names in kinds(done).items()
                if what != FLOAT and what.endswith(AFTER) != trained
            ]
            if points:
                bits, means, agreement = zip(*sorted(points), strict=True)
                left.plot(bits, means, "o-", color=color, label=text)
                right.plot(bits, agreement, "o-", color=color, label=text)
        for axes in (left, right):
            axes.axhline(100, color=INK, linestyle="--", linewidth=1.2)
            axes.set_xlabel("bits of weights and activations")
            axes.set_xticks([2, 3, 4, 6, 8])
            bare(axes)
        left.set_ylabel("mean return, % of the float student")
        right.set_ylabel("same greedy action, % of states")
        left.legend(frameon=False, loc="lower right")
        figure.savefig(path, dpi=150, facecolor="white")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path, help="of the experiment")
    parser.add_argument("--episodes", type=int, default=300, help="of each game and player")
    parser.add_argument("--states", type=int, default=10_000, help="to compare on, over all games")
    parser.add_argument("--bits", type=int, nargs="*", default=[8, 6, 4, 3, 2])
    parser.add_argument("--out", type=Path, default=Path("quantization.png"), help="the picture")
    arguments = parser.parse_args()
    done = measure(arguments.directory, arguments.episodes, arguments.states, arguments.bits)
    draw(done, arguments.out)
    print(markdown_table(HEAD, rows_of(done)))
    for name, of in done.items():
        if isinstance(of, dict) and of.get("differ"):
            print(f"{name}: the best two scores are at most {of['largest_gap']:.2g} apart there")


if __name__ == "__main__":
    main()
