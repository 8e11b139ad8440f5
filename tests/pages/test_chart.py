import math
import re
from xml.etree import ElementTree

import pytest

from cloister.pages.chart import HEIGHT, WIDTH, Series, line_chart


def drawn(series, **options):
    markup = line_chart(series, title="a <title>", x_axis="epoch", y_axis="loss", **options)
    root = ElementTree.fromstring(markup)
    texts = [node.text for node in root.iter("text")]
    dots = [(float(c.get("cx")), float(c.get("cy"))) for c in root.iter("circle")]
    return markup, texts, dots


def test_axes_are_named_and_have_round_numbers():
    _, texts, dots = drawn([Series("training", "red", [(1, 0.31), (2, 0.12), (3, 0.05)])])
    assert {"epoch", "loss", "1", "2", "3"} <= set(texts)
    assert [t for t in texts if re.fullmatch(r"0\.\d+|0", t)] == ["0", "0.1", "0.2", "0.3", "0.4"]
    assert len(dots) == 3
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in dots)
    heights = [y for _, y in dots]
    assert heights == sorted(heights)  # a smaller loss is drawn lower


@pytest.mark.parametrize("points", [
    [], [(1, 0.5)], [(1, 0.0), (2, 0.0)], [(1, -3.0), (2, 1e6)],
    [(k, 1e-9 * k) for k in range(1, 500)],
])  # fmt: skip
def test_any_points_are_inside_the_figure(points):
    _, texts, dots = drawn([Series("training", "red", points)])
    assert len(dots) == len(points)
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in dots)
    assert len(texts) < 30


def test_values_that_are_not_finite_are_left_out():
    markup, _, dots = drawn([Series("a", "red", [(1, math.nan), (2, 1.0), (3, math.inf)])])
    assert len(dots) == 1
    assert "nan" not in markup


def test_given_ends_are_the_ends():
    _, _, dots = drawn([Series("a", "red", [(1, 0.0), (2, 1.0)])], ends=(0.0, 1.0))
    assert dots[0][1] - dots[1][1] == pytest.approx(HEIGHT - 16 - 44, abs=0.1)
