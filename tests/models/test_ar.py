"""The causal transformer and its velocity head."""

import math
from dataclasses import replace

import pytest
import torch
from scipy import stats
from torch.testing import assert_close

from spherear import ARConfig, SphereAR
from spherear.models.heads import velocity as head_module
from spherear.models.heads.velocity import VelocityHead, flow_matching_loss, time_features
from tests.conftest import TINY_AR, randomise

LABELS = torch.tensor([3, 7])


@pytest.fixture
def tokens():
    return torch.randn(2, 16, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_cached_decode_equals_teacher_forcing(tiny_ar, tokens, device):
    ar, tokens, labels = tiny_ar.double().to(device), tokens.to(device), LABELS.to(device)
    cache = ar.kv_cache(2)
    conditions = [ar.start(labels, cache)]
    conditions += [ar.step(tokens[:, i], cache) for i in range(15)]
    assert cache.filled == TINY_AR.class_tokens + 15
    assert_close(torch.stack(conditions, dim=1), ar(tokens, labels), atol=1e-9, rtol=0)


def test_a_condition_does_not_see_its_own_or_later_tokens(tiny_ar, tokens):
    ar = tiny_ar.double()
    changed = tokens.clone()
    changed[:, 5] += 1.0
    difference = (ar(changed, LABELS) - ar(tokens, LABELS)).abs().amax(dim=(0, 2))
    assert (difference[:6] == 0).all()
    assert (difference[6:] > 1e-6).all()


def test_the_label_matters_and_null_is_a_label_of_its_own(tiny_ar, tokens):
    ar = tiny_ar.double()
    a, b, null = (ar(tokens, torch.full_like(LABELS, label)) for label in (0, 1, ar.null_label))
    assert (a - b).abs().max() > 1e-3
    assert (a - null).abs().max() > 1e-3


def test_loss_is_the_definition(tiny_ar, tokens):
    """At given times and noises, against the formula written out token by token."""
    ar = tiny_ar.double()
    stream = torch.Generator().manual_seed(1)
    times = torch.rand(2 * 16, generator=stream, dtype=torch.float64)
    noise = torch.randn(2 * 16, 4, generator=stream, dtype=torch.float64)
    condition, total = ar(tokens, LABELS), 0.0
    for row in range(32):
        b, i = divmod(row, 16)
        t, z = times[row], tokens[b, i]
        velocity = ar.head(((1 - t) * noise[row] + t * z)[None], t[None], condition[b, i][None])[0]
        total += (velocity - (z - noise[row])).square().sum() / (32 * 4)
    loss = ar.loss(tokens, LABELS, times, noise, repeats=1, label_dropout=0.0)
    assert_close(loss, total)


@pytest.mark.parametrize("whole", [True, False])
def test_a_token_has_four_times_and_noises_by_default(tiny_ar, monkeypatch, whole):
    """Times sigmoid(N(0, 1)) and noise N(0, I): a uniform time has a logistic log-odds, of standard deviation 1.8."""
    drawn = {}

    def record(head, target, condition, times, noise):
        drawn.update(times=times, noise=noise)
        return torch.zeros(())

    monkeypatch.setattr(head_module, "flow_matching_loss", record)
    tokens, generator = torch.zeros(50, 16, 4), torch.Generator().manual_seed(0)
    if whole:
        tiny_ar.loss(tokens, torch.zeros(50).long(), generator=generator)
    else:
        tiny_ar.head.loss(tokens, torch.zeros(50, 16, 32), generator=generator)
    assert drawn["times"].shape == (4 * 50 * 16,)
    assert drawn["noise"].shape == (4 * 50 * 16, 4)
    for values in (torch.logit(drawn["times"].double()), drawn["noise"].double().flatten()):
        assert stats.kstest(values.numpy(), "norm").pvalue > 0.01
    assert abs(torch.corrcoef(torch.stack((drawn["times"], drawn["noise"][:, 0])))[0, 1]) < 4 / math.sqrt(3200)


def test_repeats_are_ordered_repeat_batch_token(tiny_ar, tokens):
    ar = tiny_ar.double()
    times = torch.rand(2 * 32, dtype=torch.float64)
    noise = torch.randn(2 * 32, 4, dtype=torch.float64)
    halves = [
        ar.loss(tokens, LABELS, times[part], noise[part], repeats=1, label_dropout=0.0)
        for part in (slice(0, 32), slice(32, 64))
    ]
    both = ar.loss(tokens, LABELS, times, noise, repeats=2, label_dropout=0.0)
    assert_close(both, sum(halves) / 2)


def test_label_dropout_trains_the_null_class(tiny_ar, tokens):
    ar = tiny_ar.double()
    generator = torch.Generator().manual_seed(0)
    ar.loss(tokens, LABELS, label_dropout=0.999, generator=generator).backward()
    touched = ar.cls_embedding.weight.grad.abs().sum(dim=1) > 0
    assert touched.nonzero().flatten().tolist() == [ar.null_label]


def test_loss_drops_labels_only_in_training_unless_asked(tiny_ar, tokens):
    """Eval mode: the loss at the given labels, whatever the seed. Training mode: as if a tenth of them were dropped."""
    ar, labels = tiny_ar.double(), torch.arange(2)
    draws = {"times": torch.rand(32, dtype=torch.float64), "noise": torch.randn(32, 4, dtype=torch.float64)}

    def losses(**options):
        return {
            round(
                ar.loss(
                    tokens, labels, repeats=1, generator=torch.Generator().manual_seed(seed), **draws, **options
                ).item(),
                9,
            )
            for seed in range(40)
        }

    exact = round(ar.loss(tokens, labels, repeats=1, label_dropout=0.0, **draws).item(), 9)
    assert losses() == {exact}
    asked = losses(label_dropout=0.1)
    assert {exact} < asked
    assert ar.train() is ar
    assert losses() == asked


def test_a_tenth_of_the_labels_is_dropped_in_training(as_users_do, tiny_ar, monkeypatch):
    ar, seen = tiny_ar.train(), []
    monkeypatch.setattr(
        type(ar), "forward", lambda self, tokens, labels: seen.append(labels) or tokens.new_zeros(4000, 16, 32)
    )
    ar.loss(torch.zeros(4000, 16, 4), torch.zeros(4000).long(), generator=torch.Generator().manual_seed(0))
    share = (seen[0] == ar.null_label).double().mean().item()
    assert abs(share - 0.1) < 4 * math.sqrt(0.1 * 0.9 / 4000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_dropout": 1.5}, "label_dropout is 1.5; expected a share from 0 to 1"),
        ({"label_dropout": math.nan}, "label_dropout is nan"),
        ({"repeats": 0}, "repeats is 0; expected at least 1"),
        ({"times": torch.rand(32)}, r"times have shape \(32,\); expected \(128,\)"),
        ({"times": torch.rand(1)}, r"times have shape \(1,\); expected \(128,\)"),
        ({"noise": torch.randn(1, 4)}, r"noise has shape \(1, 4\); expected \(128, 4\)"),
    ],
)
def test_a_loss_that_cannot_be_computed_as_asked_is_refused(as_users_do, tiny_ar, tokens, options, message):
    with pytest.raises(ValueError, match=message):
        tiny_ar.loss(tokens.float(), LABELS, **options)


