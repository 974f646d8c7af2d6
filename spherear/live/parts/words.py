"""What the guidance panel says in words about what it shows: titles, one sentence, descriptions of its pictures."""

import html
import re
from collections.abc import Sequence

from spherear.analysis.canvas import Canvas
from spherear.analysis.sight import Sight

EQUAL = 0.005
"""Relative difference below which two lengths or colours are called the same."""


def column_title(title: str, projected: bool) -> str:
    """The name of a model, and whether its tokens are projected, as HTML."""
    return f"<b>{title}</b>: " + (
        "on the sphere, tokens keep one length" if projected else "free, tokens of any length"
    )


def sentence(scale: float, names: Sequence[str], sights: Sequence[Sight]) -> str:
    """One sentence on one or two models: images that the judge recognises, lengths of late tokens, and colours."""
    said = "; ".join(f"{name} {facts(sight)}" for name, sight in zip(names, sights, strict=True))
    return f"At guidance {scale:g}, {said}."


def facts(sight: Sight) -> str:
    """What one model's images show, to stand behind its name."""
    parts = []
    if sight.recognised is not None:
        parts.append(f"has {sight.recognised} of {sight.images} images recognised")
    parts.append(_lengths(sight))
    if sight.colour is not None:
        parts.append(f"has contrast {_off(sight.colour)}" if abs(sight.colour) > EQUAL else "has true contrast")
    return ", ".join(parts[:-1]) + f" and {parts[-1]}" if len(parts) > 1 else parts[0]


def _lengths(sight: Sight) -> str:
    """Of late tokens."""
    if abs(sight.handed_on) > EQUAL:
        return f"feeds back late tokens <b>{_off(sight.handed_on, 'long', 'short')}</b>"
    removed = f" ({_off(sight.raw, 'long', 'short')} before the projection)" if abs(sight.raw) > EQUAL else ""
    return f"feeds back late tokens of <b>the right length</b>{removed}"


def _off(change: float, more: str = "high", less: str = "low") -> str:
    return f"{abs(change):.0%} too {more if change > 0 else less}"


def picture_text(title: str, classes: str, scale: float, state: str) -> str:
    """A description of a sheet of images, for screen readers. state: as `facts` says it."""
    return f"Images of {classes}, drawn by {title} at guidance {scale:g}: {re.sub(r'<.*?>', '', state)}"


def caption(names: Sequence[str], columns: int, judged: bool) -> str:
    """What stands below the images, as HTML: the class of each, row by row, and what recognised means.

    names: of the classes of the images, in their order.
    """
    rows = [names[start : start + columns] for start in range(0, len(names), columns)]
    if len(set(names)) == 1:
        said = f"All images: {html.escape(names[0])}."
    else:
        said = f"Row by row: {'; '.join(html.escape(', '.join(row)) for row in rows)}."
    return f"<small>{said}{' Recognised: by a classifier that learnt real images.' if judged else ''}</small>"


def stopped(scale: float, canvas: Canvas) -> str:
    """The sentence on a picture that was stopped."""
    return f"Stopped at guidance {scale:g}, after token {canvas.drawn} of {canvas.tokens.shape[1]}."


def strip_text(titles: Sequence[str], scales: Sequence[float], drawn: int) -> str:
    """What a strip shows, and how far it came if it was stopped."""
    wanted = ", ".join(f"{scale:g}" for scale in scales)
    state = "" if drawn == len(scales) else f" (stopped after {drawn} of {len(scales)} scales)"
    return (
        f"Guidance {wanted} from left to right{state}; above {', below '.join(titles)}; the same classes and seeds in "
        "every column."
    )
