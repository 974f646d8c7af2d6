"""Where models lie: what is read of them before their weights, and what is refused."""

import pytest
import torch

from spherear import VAE, ARConfig, Pipeline, SphereAR, VAEConfig, preset
from spherear.models.published_weights import to_published
from spherear.models.sources import Outline, Source, imagenet_classes, source_of
from tests.conftest import randomise

WIDE_VAE = VAEConfig(latent_dim=4, image_size=16, widths=(16, 16, 64), encoder_layers=1, decoder_layers=1)
WIDE_AR = ARConfig(
    latent_dim=4, tokens=16, num_classes=1000, class_tokens=2, width=64, layers=1, heads=1, head_width=32,
    head_depth=1, head_groups=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A VAE and an AR model of 1,000 classes, in two published files."""
    folder = tmp_path_factory.mktemp("published")
    vae, ar = randomise(VAE(WIDE_VAE)), randomise(SphereAR(WIDE_AR), 1)
    torch.save({"ema": to_published(vae)}, folder / "vae.pt")
    torch.save({"model": to_published(ar)}, folder / "ar.pt")
    return vae, ar, folder


def test_two_published_files_are_a_pipeline_with_the_names_of_imagenet(published):
    vae, ar, folder = published
    source = source_of(folder / "ar.pt", folder / "vae.pt")
    assert (source.outline().vae, source.outline().ar.tokens) == (WIDE_VAE, 16)
    loaded = Pipeline.from_pretrained(folder / "ar.pt", vae=folder / "vae.pt")
    assert loaded.ar.config.classes == imagenet_classes() == source.outline().ar.classes
    expected = Pipeline(vae, ar).sample([207], seeds=3)
    torch.testing.assert_close(loaded.sample(["golden retriever"], seeds=3), expected, rtol=0, atol=0)


def test_the_names_of_imagenet_are_those_of_its_labels():
    names = imagenet_classes()
    assert len(set(names)) == len(names) == 1000
    known = {0: "tench", 1: "goldfish", 207: "golden retriever", 281: "tabby", 388: "giant panda", 980: "volcano"}
    assert {number: names[number] for number in known} == known
    assert names[134] != names[517]  # the bird and the machine
    assert names[999] == "toilet tissue"


def test_parameters_are_counted_as_published():
    """Computed independently of this project, see `load_published`."""
    counts = {"B": 204.5, "L": 476.4, "H": 943.9}
    for size, millions in counts.items():
        row = preset(f"imagenet256-{size}")
        assert Outline(row.vae, row.ar).parameters()[1] / 1e6 == pytest.approx(millions, abs=0.05)


def test_an_outline_reads_no_weights(tmp_path, tiny_vae, tiny_ar):
    Pipeline(tiny_vae, tiny_ar).save_pretrained(tmp_path)
    for part in ("vae", "ar"):
        (tmp_path / part / "model.safetensors").write_bytes(b"")
    outline = source_of(tmp_path).outline()
    assert outline == Outline(tiny_vae.config, tiny_ar.config)
    assert outline.parameters() == tuple(sum(p.numel() for p in m.parameters()) for m in (tiny_vae, tiny_ar))


@pytest.mark.parametrize("what", ["outline", "load"])
def test_what_is_no_pair_is_refused(published, tmp_path, what):
    *_, folder = published
    other = randomise(VAE(VAEConfig(latent_dim=8, image_size=16, widths=(16, 16, 64), encoder_layers=1)))
    torch.save(to_published(other), tmp_path / "other.pt")
    (tmp_path / "cut.pt").write_bytes((folder / "ar.pt").read_bytes()[:9999])
    for source, message in (
        (source_of(folder / "ar.pt"), "holds no VAE; expected one, or a published VAE beside it"),
        (source_of(folder / "ar.pt", folder / "ar.pt"), "holds no VAE"),
        (source_of(folder / "vae.pt", folder / "vae.pt"), "not in the checkpoint|holds no AR model"),
        (source_of(folder / "ar.pt", tmp_path / "other.pt"), "expected"),
        (source_of(tmp_path / "cut.pt", folder / "vae.pt"), "is not a complete checkpoint"),
        (source_of("digits-power_spherical", folder / "vae.pt"), "'digits-power_spherical' is not a file"),
        (source_of("nowhere"), "'nowhere' is not a folder here"),
        (source_of("~nobody-has-this-name/x"), "expected a home that exists"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            getattr(source, what)()
    with pytest.raises(ValueError, match="the name of the model is empty"):
        source_of("")


def test_a_source_is_found_from_another_folder(published, tmp_path, monkeypatch):
    *_, folder = published
    monkeypatch.chdir(folder)
    source = source_of("ar.pt", "vae.pt").absolute()
    assert source == Source(str(folder / "ar.pt"), str(folder / "vae.pt"))
    assert source_of("digits-vq").absolute() == Source("digits-vq")
    monkeypatch.chdir(tmp_path)
    source.load()
