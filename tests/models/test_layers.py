"""Rotary positions, attention with and without a cache, and the gated feed-forward."""

import math
from collections import Counter

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from spherear.models.layers import Attention, Block, KVCache, Rotary, SwiGLU, rope_table, rotate

GRID, PREFIX, HEAD = 4, 3, 16


def test_rope_by_complex_numbers():
    """Each pair turns by its axis' position times its frequency, written here one pair at a time."""
    x = torch.randn(1, 1, PREFIX + GRID**2, HEAD, dtype=torch.float64)
    out = rotate(x, rope_table(GRID, PREFIX, HEAD))
    for position in range(PREFIX + GRID**2):
        cell = position - PREFIX
        axes = (0.0, 0.0) if cell < 0 else (cell % GRID + 1.5, cell // GRID + 1.5)  # x, then y
        for pair in range(HEAD // 2):
            axis, k = divmod(pair, HEAD // 4)
            angle = axes[axis] * 10000.0 ** (-2 * k / (HEAD / 2))
            turned = complex(*x[0, 0, position, 2 * pair : 2 * pair + 2]) * complex(math.cos(angle), math.sin(angle))
            assert_close(complex(*out[0, 0, position, 2 * pair : 2 * pair + 2]), turned, atol=1e-5, rtol=1e-6)


def test_attention_depends_on_relative_position_alone():
    """q.k after rotation is the same for every pair of cells the same step apart."""
    q, k = torch.randn(2, 1, 1, 1, HEAD).expand(2, 1, 1, GRID**2, HEAD)
    table = rope_table(GRID, 0, HEAD)
    scores = (rotate(q, table) @ rotate(k, table).transpose(-1, -2))[0, 0]
    assert_close(scores[0, 5], scores[5, 10])  # one right and one down
    assert_close(scores[1, 2], scores[9, 10])  # one right
    assert (scores[0, 1] - scores[0, 4]).abs() > 1e-3  # right is not down


def test_rotary_stays_float32_and_follows_the_device(device):
    table = Rotary(GRID, PREFIX, HEAD).to(torch.bfloat16).to(device).table
    assert table.dtype == torch.float32
    assert table.device.type == device
    assert_close(table.cpu(), rope_table(GRID, PREFIX, HEAD))


def test_rotary_is_rebuilt_from_the_meta_device():
    with torch.device("meta"):
        rotary = Rotary(GRID, PREFIX, HEAD)
    assert_close(rotary.to_empty(device="cpu").table, rope_table(GRID, PREFIX, HEAD))


def test_attention_by_definition():
    attention = Attention(32, 2).double()
    x, table = torch.randn(2, 7, 32, dtype=torch.float64), rope_table(GRID, PREFIX, HEAD)[:7]
    q, k, v = (part.view(2, 7, 2, HEAD).transpose(1, 2) for part in attention.wqkv(x).chunk(3, dim=-1))
    scores = rotate(q, table) @ rotate(k, table).transpose(-1, -2) / math.sqrt(HEAD)
    scores = scores.masked_fill(torch.ones(7, 7, dtype=torch.bool).triu(1), -math.inf)
    expected = attention.wo((scores.softmax(-1) @ v).transpose(1, 2).reshape(2, 7, 32))
    assert_close(attention(x, table, causal=True), expected)


@pytest.mark.parametrize("pieces", [[7], [1] * 7, [3, 1, 1, 2], [2, 5]])
def test_cached_attention_equals_uncached(pieces, device):
    block = Block(32, 2).double().to(device)
    x = torch.randn(2, 7, 32, dtype=torch.float64, device=device)
    table = rope_table(GRID, PREFIX, HEAD, torch.device(device))[:7]
    cache = KVCache(1, 2, 2, 7, HEAD, torch.float64, device)
    out, start = [], 0
    for piece in pieces:
        end = start + piece
        index = cache.reserve(piece)
        past = {"update": cache.updates(index, cache.span)[0], "mask": cache.mask(index, cache.span)}
        out.append(block(x[:, start:end], table[start:end], **past))
        start = end
    assert_close(torch.cat(out, dim=1), block(x, table, causal=True), atol=1e-12, rtol=0)


def test_cache_is_preallocated_in_its_dtype_and_says_when_it_is_full():
    cache = KVCache(3, 2, 2, 5, HEAD, torch.bfloat16)
    assert cache.nbytes == 3 * 2 * (2 * 2 * 5 * HEAD) * 2
    new = torch.ones(2, 2, 4, HEAD, dtype=torch.bfloat16)
    keys, _ = cache.update(1, cache.reserve(4), cache.span, new, new)
    assert (keys.data_ptr(), keys.dtype, cache.filled) == (cache.keys[1].data_ptr(), torch.bfloat16, 4)
    assert cache.keys[0].sum() == 0
    with pytest.raises(ValueError, match="has 5 positions; expected 8 or more"):
        cache.reserve(4)
    assert cache.filled == 4


def test_a_step_of_one_token_has_few_operations():
    """Per layer; each costs microseconds, and a large model has dozens of layers for each of hundreds of tokens."""
    block, table = Block(32, 2), rope_table(GRID, PREFIX, HEAD)
    cache, counts = KVCache(1, 2, 2, 7, HEAD), Counter()

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            counts[func.name()] += not func.is_view
            return func(*args, **(kwargs or {}))

    with torch.no_grad():
        index = cache.reserve(1)
        past = {"update": cache.updates(index, cache.span)[0], "mask": cache.bias(index, cache.span)}
        with Count():
            block(torch.randn(2, 1, 32), table[:1], **past)
    assert counts["aten::mul.Tensor"] <= 7  # two of the rotation, four of the norms, one of the gate
    assert counts.total() <= 35, counts


def test_the_bias_of_attention_is_its_mask():
    cache = KVCache(1, 1, 1, 7, HEAD, torch.bfloat16)
    index = cache.reserve(3)
    bias, mask = cache.bias(index, cache.span), cache.mask(index, cache.span)
    assert bias.dtype == torch.bfloat16
    assert ((bias == 0) == mask).all()
    assert ((bias == -math.inf) == ~mask).all()


def test_a_cache_is_read_in_few_shapes():
    cache = KVCache(1, 1, 1, 271, HEAD)
    spans = {}
    for filled in range(1, 272):
        cache.reserve(1)
        spans[filled] = cache.span
    assert sorted(set(spans.values())) == [64, 128, 192, 256, 271]
    assert all(span >= filled for filled, span in spans.items())
    assert cache.mask(torch.tensor([63, 64]), 128).sum(dim=-1).tolist() == [64, 65]


def test_a_cleared_cache_holds_nothing_of_before():
    """Not even nan at positions that the next decode masks: 0 x nan is nan."""
    cache = KVCache(2, 1, 1, 5, HEAD)
    new = torch.full((1, 1, 3, HEAD), math.nan)
    cache.update(1, cache.reserve(3), cache.span, new, new)
    cache.clear()
    assert cache.filled == 0
    assert all((tensor == 0).all() for tensor in (*cache.keys, *cache.values))


@pytest.mark.parametrize("move", [lambda r: r.to("cpu"), lambda r: r.bfloat16(), lambda r: r.double().float()])
def test_a_rotary_table_keeps_its_memory_on_its_device(move):
    """A captured graph reads it at its address."""
    rotary = Rotary(GRID, PREFIX, HEAD)
    address = rotary.table.data_ptr()
    assert move(rotary).table.data_ptr() == address
    assert_close(rotary.table, rope_table(GRID, PREFIX, HEAD), atol=0, rtol=0)


@pytest.mark.parametrize(("width", "hidden"), [(96, 256), (128, 512), (768, 2048), (1024, 2816), (1280, 3584)])
def test_feed_forward_width(width, hidden):
    assert SwiGLU(width).w2.in_features == hidden
