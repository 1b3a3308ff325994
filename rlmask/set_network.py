"""Actor-critic over a set of entities: attention among them, a score for each, any number of them.

Dimension key: `B` batch, `E` entities, one for each action, `F` numbers of an entity, `H` features,
`K` attention heads.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rlmask.attention import MultiHeadSelfAttention
from rlmask.layers import SQRT_2, grad_of, head
from rlmask.ops import length_mask, masked_mean_pool, only_existing
from rlmask.torso import NetworkError
from rlmask.types import ActionSpec, ObsSpec

ROWS = 128


class SetActorCritic(nn.Module):
    """Raw scores of actions that each stand for an entity, and a state value, of attention blocks.

    An observation is a row of numbers for each action, then numbers common to all of them (fewer
    than there are actions), which every row gets. The first number of a row is positive if its
    entity is there; what is not (or no longer) is padding, that no other entity sees. Nothing
    depends on the order or on the number of the entities, so that the weights fit problems of any
    size.

    Reference: Vaswani et al. 2017, arXiv:1706.03762 (blocks, here normalised before each part);
    Kool et al. 2019, arXiv:1803.08475 (attention scores the nodes of a routing problem); Zaheer et
    al. 2017, arXiv:1703.06114 (functions of sets are functions of a sum).

    Args:
        width: H.
        num_blocks: of attention, each with two fully connected layers behind it.
        num_heads: K, of the attention.
        generator: of the initial weights (CPU).

    Raises:
        NetworkError: if the observations are no rows of numbers, one an action.
    """

    obs_scaler: None = None

    def __init__(
        self,
        obs: ObsSpec,
        action: ActionSpec,
        *,
        width: int,
        num_blocks: int,
        num_heads: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.obs_spec, self.action_spec = obs, action
        self.num_features, num_common = rows_of(obs, action)
        num_inputs = self.num_features + num_common
        self.torso = SetTorso(num_inputs, width, num_blocks, num_heads, generator)
        self.actor_head = head(width, 1, 0.01, generator)
        self.critic_head = head(width, 1, 0.01, generator)

    def forward(
        self, obs: Float[Tensor, " B obs"], game: Int[Tensor, " B"] | None = None
    ) -> tuple[Float[Tensor, " B E"], Float[Tensor, " B"]]:
        """Return logits and value."""
        logits, value, _ = self.outputs(obs)
        return logits, value

    def scores(
        self,
        obs: Float[Tensor, " B obs"],
        action_mask: Bool[Tensor, " B E"],
        game: Int[Tensor, " B"] | None = None,
    ) -> tuple[Float[Tensor, " B E"], Float[Tensor, " B H"]]:
        """Return logits, and the features of the whole set."""
        logits, _, features = self.outputs(obs)
        return logits, features

    def outputs(
        self, obs: Float[Tensor, " B obs"]
    ) -> tuple[Float[Tensor, " B E"], Float[Tensor, " B"], Float[Tensor, " B H"]]:
        """Return logits (0 of what is not there), value, and the features of the whole set.

        On a CPU some rows at a time, of about as many entities each, so that little is computed for
        padding, and what is computed stays in the cache.
        """
        num_entities = self.action_spec.num_actions
        size = num_entities * self.num_features
        rows, common = obs.split((size, obs.shape[1] - size), 1)
        shared = common.unsqueeze(1).expand(-1, num_entities, -1)
        entities = torch.cat((rows.unflatten(1, (num_entities, -1)), shared), -1)
        is_there = entities[..., 0] > 0
        entities = only_existing(entities, is_there)
        count = is_there.sum(-1)
        place = is_there.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)
        order = count.argsort(stable=True)
        outputs = []
        for some in order.split(ROWS if obs.is_cpu else len(order)):
            own_count, longest = count[some], int(count[some[-1]])
            own_place = place[some, :longest]
            own = entities[some.unsqueeze(-1), own_place]
            score, *others = self._outputs(own, length_mask(own_count, longest))
            logits = score.new_zeros(len(some), num_entities).scatter(1, own_place, score)
            outputs.append((logits, *others))
        back = order.argsort()
        logits, value, features = (
            torch.cat(parts).index_select(0, back) for parts in zip(*outputs, strict=True)
        )
        return logits, value, features

    def _outputs(self, entities: Tensor, is_there: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features, mean = self.torso(entities, is_there)
        value = only_existing(self.critic_head(features), is_there).sum((1, 2))
        score = only_existing(self.actor_head(features), is_there).squeeze(-1)
        return score, value, mean

    def check_mask(
        self, env_id: str, obs: Float[Tensor, "*batch obs"], action_mask: Bool[Tensor, "*batch E"]
    ) -> None:
        """Check that the entity of every valid action is there: what is not has a score of 0.

        Raises:
            NetworkError: if one is not, as where the rows of an observation are laid out otherwise.
        """
        first = obs[..., : self.num_features * self.action_spec.num_actions : self.num_features]
        unseen = action_mask & ~(first > 0)
        if bool(unseen.any()):
            action = int(unseen.nonzero()[0, -1])
            raise NetworkError(
                f"{env_id}: action {action} is valid, but number {action * self.num_features} of "
                f"the observation, the first of row {action}, is not positive, which says that it "
                "is not there. The observation is no row of "
                f"{self.num_features} numbers an action: set encoder to layers"
            )

    def vjp(
        self, obs: Float[Tensor, " B obs"]
    ) -> tuple[Float[Tensor, " B E"], Float[Tensor, " B"], Callable[[Tensor, Tensor], None]]:
        """Return logits, value, and the pullback of their gradients; see `ActorCritic.vjp`."""
        with torch.inference_mode(False), torch.enable_grad():
            logits, value = self.forward(obs.clone())

        def pullback(grad_logits: Tensor, grad_value: Tensor) -> None:  # [B, E], [B]
            parameters = list(self.parameters())
            gradients = torch.autograd.grad((logits, value), parameters, (grad_logits, grad_value))
            for parameter, gradient in zip(parameters, gradients, strict=True):
                grad_of(parameter).copy_(gradient)

        return logits.detach(), value.detach(), pullback


class SetTorso(nn.Module):
    """From the numbers of entities to their features, of which each has seen all others."""

    def __init__(
        self,
        num_inputs: int,
        width: int,
        num_blocks: int,
        num_heads: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.embed = head(num_inputs, width, SQRT_2, generator)
        blocks = [Block(width, num_heads, generator) for _ in range(num_blocks)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width)
        self.own = head(width, width, SQRT_2, generator)
        self.common = head(width, width, SQRT_2, generator)

    def forward(
        self, entities: Float[Tensor, " B E inputs"], is_there: Bool[Tensor, " B E"]
    ) -> tuple[Float[Tensor, " B E H"], Float[Tensor, " B H"]]:
        """Return the features of each entity, and their mean before the last layer."""
        x = self.embed(entities)
        for block in self.blocks:
            x = block(x, is_there)
        x = self.norm(x)
        mean = masked_mean_pool(x, is_there, "zero")
        return torch.relu(self.own(x) + self.common(mean).unsqueeze(1)), mean


class Block(nn.Module):
    """Attention among the entities, then two fully connected layers, each added to its input."""

    def __init__(self, width: int, num_heads: int, generator: torch.Generator) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = MultiHeadSelfAttention(width, num_heads, generator)
        self.norm = nn.LayerNorm(width)
        self.up = head(width, 2 * width, SQRT_2, generator)
        self.down = head(2 * width, width, 1.0, generator)

    def forward(
        self, x: Float[Tensor, " B E H"], is_there: Bool[Tensor, " B E"]
    ) -> Float[Tensor, " B E H"]:
        """Return the features after the block."""
        x = x + self.attention(self.attention_norm(x), is_there)
        return x + self.down(torch.relu(self.up(self.norm(x))))


def rows_of(obs: ObsSpec, action: ActionSpec) -> tuple[int, int]:
    """Return how many numbers an entity has, and how many (fewer than actions) are common to all.

    Raises:
        NetworkError: if the observations are no rows of numbers, one an action.
    """
    size, count = obs.shape[0] if obs.kind == "vector" else 0, action.num_actions
    if len(action.nvec) > 1 or size < count:
        raise NetworkError(
            f"encoder is set, but observations of {obs.kind} {obs.shape or obs.n} are no rows of "
            f"numbers, one for each of {'+'.join(map(str, action.nvec))} actions; set it to layers"
        )
    return divmod(size, count)
