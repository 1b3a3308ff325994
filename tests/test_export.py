"""Exported policies: read back in onnxruntime and in PyTorch, against the networks themselves."""

import builtins
import copy
import errno
import os

import pytest
import torch

from rlmask.actor_mimic import ActorMimicNetwork
from rlmask.cli import main
from rlmask.export import ExportError, PolicyGraph, exported, onnx_bytes, program_bytes
from rlmask.networks import ActorCritic, QNetwork
from rlmask.ops import masked_argmax, split_parts
from rlmask.optim import FlatAdam
from rlmask.quantize import QuantizedNetwork
from rlmask.types import ActionSpec, ObsSpec

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

IMAGE = ObsSpec(kind="image", shape=(7, 6, 3), dtype="uint8")
VECTOR = ObsSpec(kind="vector", shape=(4,), dtype="float32")
DISCRETE = ObsSpec(kind="discrete", shape=(), dtype="int64", n=50)
ACTIONS = ActionSpec(nvec=(6,))
ROWS = 10_000


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(spec, rows=ROWS, seed=0):
    if spec.kind == "discrete":
        return torch.randint(spec.n, (rows,), generator=generator(seed))
    if spec.kind == "image":
        return torch.randint(256, (rows, *spec.shape), generator=generator(seed)).to(torch.uint8)
    return torch.randn(rows, *spec.shape, generator=generator(seed))


def masks(num_actions=6, rows=ROWS):
    mask = torch.rand(rows, num_actions, generator=generator(5)) < 0.4
    mask[torch.arange(rows), torch.arange(rows) % num_actions] = True
    mask[:, -1] |= ~mask[:, -2]  # of the second of two parts
    mask[:, 0] |= ~mask[:, :-2].any(1)
    return mask


def actor_critic(obs=VECTOR, action=ACTIONS):
    return ActorCritic(
        obs, action, hidden_sizes=(16, 12), activation="tanh", shared_torso=False,
        normalize_obs=True, generator=generator(),
    )  # fmt: skip


def q_network(obs=DISCRETE):
    return QNetwork(
        obs, ACTIONS, hidden_sizes=(16, 12), activation="relu", dueling=True, layer_norm=True,
        num_outputs=5, support=torch.linspace(-2, 2, 5), generator=generator(),
    )  # fmt: skip


def mimic(obs=IMAGE, **changes):
    settings = {"game_stems": False, "game_heads": False}
    return ActorMimicNetwork(
        obs, ACTIONS, 3, conv_filters=(8, 8) if obs.kind == "image" else (), hidden_sizes=(64,),
        activation="relu", value_head=True, normalize_obs=False, feature_sizes=(9, 9, 9),
        generator=generator(), **settings | changes,
    )  # fmt: skip


def trained(weight_bits, activation_bits, obs=IMAGE):
    """A network on its grids, with ranges of random observations."""
    network = QuantizedNetwork(mimic(obs), weight_bits, activation_bits)
    network.actor_head.weight.data.mul_(100)
    FlatAdam(network)
    with torch.inference_mode():
        network.vjp_features(draw(obs, 60))
    network.quantize(True)
    return network


def in_onnxruntime(model, obs, mask):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    given = {"obs": obs.numpy(), "action_mask": mask.numpy()}
    return [torch.from_numpy(x) for x in session.run(["action", "scores"], given)]


@torch.inference_mode()
def expected(network, obs, mask):
    scores, _ = network.scores(obs, mask)
    nvec = network.action_spec.nvec
    return masked_argmax(split_parts(scores, nvec), split_parts(mask, nvec)), scores


def to_onnx(network, int8):
    program = exported(PolicyGraph(network, int8), network.obs_spec, network.action_spec)
    return onnx_bytes(program, {"algo": "test"})


def stored(model, kind):
    """Numbers of one kind that a model holds."""
    initializers = onnx.load_from_string(model).graph.initializer
    return sum(onnx.numpy_helper.to_array(i).size for i in initializers if i.data_type == kind)


