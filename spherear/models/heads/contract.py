"""The contract of heads: what training and sampling ask of every head, whatever it computes.

How a token is drawn with a head is in `sampling.head_sampling`; which heads there are in `table`.
"""

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Head(nn.Module):
    """Base class of heads: from the condition of a token to a way of drawing it.

    discrete: it draws codes of a codebook.  curved: its states stay on the sphere of radius sqrt(latent_dim).
    takes_scale: guidance is an input of the head, so that a token needs no second, unconditional branch.
    A subclass is constructed as (latent_dim, condition_width, width, depth, groups or codes).
    """

    discrete: ClassVar[bool] = False
    curved: ClassVar[bool] = False
    takes_scale: ClassVar[bool] = False

    @property
    def state_dtype(self) -> torch.dtype:
        """Dtype of what is drawn: float32 or better."""
        weight = next(self.parameters())
        return torch.promote_types(weight.dtype, torch.float32)

    def draws(
        self, tokens: Float[Tensor, "batch tokens dim"], repeats: int, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """The random numbers of one `loss`, as its keyword arguments: drawn apart, because compiled code cannot."""
        return {}

    def loss(self, *inputs: Any, **draws: Any) -> Float[Tensor, ""]:
        """Mean loss per token of loss(tokens, condition, ...), both (batch, tokens, ...).

        draws: those of `draws`, or `repeats` and `generator` to draw them with; null: the conditions without a label,
        if the head takes the scale.
        """
        raise TypeError(f"{type(self).__name__} has no loss; expected a head that says how it learns")
