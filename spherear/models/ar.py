"""The causal transformer: from a label and the tokens so far to the condition of the next token.

It runs with teacher forcing, or one token at a time with a KV cache. Guidance, solvers and projection are in
`sampling`, not here. (Paper section 3.2.)
"""

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from spherear.models.config import require
from spherear.models.heads.contract import Head
from spherear.models.layers import Block, KVCache, RMSNorm, Rotary, Update, init_normal
from spherear.models.pretrained import Pretrained
from spherear.models.sizes import ARConfig

LABEL_DROPOUT = 0.1  # of the published training


class SphereAR(nn.Module, Pretrained[ARConfig]):
    """p(z_1 ... z_L | label), one token at a time in raster order, drawn by the head.

    The input sequence is [class tokens, z_1 ... z_(L-1)]. The conditions of tokens 1 to L are its last L
    outputs, plus a learnt embedding of the predicted position. Label `num_classes` is the null class.
    """

    config_class = ARConfig

    def __init__(self, config: ARConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.cls_embedding = nn.Embedding(config.num_classes + 1, config.class_tokens * width)
        self.proj_in = nn.Linear(config.latent_dim, width)
        self.emb_norm = RMSNorm(width)
        self.rotary = Rotary(
            math.isqrt(config.tokens),
            config.class_tokens,
            width // config.heads,
            length=config.class_tokens + config.tokens - 1,
        )
        self.layers = nn.ModuleList(Block(width, config.heads) for _ in range(config.layers))
        self.norm = RMSNorm(width)
        self.pos_for_diff = nn.Embedding(config.tokens, width)
        init_normal(self)
        self.head: Head = _head(config)

    @property
    def null_label(self) -> int:
        """The label of the null class, for the unconditional branch of guidance."""
        return self.config.num_classes

    def forward(
        self, tokens: Float[Tensor, "batch tokens dim"], labels: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch tokens width"]:
        """Teacher forcing: all tokens and labels -> the condition of every token.

        The condition of token i depends only on the label and on the tokens before i. ValueError for wrong
        shapes, and for labels out of range if they are on the CPU (elsewhere the check would wait for the device) and
        the call is neither compiled nor exported.
        """
        self._check(tokens, labels)
        inputs = torch.cat((self._classes(labels), self._inputs(tokens[:, :-1])), dim=1)
        uncached = [None] * len(self.layers)
        x = self._transform(inputs, self.rotary(inputs.shape[1]), uncached)[:, -self.config.tokens :]
        return self.norm(x) + self.pos_for_diff.weight

    def loss(
        self,
        tokens: Float[Tensor, "batch tokens dim"],
        labels: Int[Tensor, " batch"],
        times: Float[Tensor, " rows"] | None = None,
        noise: Float[Tensor, "rows dim"] | None = None,
        *,
        repeats: int = 4,
        label_dropout: float | None = None,
        generator: torch.Generator | None = None,
        **draws: Tensor,
    ) -> Float[Tensor, ""]:
        """The head's loss, averaged over all tokens, each given its label and the tokens before it.

        label_dropout: probability that a label is replaced by the null class; by default 0.1 in training mode and 0 in
        eval mode.  repeats, times, noise, draws: see the `draws` and `loss` of the head; a categorical head ignores
        them. A head that takes the guidance scale also gets the conditions without a label, which learn nothing from
        it. ValueError for a probability that is none, and for what `forward` and the head refuse.
        """
        share = (LABEL_DROPOUT if self.training else 0.0) if label_dropout is None else label_dropout
        require(0 <= share <= 1, f"label_dropout is {share}; expected a share from 0 to 1")
        if share > 0:
            drop = torch.rand(labels.shape, generator=generator, device=tokens.device) < share
            labels = torch.where(drop, self.null_label, labels)
        condition = self(tokens, labels)
        given = {"repeats": repeats, "times": times, "noise": noise, "generator": generator, **draws}
        if self.head.takes_scale:
            with torch.no_grad():
                given["null"] = self(tokens, torch.full_like(labels, self.null_label))
        return self.head.loss(tokens, condition, **given)

    def kv_cache(self, batch: int) -> KVCache:
        """An empty cache for `batch` rows, with the dtype and device of the weights."""
        weight, c = self.proj_in.weight, self.config
        length = c.class_tokens + c.tokens - 1
        return KVCache(c.layers, batch, c.heads, length, c.width // c.heads, weight.dtype, weight.device)

    def start(self, labels: Int[Tensor, " batch"], kv_cache: KVCache) -> Float[Tensor, "batch width"]:
        """Labels -> the condition of the first token; fills the cache with the class tokens."""
        index = kv_cache.reserve(self.config.class_tokens)
        return self._next(self._classes(labels), kv_cache, index, kv_cache.span)

    def step(self, token: Float[Tensor, "batch dim"], kv_cache: KVCache) -> Float[Tensor, "batch width"]:
        """The newest token -> the condition of the next one; fills one position of the cache."""
        index = kv_cache.reserve(1)
        return self.advance(token, kv_cache, index, kv_cache.span)

    def advance(
        self, token: Float[Tensor, "batch dim"], kv_cache: KVCache, index: Int[Tensor, " 1"], span: int
    ) -> Float[Tensor, "batch width"]:
        """`step` at a given position of a cache, which is a tensor: so the call can be compiled or captured."""
        return self._next(self._inputs(token[:, None]), kv_cache, index, span)

    def _next(self, inputs: Tensor, kv_cache: KVCache, index: Tensor, span: int) -> Tensor:
        updates, mask = kv_cache.updates(index, span), kv_cache.bias(index, span)
        x = self._transform(inputs, self.rotary.at(index), updates, mask)[:, -1]  # (batch, width)
        predicted = index[-1:] - (self.config.class_tokens - 1)
        return self.norm(x) + self.pos_for_diff.weight.index_select(0, predicted)

    def _classes(self, labels: Tensor) -> Tensor:
        embedded = self.cls_embedding(labels)
        return rearrange(embedded, "batch (tokens width) -> batch tokens width", width=self.config.width)

    def _inputs(self, tokens: Tensor) -> Tensor:
        return self.proj_in(tokens.to(self.proj_in.weight.dtype))

    def _transform(
        self, inputs: Tensor, rope: Tensor, updates: Sequence[Update | None], mask: Tensor | None = None
    ) -> Tensor:
        x = self.emb_norm(inputs)
        for layer, update in zip(self.layers, updates, strict=True):
            x = layer(x, rope, causal=True, update=update, mask=mask)
        return x

    def _check(self, tokens: Tensor, labels: Tensor) -> None:
        expected = (self.config.tokens, self.config.latent_dim)
        if tuple(tokens.shape[1:]) != expected or tokens.shape[0] != labels.shape[0]:  # no `len`: it fixes the batch
            raise ValueError(
                f"tokens have shape {tuple(tokens.shape)}; expected ({len(labels)}, {expected[0]}, {expected[1]})"
            )
        if labels.device.type == "cpu":
            check_labels(labels, self.config.num_classes + 1)


def _head(config: ARConfig) -> Head:
    sizes = config.latent_dim, config.width, config.head_width, config.head_depth
    return config.head_kind.make(*sizes, config.codes or config.head_groups)


def check_labels(labels: Int[Tensor, " batch"], num_classes: int) -> None:
    """ValueError for labels outside 0 .. num_classes - 1; it names the first one. Not checked in compiled code."""
    if torch.compiler.is_compiling():  # a graph cannot depend on values
        return
    bad = (labels < 0) | (labels >= num_classes)
    if bad.any():
        raise ValueError(f"label {int(labels[bad][0])} is out of range; expected 0 to {num_classes - 1}")
