"""Figures that only the notebooks use."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from spherear.analysis.cost import Cost
from spherear.analysis.diagnostics import NormProfile
from spherear.analysis.latents import TokenVariances
from spherear.analysis.trajectories import Trajectories
from spherear.figures.style import FONT, GREY, THREE, name_axes, new_figure, plot_family
from spherear.models.config import require
from spherear.sphere.families import FAMILIES, family_label
from spherear.study.claims import by_seed, default_sampling
from spherear.study.records import Record, select

OTHERS = (*THREE, "#CC79A7", "#E69F00", "#56B4E9")
MAX_NAMED = 8
"""Maximum number of x values that are labelled individually."""


def curves_figure(
    x: Sequence[float | int],
    curves: Mapping[str, Sequence[float | int]],
    labels: tuple[str, str],
    title: str = "",
    log: str = "",
) -> Figure:
    """Curves over a shared x; a family name gets the colour and marker of that family.

    labels: of x and y.  log: "x", "y" or "xy". A logarithmic x axis with few values is labelled at these values.
    """
    require(len(curves) > 0, "there are no curves; expected some")
    figure = new_figure(7, 4.2)
    axis = figure.subplots()
    marker = "." if len(x) <= 40 else ""
    for color, (name, y) in zip(_colors(len(curves)), curves.items(), strict=True):
        look = FAMILIES.get(name)
        axis.plot(
            list(x), list(y), f"{marker if look is None else look.marker}-",
            color=color if look is None else look.color, label=name if look is None else family_label(name),
        )  # fmt: skip
    if "x" in log:
        axis.set_xscale("log")
        if len(x) <= MAX_NAMED:
            axis.set_xticks(list(x), [f"{value:g}" for value in x])
            axis.set_xticks([], minor=True)
    if "y" in log:
        axis.set_yscale("log")
    name_axes(axis, *labels, title)
    axis.legend(fontsize=FONT - 1)
    return figure


def _colors(count: int) -> list[str]:
    return [OTHERS[i % len(OTHERS)] for i in range(count)]


def lengths_figure(profiles: Mapping[str, NormProfile]) -> Figure:
    """Mean length of real tokens by position, with a band of one standard deviation over images."""
    figure = new_figure(7, 4.2)
    axis = figure.subplots()
    for family, profile in profiles.items():
        mean, std = profile.mean, profile.std
        plot_family(axis, family, mean.tolist())
        low, high = (mean - std).numpy(), (mean + std).numpy()
        axis.fill_between(range(1, len(mean) + 1), low, high, color=FAMILIES[family].color, alpha=0.2, linewidth=0)
    axis.set_ylim(bottom=0)
    name_axes(axis, "token", "length", "length of real tokens")
    axis.legend(fontsize=FONT - 1)
    return figure


def variances_figure(variances: Mapping[str, TokenVariances]) -> Figure:
    """Variance of real tokens by dimension (left) and by position (right)."""
    figure = new_figure(12, 4.2)
    left, right = figure.subplots(1, 2, sharey=True)
    for family, v in variances.items():
        plot_family(left, family, v.per_dim.tolist())
        plot_family(right, family, v.per_token.tolist())
    left.set_ylim(bottom=0)
    name_axes(left, "dimension", "variance over images", "by dimension")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    name_axes(right, "token", "variance over images", "by token")
    left.legend(fontsize=FONT - 1)
    return figure


def kl_figure(records: Sequence[Record], families: Sequence[str]) -> Figure:
    """Reconstruction error against KL per token, one point per variant (mean over seeds)."""
    figure = new_figure(7, 4.4)
    axis = figure.subplots()
    for family in families:
        points = []
        for variant in sorted({r.variant for r in select(records, family=family)}):
            kl, l1 = (
                list(by_seed(default_sampling(records, variant=variant, metric=m)).values())
                for m in ("kl", "reconstruction_l1")
            )
            points.append((sum(kl) / len(kl), sum(l1) / len(l1), variant))
        plot_family(axis, family, [p[1] for p in points], [p[0] for p in points])
        for kl_mean, l1_mean, variant in points:
            axis.annotate(variant, (kl_mean, l1_mean), xytext=(6, 4), textcoords="offset points", fontsize=FONT - 2)
    name_axes(axis, "KL per token (nats)", "mean absolute error per pixel", "held-out digits, mean over seeds")
    axis.legend(fontsize=FONT - 1)
    return figure


def sequence_figure(class_tokens: int, tokens: int) -> Figure:
    """The attention mask: rows attend to columns; class tokens first, then image tokens."""
    count = class_tokens + tokens - 1
    mask = torch.ones(count, count).tril()
    mask[:, :class_tokens] *= 2
    figure = new_figure(5.6, 5.2)
    axis = figure.subplots()
    axis.imshow(mask.numpy(), cmap="Blues", interpolation="nearest", extent=(0.5, count + 0.5, count + 0.5, 0.5))
    axis.axhline(class_tokens - 0.5, color=THREE[1], linewidth=2)
    axis.annotate(
        "from here on, each row\npredicts one token", (count, class_tokens - 0.5), xytext=(-4, 18),
        textcoords="offset points", ha="right", color=THREE[1], fontsize=FONT - 1,
    )  # fmt: skip
    name_axes(axis, f"key position (the first {class_tokens}: the label)", "query position", "causal attention")
    axis.grid(False)
    return figure


def rope_figure(table: Float[Tensor, "positions pairs 2"]) -> Figure:
    """cos of the rotary angles: positions by pairs; the x half comes before the y half."""
    figure = new_figure(7, 4.6)
    axis = figure.subplots()
    count, pairs = table.shape[:2]
    image = axis.imshow(
        table[..., 0].numpy(), cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto", interpolation="nearest",
        extent=(0.5, pairs + 0.5, count + 0.5, 0.5),
    )  # fmt: skip
    axis.axvline(pairs / 2 + 0.5, color="black", linewidth=1.5)
    figure.colorbar(image, ax=axis, label="cosine of the angle")
    name_axes(axis, "pair of numbers: column of the grid, then row", "position", "2-D rotary positions")
    axis.grid(False)
    return figure


def trajectories_figure(panels: Mapping[str, Trajectories], dims: tuple[int, int] = (0, 1)) -> Figure:
    """Paths from noise (squares) to tokens (points): two dimensions above, lengths below, one column per panel."""
    figure = new_figure(5 * len(panels), 8.2)
    axes = figure.subplots(2, len(panels), squeeze=False)
    for (name, paths), (upper, lower) in zip(panels.items(), axes.T, strict=True):
        x, y = (paths.points[..., d].numpy() for d in dims)
        upper.plot(x, y, color=GREY, alpha=0.35, linewidth=0.8)
        upper.plot(x[0], y[0], "s", color=THREE[1], markersize=3, label="noise")
        upper.plot(x[-1], y[-1], "o", color=THREE[0], markersize=4, label="token")
        name_axes(upper, f"number {dims[0] + 1}", f"number {dims[1] + 1}", name)
        upper.set_aspect("equal", adjustable="datalim")
        upper.legend(fontsize=FONT - 1)
        _path_lengths(lower, paths)
    return figure


def _path_lengths(axis: Axes, paths: Trajectories) -> None:
    axis.plot(paths.times.numpy(), paths.points.norm(dim=-1).numpy(), color=GREY, alpha=0.35, linewidth=0.8)
    if paths.radius is not None:
        axis.axhline(paths.radius, color=THREE[0], linestyle="--", label="radius of the sphere")
        axis.legend(fontsize=FONT - 1)
    axis.set_ylim(bottom=0)
    name_axes(axis, "time", "length")


def costs_figure(costs: Sequence[Cost]) -> Figure:
    """Parameters, operations per image and KV cache per image, one bar per preset, on logarithmic axes."""
    figure = new_figure(13, 4.2)
    panels = (
        ("parameters", [c.parameters for c in costs]),
        ("operations per image", [c.image_flops for c in costs]),
        ("bytes of KV cache per image", [c.cache_bytes for c in costs]),
    )
    for axis, (name, values) in zip(figure.subplots(1, 3), panels, strict=True):
        axis.bar([c.name.replace("imagenet256-", "") for c in costs], values, color=THREE[0])
        axis.set_yscale("log")
        name_axes(axis, "preset", name)
    return figure
