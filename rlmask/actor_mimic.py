"""The network of many games: one torso, one output for each action of the union.

Dimension key: `B` batch, `A` union actions, `H` features, `G` games. Rows come in turn: row i is of
game i modulo G, unless it is said which game each is of.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rlmask.layers import apply_head, head, linear_pullback
from rlmask.normalize import ObsScaler
from rlmask.torso import Activation, Torso, find_quickly
from rlmask.types import ActionSpec, ObsSpec


class ActorMimicNetwork(nn.Module):
    """Raw scores of the union actions for all games: the mask alone says which game it is.

    Reference: Parisotto et al. 2016, arXiv:1511.06342 (one head over the union, feature maps); Rusu
    et al. 2016, arXiv:1511.06295 (a head for each game).

    Args:
        num_games: G.
        conv_filters: see `rlmask.torso.ConvTorso`; for images only.
        hidden_sizes: widths of the fully connected layers, at least one.
        game_stems: each game has a first layer of its own.
        game_heads: each game has a last layer of its own, over the same union.
        value_head: a state value as well, of an output for each game: returns differ in scale.
        normalize_obs: see `rlmask.normalize.ObsScaler`; of vector observations.
        feature_sizes: units of each game's expert, to which `feature_maps` lead from the features
            [H]; the forward pass does not need them.
        generator: of the initial weights (CPU).
    """

    def __init__(
        self,
        obs: ObsSpec,
        action: ActionSpec,
        num_games: int,
        *,
        conv_filters: Sequence[int] = (),
        hidden_sizes: Sequence[int],
        activation: Activation,
        game_stems: bool,
        game_heads: bool,
        value_head: bool,
        normalize_obs: bool,
        feature_sizes: Sequence[int] = (),
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.obs_spec, self.action_spec = obs, action
        self.torso = Torso(
            1,
            obs,
            hidden_sizes,
            activation,
            generator,
            conv_filters=conv_filters,
            num_stems=num_games if game_stems else 1,
        )
        width, num_heads = hidden_sizes[-1], num_games if game_heads else 1
        self.actor_head = head(width, action.num_actions, 0.01, generator, num_heads)
        self.critic_head = head(width, 1, 1.0, generator, num_games) if value_head else None
        maps = [head(width, size, 1.0, generator) for size in feature_sizes]
        self.feature_maps = nn.ModuleList(maps)
        self.obs_scaler = ObsScaler(obs) if normalize_obs and obs.kind == "vector" else None
        find_quickly(self)

    def forward(
        self, obs: Tensor, game: Int[Tensor, " B"] | None = None
    ) -> tuple[Float[Tensor, " B A"], Float[Tensor, " B"]]:
        """Return logits and value, which is 0 without a value head.

        Args:
            game: of each row; None: row i is of game i modulo G.
        """
        return self.heads(self.torso(self.scaled(obs), game)[0], game)

    def scores(
        self,
        obs: Tensor,
        action_mask: Bool[Tensor, " B A"],
        game: Int[Tensor, " B"] | None = None,
    ) -> tuple[Float[Tensor, " B A"], Float[Tensor, " B H"]]:
        """Return logits, and the features that they are of; `game` is as in `forward`."""
        features = self.torso(self.scaled(obs), game)[0]
        return apply_head(self.actor_head, features, game), features

    def scaled(self, obs: Tensor) -> Tensor:
        """Return the observations as the torso sees them."""
        return obs if self.obs_scaler is None else self.obs_scaler(obs)

    def heads(
        self, features: Float[Tensor, " B H"], game: Int[Tensor, " B"] | None = None
    ) -> tuple[Float[Tensor, " B A"], Float[Tensor, " B"]]:
        """Return logits and value of features."""
        logits = apply_head(self.actor_head, features, game)
        if self.critic_head is None:
            return logits, features.new_zeros(len(features))
        return logits, apply_head(self.critic_head, features, game).squeeze(-1)

    def vjp(
        self, obs: Tensor
    ) -> tuple[Float[Tensor, " B A"], Float[Tensor, " B"], Callable[[Tensor, Tensor], None]]:
        """Return logits, value, and the pullback of their gradients; see `ActorCritic.vjp`."""
        logits, value, _, pullback = self.vjp_features(obs)
        return logits, value, pullback

    def vjp_features(
        self, obs: Tensor
    ) -> tuple[
        Float[Tensor, " B A"],
        Float[Tensor, " B"],
        Float[Tensor, " B H"],
        Callable[..., None],
    ]:
        """Return logits, value, features and the pullback of their gradients, rows in turn.

        `pullback(∂L/∂logits, ∂L/∂value = None, ∂L/∂features = None)` is as that of
        `ActorCritic.vjp`; the features' gradient comes on top of the heads'.
        """
        features, torso_pullback = self.torso.vjp(self.scaled(obs))

        def pullback(
            grad_logits: Tensor, grad_value: Tensor | None = None, more: Tensor | None = None
        ) -> None:  # [B, A], [B], [B, H]
            grad = torch.empty_like(features)
            linear_pullback(self.actor_head, features[0], grad_logits, grad[0])
            if grad_value is not None and self.critic_head is not None:
                of_value = torch.empty_like(features[0])
                linear_pullback(self.critic_head, features[0], grad_value.unsqueeze(-1), of_value)
                grad[0] += of_value
            if more is not None:
                grad[0] += more
            torso_pullback(grad)

        return *self.heads(features[0]), features[0], pullback