@pytest.mark.parametrize(
    "make",
    [actor_critic, q_network, mimic, lambda: actor_critic(VECTOR, ActionSpec(nvec=(4, 2)))],
    ids=["actor critic", "dueling C51", "actor mimic", "two parts"],
)
def test_onnx_gives_the_scores_and_the_best_valid_action(make):
    network = make()
    obs, mask = draw(network.obs_spec), masks()
    if network.obs_spec is VECTOR:
        network.obs_scaler.observe(3 * obs + 1)
    before = copy.deepcopy(network.state_dict())
    model = to_onnx(network, int8=False)
    action, scores = in_onnxruntime(model, obs, mask)
    assert torch.equal(in_onnxruntime(model, obs[:1], mask[:1])[0], action[:1])
    wanted, wanted_scores = expected(network, obs, mask)
    torch.testing.assert_close(scores, wanted_scores, atol=1e-5, rtol=1e-4)
    assert (action == wanted).float().mean() > 0.999  # but for scores equal to the sixth digit
    parts = split_parts(mask, network.action_spec.nvec)
    assert parts.gather(-1, action.unsqueeze(-1)).all()
    assert all(torch.equal(before[k], x) for k, x in network.state_dict().items())


@pytest.mark.parametrize("bits", [(8, 8), (3, 4)])
def test_a_student_of_few_bits_is_the_same_in_onnxruntime(bits):
    network = trained(*bits)
    obs, mask = draw(IMAGE), masks()
    model, as_float = to_onnx(network, int8=True), to_onnx(network, int8=False)
    action, _ = in_onnxruntime(model, obs, mask)
    wanted, scores = expected(network, obs, mask)
    two = torch.where(mask, scores, -torch.inf).topk(2).values
    is_tie = two[:, 0] - two[:, 1] < 1e-5
    assert torch.equal(action[~is_tie], wanted[~is_tie]) and is_tie.float().mean() < 0.01
    assert torch.equal(in_onnxruntime(as_float, obs, mask)[0][~is_tie], wanted[~is_tie])
    num_weights = 3 * 8 * 9 + 8 * 8 * 9 + 8 * 3 * 2 * 64 + 64 * 6
    assert stored(model, onnx.TensorProto.INT8) == num_weights
    assert stored(model, onnx.TensorProto.FLOAT) < 600 < num_weights
    assert stored(as_float, onnx.TensorProto.FLOAT) >= num_weights


def test_int8_of_a_float_network_is_near_it():
    network = mimic()
    network.actor_head.weight.data.mul_(100)
    obs, mask = draw(IMAGE), masks()
    _, scores = in_onnxruntime(to_onnx(network, int8=True), obs, mask)
    wanted = expected(network, obs, mask)[1]
    assert not torch.equal(scores, wanted)
    assert (scores - wanted).abs().max() < 0.05 * wanted.abs().max()


def test_a_program_of_pytorch_is_read_back(tmp_path):
    network = trained(8, 8)
    graph = PolicyGraph(network, int8=True)
    program = exported(graph, network.obs_spec, network.action_spec)
    (tmp_path / "policy.pt2").write_bytes(program_bytes(program, {}))
    program = torch.export.load(tmp_path / "policy.pt2")
    obs, mask = draw(IMAGE), masks()
    action, scores = program.module()(obs, mask)
    wanted, wanted_scores = expected(network, obs, mask)
    assert torch.equal(action, wanted) and torch.equal(scores, wanted_scores)
    kinds = {x.dtype: 0 for x in program.state_dict.values()}
    for x in program.state_dict.values():
        kinds[x.dtype] += x.numel()
    assert kinds[torch.int8] > 10 * kinds[torch.float32]


@pytest.mark.parametrize("parts", ["game_stems", "game_heads"])
def test_layers_of_each_game_are_refused(parts):
    with pytest.raises(ExportError, match="does not know the game"):
        PolicyGraph(mimic(**{parts: True}), int8=False)


def test_more_bits_than_int8_are_refused():
    with pytest.raises(ExportError, match="16 bits"):
        PolicyGraph(trained(16, None), int8=True)


