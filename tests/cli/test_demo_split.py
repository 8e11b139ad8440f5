"""`cloister demo split`: an audit of splits, and the model run at one of them."""

import json
import re

import numpy as np
import pytest

from cloister.examples import digits_demo, split_demo, split_demo_page
from cloister.graph.onnx.load import load
from cloister.graph.split import split_points
from cloister.plan import policies
from plan.split_reports import report_of

pytest.importorskip("torch")
pytest.importorskip("sklearn")

from cloister.audit.input import SplitAudit, SplitSettings
from cloister.audit.input.split_page import Gallery
from cloister.audit.page import png

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
    until = split_points(graph)[1].until
    calibration = digits.images[~digits.held_out][:64]
    ranges = policies.measure_ranges("slalom", graph, calibration=calibration)
    report = report_of(graph, accepted=until[0], ranges=ranges)
    picture = png(np.zeros((8, 8), np.uint8))
    audit = SplitAudit(report, Gallery((picture,), picture, {}))
    return split_demo.run_split(graph, digits, audit)


def test_the_model_is_right_on_digits_that_it_was_not_trained_on(outcome):
    assert outcome.inputs == 360
    assert outcome.accuracy >= 0.98


def test_every_way_to_run_it_gives_the_same_answers(outcome, accepted):
    for found in (outcome, accepted):
        assert [run.plan.policy for run in found.runs] == [
            "slalom", "origami", "origami-prefix", "origami-none",
        ]  # fmt: skip
        assert [run.same for run in found.runs] == [360] * 4


def test_deeper_splits_tell_less(outcome):
    found = [split.attack("ridge").explained.mean for split in outcome.audit.report.splits]
    assert found == sorted(found, reverse=True)
    assert found[0] > 0.9 > 0.25 > found[-1]


def test_without_an_accepted_split_the_deepest_is_run_and_nobody_vouches_for_it(outcome, graph):
    assert not outcome.accepted
    assert outcome.until == split_points(graph)[-1].until
    assert [run.plan.split and run.plan.split.evidence for run in outcome.runs] == [None] * 4


def test_the_accepted_split_is_run_with_its_evidence(accepted, graph):
    assert accepted.accepted
    assert accepted.until == split_points(graph)[1].until
    for run in accepted.runs[1:]:
        assert run.plan.split.evidence.report == accepted.audit.report.digest


def test_more_is_checked_by_slalom_and_full_integrity(accepted):
    slalom, full, prefix, none = (run.report.soundness_bits for run in accepted.runs)
    assert slalom > 30
    assert full > 30
    assert none is None
    checked = [sum(row.soundness_bits is not None for row in run.report.layers)
               for run in accepted.runs]  # fmt: skip
    assert checked == [5, 5, 2, 0]
    assert prefix is None or prefix > 30


@pytest.mark.parametrize("which", ["outcome", "accepted"])
def test_the_page_shows_every_run_and_every_split(which, request, tmp_path, graph):
    found = request.getfixturevalue(which)
    text = split_demo_page.write_split_page(found, tmp_path).read_text()
    for run in found.runs:
        assert f"<td>{run.name}</td>" in text
    for split in split_points(graph):
        assert split.name in text
    assert "data:image/png" in text
    assert not re.search(r"(src|href)=\"(?!data:)", text)


def test_the_command_writes_a_page_and_json(outcome, tmp_path, monkeypatch, cloister):
    monkeypatch.setattr(split_demo, "run", lambda *_, **__: outcome)
    ran = cloister("demo", "split", "--out", tmp_path, "--json")
    assert ran.code == 0, ran
    found = json.loads(ran.out)
    assert (tmp_path / "index.html").samefile(found["page"])
    assert found["accepted"] is False
    assert [run["same_answers"] for run in found["runs"]] == [360] * 4
    assert len(found["audit"]["splits"]) == 4
    shown = cloister("demo", "split", "--out", tmp_path).out
    assert "360 of 360" in shown
    assert "No split is accepted" in shown
