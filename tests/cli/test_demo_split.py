"""`cloister demo split`: an audit of splits, and the model run at one of them."""

import json
import re
from itertools import product

import numpy as np
import pytest

from cloister.examples import digits_demo, split_demo, split_demo_page
from cloister.graph.onnx.load import load
from cloister.graph.split import split_points
from cloister.plan import policies
from cloister.plan.claims import Role, Verb
from plan.split_reports import report_of

pytest.importorskip("torch")
pytest.importorskip("sklearn")

from cloister.audit.input import SplitAudit, SplitSettings
from cloister.audit.input.split_page import Gallery
from cloister.pages.page import png

QUICK = SplitSettings(attacks=("ridge",), seeds=1, effort=0.01)


@pytest.fixture(scope="module")
def digits():
    return digits_demo.all_digits()


@pytest.fixture(scope="module")
def graph():
    with split_demo.model_file() as path:
        return load(path)


@pytest.fixture(scope="module")
def outcome(digits, tmp_path_factory):
    """One attack with one seed: the rule accepts nothing on that."""
    return split_demo.run(digits, tmp_path_factory.mktemp("audit"), settings=QUICK)


@pytest.fixture(scope="module")
def accepted(digits, graph):
    """The runs that follow an audit that accepts the second split."""
    calibration = digits.images[~digits.held_out][:64]
    ranges = policies.measure_ranges("slalom", graph, calibration=calibration)
    report = report_of(graph, accepted=split_points(graph)[1].name, ranges=ranges)
    picture = png(np.zeros((8, 8), np.uint8))
    audit = SplitAudit(report, Gallery((picture,), picture, {}))
    return split_demo.run_split(graph, digits, audit)


def test_the_model_is_right_on_digits_that_it_was_not_trained_on(outcome):
    assert outcome.inputs == 360
    assert outcome.accuracy >= 0.98


def test_every_way_to_run_it_gives_the_same_answers(outcome, graph):
    ways = [(run.until, run.integrity) for run in outcome.runs]
    names = [split.name for split in split_points(graph)]
    assert ways == [(None, "full"), *product(names, ["full", "prefix", "none"])]
    assert [run.same for run in outcome.runs] == [360] * 13


def test_a_later_split_hides_more_layers_and_sends_more(outcome):
    slalom, *split = outcome.runs
    full = [run for run in split if run.integrity == "full"]
    assert [run.hidden_layers for run in (*full, slalom)] == [1, 2, 3, 4, 5]
    sent = [run.report.bytes_to_worker for run in (*full, slalom)]
    assert sent == sorted(set(sent))


def test_what_is_checked_follows_the_integrity(outcome):
    for run in outcome.runs:
        checked = sum(row.soundness_bits is not None for row in run.report.layers)
        expected = {"full": 5, "prefix": run.hidden_layers, "none": 0}
        assert checked == expected[run.integrity]


def test_deeper_splits_tell_less(outcome):
    found = [split.attack("ridge").explained.mean for split in outcome.audit.report.splits]
    assert found == sorted(found, reverse=True)
    assert found[0] > 0.9 > 0.25 > found[-1]


def test_the_claims_are_those_of_the_plan_that_follows(outcome, accepted):
    one = [s.text for s in outcome.claims.of(Role.WORKER, Verb.LEARNS)]
    other = [s.text for s in accepted.claims.of(Role.WORKER, Verb.LEARNS)]
    assert not any("cross" in text for text in one)
    assert any("cross the split after maxpool_5" in text for text in other)


@pytest.mark.parametrize("which", ["outcome", "accepted"])
def test_the_page_shows_every_run_and_every_split(which, request, tmp_path, graph):
    found = request.getfixturevalue(which)
    text = split_demo_page.write_split_page(found, tmp_path).read_text()
    for split in split_points(graph):
        assert text.count(f"<td>{split.name}</td>") >= 3
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "<script" not in text


def test_the_command_writes_a_page_and_json(outcome, tmp_path, monkeypatch, cloister):
    monkeypatch.setattr(split_demo, "run", lambda *_, **__: outcome)
    ran = cloister("demo", "split", "--out", tmp_path, "--json")
    assert ran.code == 0, ran
    found = json.loads(ran.out)
    assert (tmp_path / "index.html").samefile(found["page"])
    assert found["audit"]["accepted"] is None
    assert [run["same_answers"] for run in found["runs"]] == [360] * 13
    assert len(found["audit"]["splits"]) == 4
    shown = cloister("demo", "split", "--out", tmp_path).out
    assert "360 of 360" in shown
    assert "No split is accepted" in shown
