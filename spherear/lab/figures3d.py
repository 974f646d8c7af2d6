"""The figures worth turning around, in plotly: three tokens in space, two laws on the sphere.

Knows: how they should look.  Does not know: how their numbers were computed.
"""

import plotly.graph_objects as go

from spherear.lab.direction_laws import DirectionLaws
from spherear.lab.paper_figures import closed
from spherear.lab.style import THREE
from spherear.lab.token_laws import TokenLaws

AXES = {
    f"{name}axis": {"title": {"text": f"{word} number"}}
    for name, word in zip("xyz", ("first", "second", "third"), strict=True)
}


def token_laws_figure_3d(laws: TokenLaws, which: str = "sphere") -> go.Figure:
    """Three tokens in three colours. which: discrete, gaussian or sphere."""
    figure = go.Figure()
    for cloud, color, position in zip(getattr(laws, which), THREE, laws.positions, strict=True):
        x, y, z = cloud.float().T.numpy()
        marker = {"size": 3, "color": color, "opacity": 0.7}
        figure.add_scatter3d(x=x, y=y, z=z, mode="markers", marker=marker, name=f"token {position + 1}")
    figure.update_layout(scene={**AXES, "aspectmode": "cube"}, title={"text": f"tokens: {which}"})
    return figure


def direction_laws_figure_3d(laws: DirectionLaws) -> go.Figure:
    """Both densities as colour on spheres, side by side."""
    figure = go.Figure()
    top = float(max(laws.spherical.max(), laws.projected.max()))
    sides = (("Power Spherical", laws.spherical, -1.2), ("Gaussian, projected", laws.projected, 1.2))
    for name, density, shift in sides:
        x, y, z, color = (closed(n).float().numpy() for n in (*laws.points.unbind(-1), density))
        figure.add_surface(
            x=x + shift, y=y, z=z, surfacecolor=color, cmin=0, cmax=top, colorscale="Viridis", showscale=shift > 0,
            name=name, hovertemplate="%{surfacecolor:.2f}", colorbar={"title": {"text": "density"}},
        )  # fmt: skip
    figure.update_layout(
        scene={**AXES, "aspectmode": "data"}, title={"text": "Power Spherical, and a Gaussian projected"}
    )
    return figure
