"""From a student of many games to a game it has not seen: its weights as the first ones.

Everything of a network that means the same in the other one is taken over: all layers of the torso,
and the rows of the last layer by the union action that each stands for. The first layer is cut, or
left random beyond, where the new game shows fewer or more planes.

Reference: Parisotto et al. 2016, arXiv:1511.06342, section 4 (transfer: all weights, the last layer
included, whose logits are the first action values).
"""

from collections.abc import Callable, Mapping
from typing import Literal

from torch import Tensor

Parts = Literal["trunk", "trunk_and_head"]
Initial = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]  # random weights -> the first ones


class TransferError(ValueError):
    """The weights of a student do not fit another network."""


def initial_weights(
    source: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    *,
    parts: Parts,
    source_stems: bool = False,
) -> dict[str, Tensor]:
    """Return the target's weights with those of the source in their place, wherever they fit.

    Args:
        source: state dict of an ActorMimicNetwork, ActorCritic or QNetwork.
        target: state dict of the new network; not changed.
        parts: `trunk`, the torso; `trunk_and_head`, the actor's or the Q head as well.
        source_stems: the source has a first layer for each game; the new game's stays random.

    Raises:
        TransferError: if a layer has another shape than it can have, or there is no such head.
    """
    weights = {name: weight.clone() for name, weight in target.items()}
    first = next(name for name in target if name.startswith("torso.") and target[name].ndim > 1)
    trunk = [name for name in target if name.startswith("torso.")]
    if source_stems:
        is_first = first.rpartition(".")[0]
        trunk = [name for name in trunk if name.rpartition(".")[0] != is_first]
    for name in trunk:
        if name not in source:
            raise TransferError(
                f"the student has no layer {name}: give the new run the student's conv_filters and "
                "hidden_sizes, and shared_torso"
            )
        weights[name] = fitted(name, source[name], weights[name], is_first=name == first)
    if parts == "trunk_and_head":
        take_head(source, weights)
    return weights


def fitted(name: str, source: Tensor, target: Tensor, *, is_first: bool) -> Tensor:
    """Return a layer's weight in the target's shape; only the first may have other inputs.

    Raises:
        TransferError: if it has another shape.
    """
    if source.shape == target.shape:
        return source.clone()
    inputs = 1 if source.ndim == 4 else 0  # of a convolution, of a linear layer
    others = [axis for axis in range(target.ndim) if axis != inputs]
    same = source.ndim == target.ndim and all(source.shape[a] == target.shape[a] for a in others)
    if not (is_first and same):
        raise TransferError(
            f"{name} is {tuple(source.shape)} in the student and {tuple(target.shape)} in the new "
            "network: give the new run the student's conv_filters and hidden_sizes, and images of "
            "the same height and width"
        )
    weight = target.clone()
    count = min(source.shape[inputs], target.shape[inputs])
    weight.narrow(inputs, 0, count).copy_(source.narrow(inputs, 0, count))
    return weight


def take_head(source: Mapping[str, Tensor], weights: dict[str, Tensor]) -> None:
    """Take over the last layer, row by row; rows of actions that the student lacks stay random.

    Raises:
        TransferError: if the student has a head for each game, or one of another kind.
    """
    names = {"actor_head": "PPO", "head": "DQN"}
    (own,) = [name for name in names if f"{name}.weight" in weights]
    (theirs,) = [name for name in names if f"{name}.weight" in source]
    for part in ("weight", "bias"):
        given, wanted = source[f"{theirs}.{part}"], weights[f"{own}.{part}"]
        if given.shape != wanted.shape:
            raise TransferError(
                f"the student's head is {tuple(given.shape)}, the new one {tuple(wanted.shape)}: "
                "set num_actions and action_ids to the student's union of actions (no dueling, no "
                "distribution, no head a game), or take over the trunk only"
            )
        wanted.copy_(given)
