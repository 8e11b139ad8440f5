"""`cloister audit architecture` as people use it."""

import json
import re

import numpy as np
import pytest

from trusted.engines import hand_written

pytest.importorskip("ziglang")
CONSTANT = "RUN { CHECK_LENGTHS *(float *)outputs = *(const float *)weights; return 0; }"


@pytest.fixture
def two(tmp_path, monkeypatch):
    """Two modules that differ in what they weigh."""
    monkeypatch.chdir(tmp_path)
    for name, count in (("small", 16), ("large", 50_000)):
        weights = np.ones(count, np.float32).tobytes()
        hand_written.made(CONSTANT, weights=weights).save(tmp_path / name)
    return ("small", "large")


QUICK = ("--observations", "10", "--calls", "1", "--grid-ms", "1", "--pad-to", "1000000")


def test_a_table_says_what_tells_them_apart(cloister, two):
    ran = cloister("audit", "architecture", *two, *QUICK)
    assert ran.code == 0
    assert re.search(r"size of the bundle +1\.00 .* +0\.50 ", ran.out)
    assert re.search(r"a guess has 0\.50\. With padding, \w+", ran.out)


def test_the_result_as_json(cloister, two):
    ran = cloister("audit", "architecture", *two, *QUICK, "--json")
    found = json.loads(ran.out)
    assert found["modules"] == ["small", "large"]
    assert found["padding"] == {"memory_bytes": 1_000_000, "grid_ms": 1.0}
    assert found["plain"]["size of the bundle"]["value"] == 1.0
    assert set(found["plain"]) == set(found["padded"])
    assert set(found["plain"]["time to answer"]) == {"value", "low", "high", "chance"}


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("--pad-to", "big"), "--pad-to big: give power-of-two or a number of bytes"),
        (("--pad-to", "100"), "padding to 100 B: the module takes"),
        (("--grid-ms", "0"), "padding: a grid of 0 ms; give 0.001 to 60000"),
        (("--engine", "wasm"), "module 'hand': has no build wasm, only native-x86-64"),
    ],
)
def test_bad_input(refused, two, more, text):
    assert text in refused("audit", "architecture", *two, *more)


def test_one_module_is_no_comparison(refused, two):
    assert "takes two or more" in refused("audit", "architecture", two[0])
    assert "takes two or more" in refused("audit", "architecture", two[0], two[0])
