"""The page's parts: escaping, self-containment, pictures."""

import io
import re

import numpy as np
from PIL import Image

from cloister.audit.input.exposure import Exposure, byte_histogram, chi_square_uniform
from cloister.pages.page import Section, histogram, page, paragraph, png, preformatted, table


def shown(messages):
    return Exposure(
        target_id=0,
        hidden=True,
        pictures=np.zeros((1, 2, 2), np.uint8),
        histogram=byte_histogram(messages),
        uniformity=chi_square_uniform(messages),
    )


def test_text_is_escaped_everywhere():
    evil = "<script>alert('x')</script> & \"q\""
    parts = [paragraph(evil), preformatted(evil), table((evil,), [(evil,)])]
    text = page(evil, evil, [Section(evil, "".join(parts))])
    assert "<script" not in text
    assert text.count("&lt;script&gt;") == 8


def test_page_refers_to_nothing_outside_itself():
    body = table(("",), [(png(np.zeros((2, 2), np.uint8)),)])
    text = page("title", "lead", [Section("one", body)])
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "url(" not in text
    assert "http" not in text


def test_pictures_survive():
    picture = np.arange(12, dtype=np.uint8).reshape(3, 4)
    with Image.open(io.BytesIO(png(picture))) as image:
        np.testing.assert_array_equal(np.asarray(image), picture)


def test_numbers_are_right_aligned_with_their_header():
    text = table(("name", "count"), [("a", "12"), ("b", "3")])
    assert '<th class="number">count</th>' in text
    assert '<td class="number">12</td>' in text
    assert "<th>name</th>" in text


def test_table_without_rows():
    assert "<th>a</th>" in table(("a",), [])


def test_histogram_has_a_bar_per_occurring_value():
    messages = np.random.default_rng(0).integers(0, 2**32, 4096, dtype=np.uint32)
    assert histogram(shown(messages).histogram, "bytes").count("<rect") == 256
    assert histogram(shown(np.zeros(4096, np.uint32)).histogram, "bytes").count("<rect") == 1
