"""A run's policy as one file that needs no rlmask: ONNX, or PyTorch's own exported program.

The graph takes observations and masks, any number of rows, and returns the best valid action of
each and the scores of all. Weights on a grid of 8 bits or fewer are stored as int8.

Dimension key: `B` batch, `A` union actions.
"""

import copy
import io
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.export import ExportedProgram

from rlmask.actor_mimic import ActorMimicNetwork
from rlmask.checkpoint import replace_synced
from rlmask.layers import GameLinear
from rlmask.networks import ActorCritic, QNetwork
from rlmask.ops import masked_argmax, split_parts, steps_on_grid
from rlmask.quantize import (
    Layer,
    QuantizedNetwork,
    layers_of,
    quantized_weight,
    using,
    weight_scale,
    weight_steps,
)
from rlmask.runs import ALGORITHMS, RunConfig, read_run
from rlmask.types import ActionSpec, ObsSpec
from rlmask.vector import game_names

Format = Literal["onnx", "pt2"]
Network = ActorCritic | QNetwork | ActorMimicNetwork | QuantizedNetwork
INT8_BITS = 8


class ExportError(ValueError):
    """A run cannot be exported in this way."""


class PolicyGraph(nn.Module):
    """The greedy policy of a network, with its weights as they are to be stored.

    Args:
        network: is copied; what the policy does not need is left out.
        int8: store the weights as whole numbers and the steps of their grids: those of a network
            with weight_bits as they are, those of others rounded to 8 bits now.

    Raises:
        ExportError: if each game has layers of its own, or the weights do not fit into int8.
    """

    def __init__(self, network: Network, int8: bool) -> None:
        super().__init__()
        self.network = network = copy.deepcopy(network).cpu().requires_grad_(False)
        for name in ("critic_head", "feature_maps"):
            if name in network._modules:
                del network._modules[name]
                network.__dict__[name] = None
        check_one_policy(network)
        bits = bits_of(network)
        if int8 and (bits or 0) > INT8_BITS:
            raise ExportError(
                f"the weights have {bits} bits, which do not fit into int8; leave out --int8"
            )
        self.grids = network.grids() if isinstance(network, QuantizedNetwork) else None
        self.layers: Sequence[Layer] = tuple(layers_of(network))
        self.scales: list[str | None] = []
        for index, layer in enumerate(self.layers):
            stored, scale = layer.weight.detach(), None
            if int8:
                stored = weight_steps(layer, bits or INT8_BITS).to(torch.int8)
                scale = weight_scale(layer, bits or INT8_BITS)
            elif bits is not None:
                stored = quantized_weight(layer, bits)
            self.register_buffer(f"weight{index}", stored.clone())
            if scale is not None:
                self.register_buffer(f"scale{index}", scale)
            del layer._parameters["weight"]
            layer.__dict__["weight"] = None

    def forward(
        self, obs: Tensor, action_mask: Bool[Tensor, " B A"]
    ) -> tuple[Int[Tensor, " B *parts"], Float[Tensor, " B A"]]:
        """Return the best valid action, and the scores of all actions."""
        weights = [self.weight(index) for index in range(len(self.layers))]
        if isinstance(self.network, QuantizedNetwork):
            scores, _ = self.network.run(obs, None, weights, self.rounded)
        else:
            with using(self.layers, weights):
                scores, _ = self.network.scores(obs, action_mask)
        nvec = self.network.action_spec.nvec
        action = masked_argmax(split_parts(scores, nvec), split_parts(action_mask, nvec))
        return action, scores

    def weight(self, index: int) -> Tensor:
        """Return the weight of a layer as the pass needs it."""
        stored, scale = getattr(self, f"weight{index}"), getattr(self, f"scale{index}", None)
        return stored if scale is None else stored.to(scale.dtype) * scale

    def rounded(self, place: int, x: Tensor) -> Tensor:
        """Return activations on the grid of their place."""
        if self.grids is None:
            return x
        return steps_on_grid(x, self.grids[place]) * self.grids[place].scale


def check_one_policy(network: nn.Module) -> None:
    """Raise `ExportError` if rows of several games go through different layers."""
    several = [m for m in network.modules() if isinstance(m, GameLinear)]
    stems = [m for m in network.modules() if len(getattr(m, "stems", ()))]
    if several or stems:
        raise ExportError(
            "this policy has layers of their own for each game (game_stems, game_heads); a graph "
            "of observations and masks does not know the game: train it without them"
        )


