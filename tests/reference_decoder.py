"""The plain decoder that ours is measured against: the published loop, written straight down.

Keys and values grow by concatenation in lists, the condition's projection and the time's embedding are
computed anew in every evaluation, guidance concatenates its two halves each time. Nothing is shared with
`spherear.sampling` but the noise it is handed; of the models, only their layers' weights.
"""

import math

import torch
import torch.nn.functional as F


def attention(layer, x, table, past):
    """One attention layer over all that came before; `past` is a list of [keys, values], replaced by longer ones."""
    batch, count, width = x.shape
    q, k, v = layer.wqkv(x).view(batch, count, 3, layer.heads, -1).permute(2, 0, 3, 1, 4)
    q, k = turned(q, table), turned(k, table)
    if past:
        k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
    past[:] = [k, v]
    out = F.scaled_dot_product_attention(q, k, v, is_causal=count > 1)
    return layer.wo(out.transpose(1, 2).reshape(batch, count, width))


def turned(x, table):
    """Pairs of numbers as complex ones, turned by the table's angles."""
    pairs = torch.view_as_complex(x.to(table.dtype).reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * torch.view_as_complex(table.contiguous())).flatten(-2).to(x.dtype)


def transformed(ar, x, start, pasts):
    """The transformer's output at the newest position."""
    table = ar.rotary.table[start : start + x.shape[1]].to(torch.promote_types(x.dtype, torch.float32))
    x = ar.emb_norm(x)
    for block, past in zip(ar.layers, pasts, strict=True):
        x = x + attention(block.attention, block.attention_norm(x), table, past)
        x = x + block.feed_forward(block.ffn_norm(x))
    return ar.norm(x[:, -1])


def velocity(ar, x, t, condition, scale, guided):
    """The head, whole, at one time for all rows; guided where there are two halves."""
    rows = torch.cat((x, x)) if guided else x
    v = ar.head(rows, torch.full((len(rows),), t, dtype=x.dtype), condition)
    if not guided:
        return v
    conditional, null = v.chunk(2)
    return null + scale * (conditional - null)


def solved(velocity, ar, condition, noise, steps, last_step, scale):
    """Euler-Maruyama from noise to a token, by REFERENCE's formulas."""
    times = torch.linspace(0.0, 1.0 - last_step, steps + 1).tolist()  # in float32, as published
    x, guided = noise[0], scale != 1.0
    for i in range(steps):
        t, dt = times[i], times[i + 1] - times[i]
        v = velocity(ar, x, t, condition, scale, guided)
        score = (t * v - x) / (1 - t)
        x = x + (v + (1 - t) * score) * dt + math.sqrt(2 * (1 - t) * dt) * noise[i + 1]
    return x + velocity(ar, x, times[-1], condition, scale, guided) * (1 - times[-1])


def reference_steps(ar, labels, settings, noise, radius, transform=lambda function: function):
    """One token of all images after another, (batch, dim): linear schedule, Euler-Maruyama, projected, guided.

    transform: applied to the evaluation of the head and to the transformer (a compiler, say).
    """
    evaluation, transformer = transform(velocity), transform(transformed)
    count, dim = ar.config.tokens, ar.config.latent_dim
    rows = torch.cat((labels, torch.full_like(labels, ar.config.num_classes)))
    pasts = [[] for _ in ar.layers]
    x = ar.cls_embedding(rows).view(len(rows), ar.config.class_tokens, -1)
    start = 0
    for index in range(count):
        condition = transformer(ar, x, start, pasts) + ar.pos_for_diff.weight[index]
        start += x.shape[1]
        scale = 1.0 + (settings.guidance_scale - 1.0) * index / count
        drawn = noise(index, (settings.steps + 1, len(labels), dim)).to(ar.head.state_dtype)
        if scale == 1.0:
            drawn = torch.cat((drawn, drawn), dim=1)
        raw = solved(evaluation, ar, condition, drawn, settings.steps, settings.last_step, scale)
        token = radius * raw / raw.norm(dim=-1, keepdim=True)
        both = token if len(token) == len(rows) else torch.cat((token, token))
        yield both[: len(labels)]
        x = ar.proj_in(both.to(ar.proj_in.weight.dtype))[:, None]


@torch.no_grad()
def reference_decode(ar, labels, settings, noise, radius):
    """All tokens of all images, (batch, tokens, dim)."""
    return torch.stack(list(reference_steps(ar, labels, settings, noise, radius)), dim=1)
