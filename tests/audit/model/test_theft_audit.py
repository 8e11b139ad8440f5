"""What the audit of a model must find, on small classifiers of digits."""

import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("scipy")

from audit.model import victims
from cloister.audit import job_results
from cloister.audit.job_results import PROGRESS
from cloister.audit.model import (
    ModelTheftReport,
    TheftSettings,
    audit_data,
    audit_model,
)
from cloister.audit.model.thief import Thief
from cloister.errors import InputError, UnsupportedError

QUICK = TheftSettings(queries=(0, 25), seeds=3, steps=200)


@pytest.fixture(scope="module")
def data():
    members, others = victims.digits()
    return audit_data(others, members=members, evaluated=QUICK.evaluated)


@pytest.fixture(scope="module")
def report(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("report")
    made = audit_model(victims.classifier(), data, folder=folder, settings=QUICK)
    assert ModelTheftReport.load(folder) == made
    return made


# ---- facts that are known


def test_the_victim_is_the_white_box_bound(report):
    assert report.layers == 5
    assert report.victim_accuracy > 0.93
    assert all(
        theft.accuracy.mean <= report.victim_accuracy + 0.02
        for one in report.splits for theft in one.thefts
    )  # fmt: skip


def test_a_hidden_linear_head_follows_from_two_queries_a_feature(report):
    found = report.split(1).recovery
    assert (found.features, found.queries, found.rank) == (12, 26, 13)
    assert found.weights_error < 1e-4
    assert found.logits_error < 1e-4
    assert found.fidelity == 1.0


def test_hiding_the_last_layer_alone_leaves_a_thief_far_above_a_black_box(report):
    last = report.split(1)
    assert report.gain(1) > 1.15
    assert last.thefts[-1].attack == "solved"
    assert last.thefts[-1].fidelity.mean > 0.98
    assert last.thefts[-1].accuracy.low > report.black_box(25)


def test_hiding_every_layer_leaves_a_black_box(report):
    whole = report.split(report.layers)
    assert whole.hidden_parameters == report.parameters
    assert [one.architecture.split()[-1] for one in report.black_boxes] == [
        "architecture", "classifier", "architecture",
    ]  # fmt: skip
    for i, theft in enumerate(whole.thefts):
        assert theft in [one.thefts[i] for one in report.black_boxes[:2]]
    assert report.gain(report.layers) <= 1.0
    assert whole.recovery is None


def test_without_queries_a_thief_guesses(report):
    for one in (*report.splits, *report.black_boxes):
        assert one.thefts[0].attack == "none"
        assert one.thefts[0].accuracy.mean < 0.35


def test_more_hidden_layers_help_a_thief_less(report):
    gains = [report.gain(hidden) for hidden in range(1, 6)]
    assert gains[0] == max(gains)
    assert gains[-1] == min(gains)
    assert gains[1] > 1.1
    assert report.sweet_spot is None or report.sweet_spot > 1
    assert "only fewer queries" in report.verdict or report.black_box(25) * 1.1 < 0.95


# ---- labels alone


def test_labels_alone_give_no_equations(tmp_path, data):
    settings = TheftSettings(splits=(1,), queries=(25,), seeds=1, answers="label", steps=50)
    report = audit_model(victims.classifier(), data, folder=tmp_path, settings=settings)
    assert report.split(1).recovery is None
    assert report.split(1).thefts[0].attack in ("trained", "linear probe")
    assert [one.attack for one in report.membership] == ["right label"]
    assert report.split(1).thefts[0].accuracy.low is None
    page = (tmp_path / "report.html").read_text()
    assert "Labels alone give no equations" in page


# ---- files


def test_the_page_is_self_contained_and_says_what_it_holds_for(tmp_path, data):
    settings = TheftSettings(splits=(1, 2), queries=(0, 20), seeds=2, steps=20)
    report = audit_model(victims.classifier(), data, folder=tmp_path, settings=settings)
    page = (tmp_path / "report.html").read_text()
    assert "http" not in page
    assert "<script" not in page
    assert "url(" not in page
    assert page.count("<svg") == 1
    for text in (
        report.model_sha256, report.data_sha256, "These figures are empirical", "0 to 1",
        "Split: 1 layer hidden", "Split: 2 layers hidden", "likelihood ratio", "13 of 13",
        "black box: a small architecture", report.verdict.split(".")[0],
    ):  # fmt: skip
        assert text in page, text


def test_an_audit_that_was_killed_goes_on_and_comes_to_the_same(tmp_path, data, monkeypatch):
    settings = TheftSettings(splits=(1,), queries=(0, 20), seeds=2, steps=20)
    model = victims.classifier()
    whole = audit_model(model, data, folder=tmp_path / "whole", settings=settings)

    def killed(done, total):
        assert total == 12
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audit_model(model, data, folder=tmp_path / "cut", settings=settings, update=killed)
    assert not (tmp_path / "cut" / "report.json").exists()
    stolen = []
    real = Thief.steal
    monkeypatch.setattr(Thief, "steal", lambda self, job: stolen.append(job) or real(self, job))
    assert audit_model(model, data, folder=tmp_path / "cut", settings=settings) == whole
    assert len(stolen) == 5
    for name in ("report.json", "report.html", PROGRESS):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_more_seeds_and_budgets_are_added_to_those_that_are_done(tmp_path, data, monkeypatch):
    model, few = victims.classifier(), TheftSettings(splits=(1,), queries=(20,), seeds=1, steps=5)
    more = TheftSettings(splits=(1, 2), queries=(10, 20), seeds=2, steps=5)
    anew = audit_model(model, data, folder=tmp_path / "anew", settings=more)
    audit_model(model, data, folder=tmp_path / "on", settings=few)
    stolen = []
    real = Thief.steal
    monkeypatch.setattr(Thief, "steal", lambda self, job: stolen.append(job) or real(self, job))
    assert audit_model(model, data, folder=tmp_path / "on", settings=more) == anew
    assert len(stolen) == 2 * 2 * 4 - 3


def test_when_the_time_is_used_up_there_are_fewer_seeds(tmp_path, data, monkeypatch):
    settings = TheftSettings(splits=(1,), queries=(0, 20), seeds=2, steps=5)
    model, clock = victims.classifier(), iter(range(1000))
    monkeypatch.setattr(job_results.time, "monotonic", lambda: 60.0 * next(clock))
    with pytest.raises(InputError, match="run the same command again"):
        audit_model(model, data, folder=tmp_path, settings=settings, minutes=3.5)
    report = audit_model(model, data, folder=tmp_path, settings=settings, minutes=7.5)
    assert report.seeds_done == 1
    assert "1 of 2 seeds are done" in (tmp_path / "report.html").read_text()
    report = audit_model(model, data, folder=tmp_path, settings=settings)
    assert report.seeds_done == 2


def test_a_folder_of_another_audit_is_refused(tmp_path, data):
    settings = TheftSettings(splits=(1,), queries=(20,), seeds=1, steps=5)
    audit_model(victims.classifier(), data, folder=tmp_path, settings=settings)
    other = TheftSettings(splits=(1,), queries=(20,), seeds=1, steps=6)
    with pytest.raises(InputError, match=r"another audit.*another --out"):
        audit_model(victims.classifier(), data, folder=tmp_path, settings=other)
    (tmp_path / PROGRESS).write_text("{")
    with pytest.raises(InputError, match="damaged; remove it"):
        audit_model(victims.classifier(), data, folder=tmp_path, settings=settings)


def test_a_report_is_read_strictly(tmp_path, report):
    report.save(tmp_path)
    path = tmp_path / "report.json"
    assert ModelTheftReport.load(path).gain(1) == report.gain(1)
    with pytest.raises(InputError, match="split 9: not in this audit"):
        report.gain(9)
    found = json.loads(path.read_text())
    assert found["gain"]["1"] == report.gain(1)
    assert found["sweet_spot"] == report.sweet_spot
    for change, message in (
        ({"format": 2}, "another version"),
        ({"splits": [{}]}, "not the report of an audit"),
        ({"more": 1}, "not the report of an audit"),
    ):
        path.write_text(json.dumps({**found, **change}))
        with pytest.raises(InputError, match=message):
            ModelTheftReport.load(path)


# ---- sweet spots and verdicts


def with_accuracies(report, rows, black):
    """The report with other accuracies: a row for each split, budgets as in the report."""
    from dataclasses import replace

    from cloister.audit.model.interval import Interval

    def thefts(row):
        return tuple(
            replace(old, accuracy=Interval(new, None, None, 1))
            for old, new in zip(report.splits[0].thefts, row, strict=True)
        )

    splits = tuple(
        replace(one, thefts=thefts(row)) for one, row in zip(report.splits, rows, strict=True)
    )
    boxes = tuple(replace(one, thefts=thefts(black)) for one in report.black_boxes)
    return replace(report, splits=splits, black_boxes=boxes)


def test_a_sweet_spot_is_named_only_where_there_is_one(report):
    black = (0.1, 0.5)
    better, alike = (0.1, 0.56), (0.1, 0.54)
    made = with_accuracies(report, [better, better, alike, alike, black], black)
    assert made.sweet_spot == 3
    assert made.verdict.startswith("From 3 hidden layers on")
    assert made.gain(1) == pytest.approx(1.12)
    # A split that hides more and protects less is no reason to trust one that hides less.
    made = with_accuracies(report, [alike, alike, alike, better, black], black)
    assert made.sweet_spot is None
    assert made.verdict.startswith("No split short of hiding every layer")
    assert "only fewer queries" not in made.verdict
    # Without queries there is nothing to compare.
    made = with_accuracies(report, [(0.9, 0.5)] * 5, black)
    assert made.sweet_spot == 1
    made = with_accuracies(report, [(0.1, 0.95)] * 5, (0.1, 0.95))
    assert "only fewer queries protect the model" in made.verdict


# ---- bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (TheftSettings(queries=(10_000,)), "the thief has 299 samples"),
        (TheftSettings(queries=(1,), splits=(6,)), "6 hidden layers, but the model has 5"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, data, settings, message):
    with pytest.raises(InputError, match=message):
        audit_model(victims.classifier(), data, folder=tmp_path, settings=settings)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"queries": ()}, "queries: give different numbers from 0 on, .* not nothing"),
        ({"queries": (5, 5)}, "rising order, not 5,5"),
        ({"queries": (0,)}, "at least one number above 0"),
        ({"splits": (0, 1)}, "splits: give different numbers from 1 on"),
        ({"seeds": 0}, "seeds: give a number from 1 on"),
    ],
)
def test_settings_that_mean_nothing_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        TheftSettings(**given)