# --- the command

CONFIG = """\
algo: ppo
env: Taxi-v4
env_kwargs: {max_episode_steps: 20}
num_envs: 2
num_steps: 16
num_minibatches: 2
total_steps: 32
hidden_sizes: [8]
eval_episodes: 2
device: cpu
"""


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("trained")
    (directory / "config.yaml").write_text(CONFIG)
    assert main(["train", f"{directory}/config.yaml", "--run-dir", f"{directory}/run"]) == 0
    return directory / "run"


def test_the_command_writes_a_file(run_dir, capsys):
    assert main(["export", str(run_dir), "--int8"]) == 0
    said = capsys.readouterr()
    assert "rounded to 8 bits" in said.out and str(run_dir / "policy.onnx") in said.out
    assert not said.err
    obs, mask = torch.arange(100), masks(rows=100)
    model = (run_dir / "policy.onnx").read_bytes()
    action, _ = in_onnxruntime(model, obs, mask)
    assert mask.gather(1, action[:, None]).all()
    facts = {p.key: p.value for p in onnx.load_from_string(model).metadata_props}
    assert facts == {"algo": "ppo", "games": '{"Taxi-v4": null}'}
    assert main(["export", str(run_dir), "--format", "pt2"]) == 0
    named = dict.fromkeys(facts, "")
    torch.export.load(run_dir / "policy.pt2", extra_files=named)
    assert named == facts


def one_line(capsys):
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_a_full_disk_leaves_the_file_that_was_there(form, run_dir, tmp_path, monkeypatch, capsys):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / f"policy.{form}"
    path.write_text("before")
    monkeypatch.setattr(os, "fsync", full)
    assert main(["export", str(run_dir), "--format", form, "--output", str(path)]) == 2
    assert "No space left" in one_line(capsys)
    assert [p.name for p in tmp_path.iterdir()] == [path.name] and path.read_text() == "before"


def test_a_missing_package_is_one_line(run_dir, monkeypatch, capsys):
    real = builtins.__import__

    def without(name, *more, **named):
        if name == "onnxscript":
            raise ModuleNotFoundError("No module named 'onnxscript'", name=name)
        return real(name, *more, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    assert main(["export", str(run_dir)]) == 2
    assert "pip install 'rlmask[export]'" in one_line(capsys)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere is not a run"),
        (["nowhere", "--output", "x.pt2"], "x.pt2 does not end on .onnx"),
    ],
)
def test_a_bad_argument_is_one_line(arguments, words, capsys):
    assert main(["export", *arguments]) == 2
    assert words in one_line(capsys)


OTHERS = {
    "recurrent_ppo": ("algo: recurrent_ppo\nenv: Taxi-v4\n", "policies that remember"),
    "sets": (
        "algo: ppo\nencoder: set\nhidden_sizes: [8]\nnum_heads: 2\nnum_minibatches: 1\n"
        "env: rlmask_envs:rlmask/CVRP-v0\nvectorization: native\n"
        "env_kwargs: {num_customers: 3, capacity: 9}\n",
        "policies for sets",
    ),
    "learned_mask": (
        "algo: ppo\nlearned_mask: true\nenv: envs_for_tests:rlmask-tests/Doors-v0\n",
        "has a learned mask",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_a_file_would_not_hold_is_refused_in_one_line(name, tmp_path, capsys):
    settings, words = OTHERS[name]
    small = "num_envs: 2\nnum_steps: 8\ntotal_steps: 16\neval_episodes: 1\ndevice: cpu\n"
    if name != "sets":
        small += "hidden_sizes: [8]\nnum_minibatches: 1\n"
    (tmp_path / "config.yaml").write_text(settings + small)
    assert main(["train", f"{tmp_path}/config.yaml", "--run-dir", f"{tmp_path}/run"]) == 0
    capsys.readouterr()
    assert main(["export", f"{tmp_path}/run"]) == 2
    assert words in one_line(capsys)
    assert not list((tmp_path / "run").glob("policy.*"))
