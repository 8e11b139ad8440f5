import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from cloister.planner.planner_page import planner_page, scatter, strip, write_planner_page
from planner.test_frontier import CLEAR, ENCLOSED, SLALOM, frontier

SVG = "{http://www.w3.org/2000/svg}"


def picture(text):
    return ElementTree.fromstring(text)


def titles(text):
    return [one.text for one in picture(text).iter(f"{SVG}title")]


def test_the_page_loads_nothing_and_runs_nothing():
    text = planner_page(frontier(ENCLOSED, SLALOM, CLEAR))
    links = set(re.findall(r"https?://[^\s\"'<]+", text))
    assert links <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<script|<link|<img|<iframe|@import|url\(|javascript:", text)
    assert text.count("<svg") == 2


def test_every_plan_is_drawn_and_the_chosen_one_is_ringed():
    found = frontier(ENCLOSED, SLALOM, CLEAR, max_trusted_ms=50.0)
    drawn = picture(scatter(found))
    circles = list(drawn.iter(f"{SVG}circle"))
    assert len(circles) == 3 + 1
    (ring,) = [one for one in circles if one.get("fill") == "none"]
    places = {(one.get("cx"), one.get("cy")) for one in circles if one is not ring}
    assert (ring.get("cx"), ring.get("cy")) in places
    assert len(places) == 3
    assert any("above --max-trusted-ms" in title for title in titles(scatter(found)))
    dashed = [one for one in drawn.iter(f"{SVG}line") if one.get("stroke-dasharray")]
    assert len(dashed) == 1


def test_every_node_is_drawn():
    assert [title.partition(":")[0] for title in titles(strip(SLALOM))] == ["a", "b", "c", "d"]
    assert all("blinded+verified" in title for title in titles(strip(SLALOM)))


def test_names_are_text():
    name = "<script>alert(1)</script>\x1b[2J"
    given = {name: SLALOM.protections["a"], **SLALOM.protections}
    steps = (replace(SLALOM.cost.steps[0], nodes=(name,)), *SLALOM.cost.steps)
    named = replace(SLALOM, protections=given, cost=replace(SLALOM.cost, steps=steps))
    found = replace(frontier(named), model=name)
    text = planner_page(found)
    assert "<script>" not in text
    assert "\x1b" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\x1b[2J" in text


@pytest.mark.parametrize("name", ["page.html", "page.svg"])
def test_the_file_is_written(tmp_path, name):
    path = tmp_path / name
    write_planner_page(frontier(ENCLOSED, SLALOM), path)
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".svg":
        assert len(list(picture(text).iter(f"{SVG}circle"))) == 3
        assert len(list(picture(text).iter(f"{SVG}rect"))) > 4
    else:
        assert text.startswith("<!doctype html>")