def test_models_that_are_no_classifiers_are_refused(tmp_path, data):
    import nets
    from cloister.graph.onnx.read import from_model
    from cloister.graph.passes.normalise import prepare

    for name, message in (("several", "one input, one output"), ("transposed", "for each class")):
        graph = prepare(from_model(nets.ALL[name](), name=name))
        with pytest.raises(UnsupportedError, match=message):
            audit_model(graph, data, folder=tmp_path, settings=QUICK)


def test_classes_that_the_model_does_not_have_are_refused(tmp_path, data):
    _, others = victims.digits()
    odd = audit_data(type(others)(others.x, np.where(others.y == 3, 11, others.y)), evaluated=1000)
    with pytest.raises(InputError, match="class 11, but the model has 10 classes"):
        audit_model(victims.classifier(), odd, folder=tmp_path, settings=QUICK)


def test_every_number_of_the_figure_is_a_number(report):
    from cloister.audit.model.theft_page import figure

    drawn = figure(report)
    tree = ElementTree.fromstring(drawn)
    texts = [one.text for one in tree.iter("text")]
    assert [one for one in texts if one.isdigit()] == ["1", "2", "3", "4", "5"]
    assert {"the model itself", "0 queries", "25 queries"} <= set(texts)
    assert len(re.findall(r"<circle", drawn)) == 10
    assert "nan" not in drawn
    assert "inf" not in drawn