def test_loss_draws_from_its_generator_alone(tiny_ar, tokens):
    before = torch.random.get_rng_state()
    a, b = (tiny_ar.loss(tokens.float(), LABELS, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert_close(a, b, atol=0, rtol=0)
    assert torch.equal(before, torch.random.get_rng_state())


def test_new_head_is_silent_and_its_loss_is_the_targets_power():
    head = VelocityHead(4, 8, 16, 2, 1)
    z, noise = torch.randn(2, 1000, 4, generator=torch.Generator().manual_seed(0))
    condition, times = torch.randn(1000, 8), torch.rand(1000)
    assert (head(z, times, condition) == 0).all()
    assert_close(flow_matching_loss(head, z, condition, times, noise), (z - noise).square().mean())


def test_the_parts_of_the_head_make_the_whole(device):
    head = randomise(VelocityHead(4, 8, 16, 4, 2)).double().to(device)
    x, condition = (torch.randn(5, n, dtype=torch.float64, device=device) for n in (4, 8))
    t = torch.rand(5, dtype=torch.float64, device=device)
    parts = head.velocity(x, head.embed_time(t), head.embed_condition(condition))
    assert_close(parts, head(x, t, condition), atol=0, rtol=0)
    shared = head.velocity(x, head.embed_time(t[0]), head.embed_condition(condition))
    assert_close(shared, head(x, t[:1].expand(5), condition), atol=1e-12, rtol=0)


def test_velocity_is_float32_from_a_bfloat16_head():
    head = randomise(VelocityHead(4, 8, 16, 2, 1))
    x, t, condition = torch.randn(64, 4), torch.rand(64), torch.randn(64, 8)
    exact = head(x, t, condition)
    coarse = head.bfloat16()(x, t, condition)
    assert coarse.dtype == torch.float32
    assert (coarse - exact).norm() / exact.norm() < 0.05


def test_time_features_by_definition():
    t = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    features = time_features(t)
    for k in (0, 1, 64, 127):
        angle = 1000 * t * 10000.0 ** (-k / 128)
        assert_close(features[:, k], angle.cos())
        assert_close(features[:, 128 + k], angle.sin())


def test_initialisation_follows_the_paper():
    ar = SphereAR(replace(TINY_AR, width=128))
    for weight in (
        ar.layers[0].attention.wqkv.weight,
        ar.cls_embedding.weight,
        ar.head.time_embed.mlp[2].weight,
    ):
        assert abs(float(weight.detach().std()) / 0.02 - 1) < 0.1
    head = ar.head
    for part in (*head.ada_ln_blocks, head.final_modulation, head.final_linear):
        assert float(part.weight.detach().abs().max()) == 0.0
    bound = math.sqrt(6 / sum(head.res_blocks[0].w1.weight.shape))
    assert 0.9 * bound < float(head.res_blocks[0].w1.weight.detach().abs().max()) <= bound


def test_bad_input(as_users_do, tiny_ar):
    with pytest.raises(ValueError, match=r"shape \(2, 9, 4\); expected \(2, 16, 4\)"):
        tiny_ar(torch.zeros(2, 9, 4), LABELS)
    with pytest.raises(ValueError, match="label 11 is out of range; expected 0 to 10"):
        tiny_ar(torch.zeros(2, 16, 4), torch.tensor([1, 11]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 15}, "tokens is 15; expected a square"),
        ({"layers": 0}, "layers is 0; expected at least 1"),
        ({"heads": 3}, "width is 32; expected a multiple of 4 x 3 heads"),
        ({"head_groups": 3}, "head_depth is 2; expected a multiple of head_groups, 3"),
        ({"wings": 2}, r"ARConfig has no field \['wings'\]"),
    ],
)
def test_bad_configs(as_users_do, changes, message):
    with pytest.raises(ValueError, match=message):
        ARConfig.from_dict({**TINY_AR.to_dict(), **changes})
