"""The token loop and the pipeline: invariants an image can be trusted to have."""

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from spherear import SphereAR
from spherear.sampling.decode import decode, plan_tokens
from spherear.sampling.head_sampling import Times, guide
from spherear.sampling.noise import remembered, seeded_noise
from spherear.sampling.pipeline import Pipeline
from spherear.sampling.pixels import save_png, tile, to_uint8
from spherear.sampling.reference import reference_decode
from spherear.sampling.settings import SamplingSettings
from spherear.sphere.geometry import project
from tests.conftest import TINY_AR, randomise

LABELS = torch.tensor([3, 7, 0])
SEEDS = [5, 6, 7]
QUICK = SamplingSettings(guidance_scale=3.0, steps=4)


@pytest.fixture
def pipeline(tiny_vae, tiny_ar):
    return Pipeline(tiny_vae, tiny_ar)


def on_sphere(z):
    return project(z, 2.0)


def run(ar, labels=LABELS, settings=QUICK, seeds=SEEDS, **options):
    return list(decode(ar, labels, settings, seeded_noise(seeds), on_sphere, **options))


def tokens_of(steps):
    return torch.stack([step.token for step in steps], dim=1)


@pytest.mark.parametrize("solver", ["euler", "heun", "euler_maruyama"])
@pytest.mark.parametrize(
    ("scale", "schedule"), [(1.0, "linear"), (3.0, "linear"), (3.0, "constant"), (0.0, "constant")]
)
def test_cached_loop_equals_teacher_forcing(tiny_ar, solver, scale, schedule):
    """Every token again from teacher-forced conditions of both branches, without cache or hoisting."""
    ar = tiny_ar.double()
    settings = SamplingSettings(guidance_scale=scale, schedule=schedule, solver=solver, steps=3)
    noise = seeded_noise(SEEDS)
    steps = run(ar, settings=settings)
    tokens = tokens_of(steps).double()
    null_tokens = tokens.clone()
    for index in range(16):
        conditions = ar(tokens, LABELS)[:, index], ar(null_tokens, torch.full_like(LABELS, 10))[:, index]
        drawn = noise(index, (settings.draws, 3, 4)).double()
        s = settings.scale_at(index, 16)

        def velocity(x, t, conditions=conditions, s=s):
            v, null = (ar.head(x, x.new_full((3,), t), condition) for condition in conditions)
            return v if s == 1.0 else null + s * (v - null)

        raw = settings.method.integrate(velocity, drawn, settings.times())
        assert_close(steps[index].raw, raw, atol=1e-9, rtol=0)
        if s == 1.0:  # unguided: the null branch's past is its own draw
            own = settings.method.integrate(
                lambda x, t, c=conditions[1]: ar.head(x, x.new_full((3,), t), c), drawn, settings.times()
            )
            null_tokens[:, index] = on_sphere(own)


def test_every_token_handed_on_has_norm_r(tiny_ar, device):
    steps = run(tiny_ar.to(device))
    assert [step.index for step in steps] == list(range(16))
    assert_close(tokens_of(steps).norm(dim=-1), torch.full((3, 16), 2.0, device=device), atol=1e-5, rtol=0)
    assert_close(on_sphere(steps[4].raw), steps[4].token)
    assert max((step.raw.norm(dim=-1) - 2.0).abs().max() for step in steps) > 0.05  # which raw ones have not


@pytest.mark.parametrize("solver", ["euler", "euler_maruyama"])
@pytest.mark.parametrize(("scale", "schedule"), [(1.0, "linear"), (3.0, "linear"), (3.0, "constant")])
def test_a_projection_sees_one_row_per_image_at_every_token(tiny_ar, solver, scale, schedule):
    """A radius per image: the decode of each image alone with its radius draws the same tokens."""
    ar, radii = tiny_ar.double(), torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
    settings = SamplingSettings(guidance_scale=scale, schedule=schedule, solver=solver, steps=3)
    together = list(decode(ar, LABELS, settings, seeded_noise(SEEDS), lambda z: radii * project(z)))
    for i in range(3):
        noise = seeded_noise(SEEDS[i : i + 1])
        alone = decode(ar, LABELS[i : i + 1], settings, noise, lambda z, radius=radii[i]: radius * project(z))
        assert_close(tokens_of(together)[i], tokens_of(list(alone))[0], atol=1e-6, rtol=0)


def test_a_projection_of_the_wrong_shape_is_refused(tiny_ar, as_users_do):
    with pytest.raises(ValueError, match=r"the projection returns shape \(3, 3\); expected \(3, 4\)"):
        next(decode(tiny_ar, LABELS, QUICK, seeded_noise(SEEDS), lambda z: z[:, :3]))


