"""What a notebook is given to show: bundles with a description, whatever else is in them."""

import base64
import io

import plotly.graph_objects as go
import pytest
import torch
from PIL import Image

from spherear.figures.display import MARKDOWN, PLOTLY, PNG, interactive, picture, sheet, still, table
from spherear.figures.lessons import curves_figure


def opened(shown):
    return Image.open(io.BytesIO(base64.b64decode(shown.formats[PNG])))


def a_picture():
    return picture(curves_figure([1, 2], {"y": [3, 4]}, ("x", "y")), "a line that rises")


def test_a_picture_is_a_png_with_its_description():
    shown = a_picture()
    data, metadata = shown._repr_mimebundle_()
    assert set(data) == {PNG, "text/plain"}
    assert (data["text/plain"], repr(shown)) == ("a line that rises",) * 2
    assert metadata == {PNG: {"alt": "a line that rises", "width": 504, "height": 302}}
    assert opened(shown).size == (1008, 604)  # sharp where a pixel of the page is two of the screen
    plain = picture(curves_figure([1, 2], {"y": [3, 4]}, ("x", "y")), "a line that rises", fine=1)
    assert (opened(plain).size, plain.size) == ((504, 302), (504, 302))
    assert a_picture().formats == shown.formats
    with pytest.raises(ValueError, match="text is empty"):
        picture(curves_figure([1], {"y": [3]}, ("x", "y")), " ")
    with pytest.raises(ValueError, match="fine is 0"):
        picture(curves_figure([1], {"y": [3]}, ("x", "y")), "a point", fine=0)


def test_a_sheet_is_its_pixels():
    shown = sheet(torch.ones(2, 3, 4, 4), 2, "two white squares", zoom=2)
    assert opened(shown).size == (22, 12)
    assert opened(shown).getpixel((3, 3)) == (255, 255, 255)
    with pytest.raises(ValueError, match="zoom is 0"):
        sheet(torch.ones(2, 3, 4, 4), 2, "two", zoom=0)


def test_an_interactive_figure_stands_below_its_picture_and_says_what_it_is():
    data, metadata = interactive(go.Figure(go.Scatter(y=[1, 2])), "the line, to be turned")._repr_mimebundle_()
    assert set(data) == {PLOTLY, "text/plain"}  # a PNG in the same output could not be reached in JupyterLab
    assert data[PLOTLY]["data"][0]["type"] == "scatter"
    assert (data["text/plain"], metadata) == ("the line, to be turned", {})
    with pytest.raises(ValueError, match="text is empty"):
        interactive(go.Figure(), " ")


def test_a_still_is_what_the_panel_shows():
    from IPython.display import Image as Shot

    png = base64.b64decode(a_picture().formats[PNG])

    class Panel:
        def snapshot(self):
            return Shot(data=png, format="png")

    shown = still(Panel(), "a panel")
    assert base64.b64decode(shown.formats[PNG]) == png
    assert shown.text == "a panel"
    with pytest.raises(ValueError, match="text is empty"):
        still(Panel(), "")


def test_a_table_rounds_to_three_digits():
    shown = table(["name", "value"], [["a", 1.23456], ["b", 1234567], ["c", True]])
    assert shown.formats[MARKDOWN].splitlines() == [
        "| name | value |", "| --- | --- |", "| a | 1.23 |", "| b | 1,234,567 |", "| c | True |",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="a row has 1 cells; expected 2"):
        table(["a", "b"], [["x"]])
    with pytest.raises(ValueError, match="there are no columns"):
        table([], [])