def bits_of(network: nn.Module) -> int | None:
    """Return the bits of the weights that a network computes with; None: float32."""
    if isinstance(network, QuantizedNetwork) and network.is_quantized:
        return network.weight_bits
    return None


def export_run(run_dir: Path, path: Path, form: Format, int8: bool) -> list[str]:
    """Write the policy of a run's newest checkpoint to a file; say what is to be known of it.

    Raises:
        RunError, CheckpointError: if the run cannot be read.
        ExportError: if its network cannot be exported so, or a package is missing.
    """
    if form == "onnx":
        check_packages()
    config, state = read_run(run_dir)
    network = ALGORITHMS[config.algo].load_network(config.settings, state)
    if not isinstance(network, Network):
        raise ExportError(
            f"{run_dir} has a {type(network).__name__}; policies that remember and policies for "
            "sets cannot be exported"
        )
    if getattr(config.settings, "learned_mask", False):
        raise ExportError(f"{run_dir} has a learned mask, which the file would not hold")
    said = []
    if int8 and bits_of(network) is None:
        said.append(f"the weights were trained in float32 and are rounded to {INT8_BITS} bits now")
    graph = PolicyGraph(network, int8)
    program = exported(graph, network.obs_spec, network.action_spec)
    to_bytes = program_bytes if form == "pt2" else onnx_bytes
    replace_synced(path, to_bytes(program, facts_of(config)))
    return [*said, f"{path}  {path.stat().st_size:,} bytes"]


def facts_of(config: RunConfig) -> dict[str, str]:
    """Return what the file says of the run."""
    games = config.settings.all_games
    ids = [None if game.action_ids is None else list(game.action_ids) for game in games]
    names = game_names(games)
    return {"algo": config.algo, "games": json.dumps(dict(zip(names, ids, strict=True)))}


def exported(graph: PolicyGraph, obs: ObsSpec, action: ActionSpec) -> ExportedProgram:
    """Return the graph as a program of PyTorch's, for any number of rows."""
    rows = 3  # of the example; 0 and 1 would be taken for constants
    example = (
        torch.zeros((rows, *obs.shape), dtype=obs.torch_dtype),
        torch.ones((rows, action.num_actions), dtype=torch.bool),
    )
    batch = torch.export.Dim("batch", min=1)
    shapes = {"obs": {0: batch}, "action_mask": {0: batch}}
    with torch.no_grad(), quiet():
        return torch.export.export(graph, example, dynamic_shapes=shapes, strict=False)


def program_bytes(program: ExportedProgram, facts: dict[str, str]) -> bytes:
    """Return a program as .pt2, which `torch.export.load` reads; the facts are its extra files."""
    buffer = io.BytesIO()
    with quiet():
        torch.export.save(program, buffer, extra_files=dict(facts))
    return buffer.getvalue()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep back what PyTorch says of its own parts, and of packages that nobody needs here."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def check_packages() -> None:
    """Raise `ExportError` unless the packages for ONNX are installed."""
    try:
        import onnx
        import onnxscript
    except ImportError as error:
        raise ExportError(
            f"{error.name} is not installed: pip install 'rlmask[export]', or use --format pt2"
        ) from error
    del onnx, onnxscript


def onnx_bytes(program: ExportedProgram, facts: dict[str, str]) -> bytes:
    """Return a program as an ONNX model, whose weights stay the integers that they are.

    Raises:
        ExportError: if the model does not hold.
    """
    import onnx

    with quiet():
        converted: Any = torch.onnx.export(
            program,
            input_names=["obs", "action_mask"],
            output_names=["action", "scores"],
            dynamo=True,
            optimize=False,  # it would compute the float32 weights of the integers, and store those
            verbose=False,
        )
    model = converted.model_proto
    for node in model.graph.node:  # where in the source each is from: more bytes than the weights
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    for initializer in model.graph.initializer:
        del initializer.metadata_props[:]
        initializer.doc_string = ""
    onnx.helper.set_model_props(model, facts)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the model does not hold: {error}") from error
    return model.SerializeToString()
