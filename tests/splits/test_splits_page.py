"""The page of a sweep."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from cloister.errors import InputError
from cloister.splits.median_interval import ZERO, MedianInterval
from cloister.splits.split_cost import (
    ColdPhases,
    HiddenPart,
    Phases,
    SplitCost,
    SplitSweep,
    TrustedMemory,
)
from cloister.splits.splits_page import Bar, bars, splits_page, write_page
from cloister.splits.tee_model import ModelledOverhead


def ms(value):
    return MedianInterval(value, 0.9 * value, 1.1 * value)


OPEN = SplitCost(Phases(ms(4.0), ZERO, ZERO, ZERO, ms(4.0)))
HIDDEN = SplitCost(
    Phases(ms(1.0), ms(0.5), ms(2.0), ms(-0.25), ms(3.25)),
    HiddenPart(1, "<gemm>", 1290, 2570, 512),
    ColdPhases(ms(100.0), ms(20.0), ms(9.0), ms(129.0)),
    TrustedMemory(5000, 100, 200, None),
    {"sgx1": ModelledOverhead(0.1, 0.2, 0.3)},
    1.25,
)
SWEEP = SplitSweep("net & more", 2580, 5140, "native", 30, 5, "random", "random", (OPEN, HIDDEN))


class Balanced(HTMLParser):
    """Raises at a tag that closes another one than the last."""

    EMPTY = frozenset({"meta", "br", "img", "path", "rect"})

    def __init__(self):
        super().__init__()
        self.stack = []

    def handle_starttag(self, tag, attrs):
        if tag not in self.EMPTY:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.EMPTY:
            assert self.stack.pop() == tag


def test_the_page_is_whole_and_self_contained():
    text = splits_page(SWEEP)
    reader = Balanced()
    reader.feed(text)
    assert reader.stack == []
    assert "<script" not in text
    assert not re.search(r"(?:src|href)=", text)
    assert "net &amp; more" in text
    assert "&lt;gemm&gt;" in text
    assert "<gemm>" not in text


def test_the_page_says_what_is_modelled_and_what_is_missing():
    text = splits_page(SWEEP)
    assert "modelled, not measured" in text
    assert "HotCalls" in text
    assert "not known" in text
    missing = splits_page(replace(SWEEP, splits=(OPEN, replace(HIDDEN, gain=None))))
    assert "not measured" in missing
    assert "cloister audit model" in missing


def test_bars_stand_on_each_other():
    text = bars([Bar("1", {"open part": 1.0, "transition": 3.0})], "one inference")
    drawn = [
        {key: float(value) for key, value in re.findall(r'(x|y|width|height)="([\d.]+)"', rect)}
        for rect in re.findall(r"<rect[^>]*>(?=<title>)", text)
    ]
    below, above = drawn
    assert above["height"] == pytest.approx(3 * below["height"], abs=0.1)
    assert above["y"] + above["height"] == pytest.approx(below["y"], abs=0.1)


def test_noise_below_zero_is_not_drawn():
    drawn = re.findall(r'<rect[^>]*height="([-\d.]+)"', splits_page(SWEEP))
    assert all(float(height) >= 0 for height in drawn)


def test_no_bars():
    assert "nothing is hidden" in bars([], "x")


def test_a_folder_that_cannot_be_written(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(InputError, match="choose another folder"):
        write_page(SWEEP, blocked)
    path = write_page(SWEEP, tmp_path / "new" / "folder")
    assert path.read_text() == splits_page(SWEEP)