def test_without_projection_tokens_are_raw(tiny_ar):
    for step in run(tiny_ar, settings=replace(QUICK, project=False)):
        assert_close(step.token, step.raw, atol=0, rtol=0)


def test_guidance_is_the_formula_and_scale_one_needs_no_null_rows(tiny_ar, monkeypatch):
    v = torch.randn(6, 4)
    assert_close(guide(v, 1.0), v[:3])
    assert_close(guide(v, 0.0), v[3:])
    assert_close(guide(v, 2.5), v[3:] + 2.5 * (v[:3] - v[3:]))
    rows = []
    original = SphereAR.kv_cache
    monkeypatch.setattr(SphereAR, "kv_cache", lambda self, batch: rows.append(batch) or original(self, batch))
    run(tiny_ar, settings=replace(QUICK, guidance_scale=1.0))
    run(tiny_ar)
    assert rows == [3, 6]


def test_guidance_away_from_a_class_is_an_argument(as_users_do, tiny_ar):
    plain, null, other = (
        tokens_of(run(tiny_ar, null_labels=labels)) for labels in (None, torch.full((3,), 10), torch.tensor([1, 1, 1]))
    )
    assert_close(plain, null, atol=0, rtol=0)
    assert (plain - other).abs().max() > 1e-3
    with pytest.raises(ValueError, match=r"null_labels have shape \(2,\); expected \(3,\)"):
        run(tiny_ar, null_labels=torch.tensor([1, 1]))


def test_temperature_scales_the_noise(tiny_ar):
    cold = run(tiny_ar, settings=replace(QUICK, temperature=0.0))
    other = run(tiny_ar, settings=replace(QUICK, temperature=0.0), seeds=[8, 9, 10])
    assert_close(tokens_of(cold), tokens_of(other), atol=0, rtol=0)
    half = replace(QUICK, temperature=0.5)
    noise = seeded_noise(SEEDS)
    by_hand = decode(tiny_ar, LABELS, QUICK, lambda i, shape: 0.5 * noise(i, shape), on_sphere)
    assert_close(tokens_of(run(tiny_ar, settings=half)), tokens_of(by_hand), atol=0, rtol=0)


def test_decode_draws_from_no_global_generator(pipeline):
    before = torch.random.get_rng_state()
    first = pipeline.sample([1, 2], QUICK, seeds=4)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(99)
    assert_close(pipeline.sample([1, 2], QUICK, seeds=4), first, atol=0, rtol=0)


def test_an_image_is_itself_whatever_its_batch_mates(pipeline):
    pipeline.vae.double()
    pipeline.ar.double()
    together = pipeline.sample(LABELS, QUICK, seeds=SEEDS)
    for i in range(3):
        alone = pipeline.sample(LABELS[i : i + 1], QUICK, seeds=SEEDS[i : i + 1])
        assert_close(together[i : i + 1], alone, atol=1e-6, rtol=0)
    shuffled = pipeline.sample(LABELS.flip(0), QUICK, seeds=SEEDS[::-1])
    assert_close(together, shuffled.flip(0), atol=1e-6, rtol=0)


def test_seeds_and_labels_matter(pipeline):
    a = pipeline.sample([1, 1, 2], QUICK, seeds=[0, 1, 0])
    assert (a[0] - a[1]).abs().max() > 1e-3
    assert (a[0] - a[2]).abs().max() > 1e-3
    assert_close(a, pipeline.sample(torch.tensor([1, 1, 2]), QUICK, seeds=[0, 1, 0]), atol=0, rtol=0)


@pytest.mark.cuda
def test_cuda_draws_the_image_that_the_cpu_draws(tiny_vae, tiny_ar):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    pipeline = Pipeline(tiny_vae.double(), tiny_ar.double())
    here = pipeline.sample(LABELS, QUICK, SEEDS)
    assert_close(pipeline.to("cuda").sample(LABELS, QUICK, SEEDS).cpu(), here, atol=1e-4, rtol=0)


def test_decoding_keeps_no_graph_and_leaves_the_callers_gradients_on(tiny_ar):
    for step in decode(tiny_ar, LABELS, QUICK, seeded_noise(SEEDS), on_sphere):
        assert not step.raw.requires_grad
        assert not step.token.requires_grad
        assert torch.is_grad_enabled()


@pytest.mark.parametrize("every", [1, 5, 16, 100])
def test_a_stream_ends_with_the_one_shot_sample(pipeline, every):
    frames = list(pipeline.stream(LABELS, QUICK, SEEDS, every=every))
    shown = [frame.step.index for frame in frames]
    assert shown == sorted({*range(every - 1, 16, every), 15})
    assert_close(frames[-1].images, pipeline.sample(LABELS, QUICK, SEEDS), atol=0, rtol=0)


