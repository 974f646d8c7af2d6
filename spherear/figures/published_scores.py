"""Numbers published in the paper (Ke & Xue, arXiv 2509.24335): ImageNet at 256 px, 50,000 samples."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedModel:
    """parameters: in millions, from the paper's tables."""

    name: str
    kind: str
    parameters: int
    fid: float


PUBLISHED = (
    PublishedModel("VAR-d30", "next scale", 2000, 1.92),
    PublishedModel("DiT-XL/2", "diffusion", 675, 2.27),
    PublishedModel("SiT-XL/2", "diffusion", 675, 2.06),
    PublishedModel("LatentLM-L", "raster AR", 479, 2.24),
    PublishedModel("MAR-L", "masked", 479, 1.78),
    PublishedModel("MAR-H", "masked", 943, 1.55),
    PublishedModel("SphereAR-B", "SphereAR (raster AR)", 208, 1.92),
    PublishedModel("SphereAR-L", "SphereAR (raster AR)", 479, 1.54),
    PublishedModel("SphereAR-H", "SphereAR (raster AR)", 943, 1.34),
)

ABLATION = {
    "gaussian": ("none (Gaussian)", 2.97),
    "decoder_normalized": ("decoder side", 2.89),
    "normalized_gaussian": ("decoder and AR side", 2.68),
    "power_spherical": ("both, spherical posterior", 2.52),
}
"""Rows of the paper's ablation (L, 50 + 50 epochs), by corresponding family: (what is normalised, FID)."""