def test_a_partial_image_is_grey_where_nothing_is_drawn(pipeline):
    stream = pipeline.stream(LABELS, QUICK, SEEDS)
    frame = [next(stream) for _ in range(6)][-1]  # one row of four tokens and two of the next
    assert (frame.images[:, :, 8:] == 0).all()
    assert (frame.images[:, :, 4:8, 8:] == 0).all()
    assert (frame.images[:, :, :4] != 0).any()
    assert (frame.images[:, :, 4:8, :8] != 0).any()
    stream.close()


@pytest.mark.parametrize(
    ("labels", "seeds", "message"),
    [
        ([10, 11], 0, "label 11 is out of range; expected 0 to 10"),
        ([-1], 0, "label -1 is out of range"),
        ([], 0, "expected at least one integer"),
        ([1, 2], [0], "there are 1 seeds; expected 2"),
        ([1], [-3], "seed is -3"),
    ],
)
def test_bad_requests(pipeline, labels, seeds, message):
    with pytest.raises(ValueError, match=message):
        pipeline.sample(labels, QUICK, seeds)


def test_models_that_do_not_belong_together(tiny_vae):
    other = randomise(SphereAR(replace(TINY_AR, tokens=9)))
    with pytest.raises(ValueError, match=r"the VAE makes \(16, 4, 0\) \(tokens, dim, codes\); expected \(9, 4, 0\)"):
        Pipeline(tiny_vae, other)


def test_nan_weights_are_noticed(pipeline):
    with torch.no_grad():
        pipeline.ar.head.final_linear.bias.fill_(math.nan)
    with pytest.raises(ValueError, match="tokens hold 192 non-finite values, the first nan"):
        pipeline.sample(LABELS, QUICK, SEEDS)


def test_published_rounding():
    x = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.999, 1.0, 3.0]).view(1, 1, 1, 7).expand(1, 3, 1, 7)
    assert to_uint8(x)[0, 0, :, 0].tolist() == [0, 0, 64, 128, 255, 255, 255]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_bytes_of_half_precision_are_those_of_the_same_numbers_in_float64(dtype):
    images = torch.linspace(-1.1, 1.1, 3 * 64 * 64).view(1, 3, 64, 64).to(dtype)
    assert torch.equal(to_uint8(images), to_uint8(images.double()))


def test_sheets(tmp_path):
    from PIL import Image

    images = torch.linspace(-1, 1, 3).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    sheet = tile(images, columns=2)
    assert sheet.shape == (7, 7, 3)
    assert [int(sheet[y, x, 0]) for y, x in ((1, 1), (1, 4), (4, 1), (4, 4), (0, 0))] == [
        0,
        128,
        255,
        255,
        255,
    ]
    save_png(tmp_path / "sheet.png", sheet, zoom=3)
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.size == (21, 21)
    with pytest.raises(ValueError, match="expected at least 1"):
        tile(images, columns=0)


@pytest.mark.parametrize("scale", [3.0, 8.0])
def test_decode_equals_the_plain_reference(tiny_ar, scale):
    """Everything that is hoisted, cached or shared changes nothing: against the loop written straight down."""
    ar, settings = tiny_ar.double(), SamplingSettings(guidance_scale=scale, steps=5)
    expected = reference_decode(ar, LABELS, settings, seeded_noise(SEEDS), 2.0)
    assert_close(tokens_of(run(ar, settings=settings)), expected, atol=1e-9, rtol=0)


def test_remembered_noise_is_the_noise_drawn_once():
    calls = []

    def noise(token, shape):
        calls.append((token, shape))
        return seeded_noise(SEEDS)(token, shape)

    kept, shape = remembered(noise), (1, len(SEEDS), 3)
    first = kept(4, shape)
    assert torch.equal(first, seeded_noise(SEEDS)(4, shape))
    first.zero_()  # the caller's own
    assert torch.equal(kept(4, shape), seeded_noise(SEEDS)(4, shape))
    assert not torch.equal(kept(5, shape), kept(4, shape))
    assert calls == [(4, shape), (5, shape)]
    several = (2, len(SEEDS), 3)
    assert torch.equal(kept(4, several)[0], kept(4, shape)[0])
    assert calls[2:] == [(4, several)]


@pytest.mark.parametrize(("spacing", "grids"), [("even", 1), ("annealed", 5)])
def test_times_that_tokens_share_are_embedded_once(tiny_ar, spacing, grids, monkeypatch):
    settings, made = SamplingSettings(solver="heun", steps=4, spacing=spacing), []
    plans = {plan.grid for plan in plan_tokens(tiny_ar, settings)}
    assert len(plans) == grids
    whole = Times.of
    monkeypatch.setattr(Times, "of", lambda head, solver, grid: made.append(grid) or whole(head, solver, grid))
    list(decode(tiny_ar, torch.tensor([1]), settings, seeded_noise([0]), lambda z: z))
    assert sorted(made) == sorted(plans)
