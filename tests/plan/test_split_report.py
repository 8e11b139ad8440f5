"""The rule of an audit of splits, and the file of its report."""

import json
from contextlib import nullcontext
from dataclasses import replace

import pytest

import nets
from cloister.errors import InputError, PlanError
from cloister.graph.onnx.read import from_model
from cloister.graph.passes.normalise import prepare
from cloister.graph.split import split_points
from cloister.plan.split_report import (
    LEAST_FOUND,
    NAME,
    RULE,
    AuditedPixels,
    binomial_tail,
    load,
    save,
)
from cloister.plan.split_scores import ATTACKS, Estimate
from plan.split_reports import (
    BLIND_SSIM,
    EXPOSED,
    HARMLESS,
    IMAGES,
    attack_scores,
    estimate,
    report_of,
    split_report,
    split_scores,
)


def names(report):
    return [one.split.name for one in report.verdicts if one.accepted]


def graph():
    return prepare(from_model(nets.residual(), name="residual"))


# ---- the rule


def test_the_shallowest_split_that_is_harmless_with_all_deeper_ones_is_accepted():
    report = split_report([("a", EXPOSED, {}), ("b", HARMLESS, {}), ("c", HARMLESS, {})])
    assert report.flaws == ()
    assert names(report) == ["b", "c"]
    assert report.accepted_split() == report.splits[1]
    assert report.require_accepted(("c",)) == report.splits[2]
    assert "'b' is accepted" in report.conclusion


def test_a_harmless_split_before_one_that_is_not_is_refused():
    report = split_report([("a", HARMLESS, {}), ("b", EXPOSED, {}), ("c", HARMLESS, {})])
    assert names(report) == ["c"]
    assert report.verdicts[0].exceedances == ()
    assert report.verdicts[0].deeper == ("b",)
    with pytest.raises(PlanError, match=r"'a': .*the deeper split 'b' fails"):
        report.require_accepted(("a",))


def test_no_accepted_split_is_an_answer():
    report = split_report([("a", HARMLESS, {}), ("b", EXPOSED, {})])
    assert report.accepted_split() is None
    assert report.flaws == ()
    assert "No split is accepted" in report.conclusion
    assert "blinded" in report.conclusion


def test_programs_get_the_rules_answer_as_plain_values():
    report = split_report([("a", EXPOSED, {}), (("b", "c"), HARMLESS, {})])
    answer = json.loads(json.dumps(report.judgement()))
    assert answer["accepted"] == ["b", "c"]
    assert answer["verdicts"]["b,c"] == []
    assert len(answer["verdicts"]["a"]) == 3 * len(ATTACKS)
    assert answer["conclusion"] == report.conclusion
    none = split_report([("a", EXPOSED, {"gan": HARMLESS})])
    assert none.judgement()["accepted"] is None
    header, rows = none.table()
    assert rows[0][0] == "a"
    assert rows[0][-1] == "not accepted"
    assert len(rows[0]) == len(header)
    assert header[2:4] == ["explained (< 0.250)", "identification (< 0.100)"]


LIMITS = {
    "ssim": BLIND_SSIM + RULE.ssim,
    "explained": RULE.explained,
    "identification": RULE.identification / 50,
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("figure", LIMITS)
def test_each_attack_and_each_figure_alone_refuses_a_split(attack, figure):
    """At the upper end of the interval: the mean is below the threshold here."""
    base = split_report([("a", HARMLESS, {})])
    for high, accepted in ((LIMITS[figure] - 1e-6, True), (LIMITS[figure], False)):
        scores = base.splits[0].attack(attack)
        mean = getattr(scores, figure).mean
        changed = replace(scores, **{figure: Estimate(mean, 0.0, high)})
        attacks = tuple(changed if one is scores else one for one in base.splits[0].attacks)
        report = replace(base, splits=(replace(base.splits[0], attacks=attacks),))
        assert report.flaws == ()
        assert (report.accepted_split() is not None) == accepted
        if not accepted:
            (exceedance,) = report.verdicts[0].exceedances
            assert (exceedance.attack, exceedance.figure) == (attack, figure)
            assert exceedance.found == pytest.approx(exceedance.threshold) == LIMITS[figure]
            assert attack in str(exceedance)
            assert figure in str(exceedance)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("place", ["splits", "input_control", "blinded_control"])
@pytest.mark.parametrize("what", ["absent", "two seeds"])
def test_a_report_without_a_whole_battery_accepts_nothing(attack, place, what):
    base = split_report([("a", HARMLESS, {})])
    scores = base.splits[0] if place == "splits" else getattr(base, place)
    attacks = tuple(
        replace(one, seeds=2) if one.attack == attack else one
        for one in scores.attacks
        if what == "two seeds" or one.attack != attack
    )
    changed = replace(scores, attacks=attacks)
    report = replace(base, **{place: (changed,) if place == "splits" else changed})
    assert report.accepted_split() is None
    said = "fewer than 3 seeds" if what == "two seeds" else "was not run"
    assert any(f"attack {attack} " in flaw and said in flaw for flaw in report.flaws)
    assert report.conclusion.startswith("No split is accepted, as the audit allows no verdict")
    with pytest.raises(PlanError, match="does not accept it"):
        report.require_accepted(("a",))


def test_a_split_point_that_was_not_attacked_refuses_all():
    report = split_report([("a", HARMLESS, {})], points=(("a",), ("b",)))
    assert report.accepted_split() is None
    assert report.flaws == ("no attack was run at split 'b'",)


@pytest.mark.parametrize(("weak", "said"), [
    ({"effort": 0.99}, "searched with effort 0.99, and 1 is needed"),
    ({"public": 499}, "learned from 499 images, and 500 are needed"),
])  # fmt: skip
def test_attacks_that_were_held_back_accept_nothing(weak, said):
    report = split_report([("a", HARMLESS, {}), ("b", HARMLESS, {})])
    assert names(report) == ["a", "b"]
    held_back = replace(report, **weak)
    assert names(held_back) == []
    assert said in held_back.conclusion
    with pytest.raises(PlanError, match=said):
        held_back.require_accepted(("b",))


def test_what_weak_attacks_find_is_found():
    """More effort finds more: a figure above its threshold needs no other reason."""
    report = replace(split_report([("a", EXPOSED, {})]), effort=0.1)
    assert report.conclusion.startswith("No split is accepted: at the deepest one, 'a', ")


def test_fewer_candidates_than_the_rule_needs_refuse_all():
    report = replace(split_report([("a", HARMLESS, {})]), candidates=49)
    assert report.accepted_split() is None
    assert "49" in report.flaws[0]


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("place", ["input_control", "blinded_control"])
def test_an_attack_that_fails_a_control_is_broken(attack, place):
    base = split_report([("a", HARMLESS, {})])
    # Behind pads 14 hits of 200 are beyond chance with p < 0.0001, 13 are not.
    for rate, broken in (
        ((LEAST_FOUND - 0.005, True), (LEAST_FOUND, False))
        if place == "input_control"
        else ((14 / IMAGES, True), (13 / IMAGES, False))
    ):
        scores = getattr(base, place)
        attacks = tuple(
            replace(one, identification=estimate(rate)) if one.attack == attack else one
            for one in scores.attacks
        )
        report = replace(base, **{place: replace(scores, attacks=attacks)})
        assert (attack in report.broken) == broken
        assert (report.accepted_split() is None) == broken
        assert any("is broken" in flaw for flaw in report.flaws) == broken


@pytest.mark.parametrize("attack", [name for name in ATTACKS if name != "ridge"])
def test_an_attack_that_never_beats_the_floor_is_broken(attack):
    floor = {"explained": 0.04, "identification": 0.02}
    report = split_report([("a", HARMLESS, {attack: floor}), ("b", HARMLESS, {attack: floor})])
    assert list(report.broken) == [attack]
    assert "beats ridge on no split" in report.broken[attack]
    assert report.accepted_split() is None
    once = split_report([("a", HARMLESS, {attack: {"explained": 0.06}}), ("b", HARMLESS, {})])
    assert not once.broken
    identified = {**floor, "identification": 0.03}
    assert not split_report([("a", HARMLESS, {attack: identified})]).broken


def test_the_tail_of_the_binomial_distribution():
    assert binomial_tail(0, 10, 0.5) == pytest.approx(1.0)
    assert binomial_tail(10, 10, 0.5) == pytest.approx(2.0**-10)
    assert binomial_tail(9, 10, 0.5) == pytest.approx(11 * 2.0**-10)
    assert binomial_tail(5000, 5000, 0.02) == 0.0


# ---- the model


def test_a_report_of_another_model_is_refused():
    model = graph()
    point = split_points(model)[-1].name
    report = report_of(model, accepted=point)
    report.require_model(model)
    assert report.accepted_split().name == point
    other = prepare(from_model(nets.chain(), name="chain"))
    with pytest.raises(PlanError, match=r"'residual' .*not of 'chain'"):
        report.require_model(other)
    weights = {n: a + 1 if a.dtype.kind == "f" else a for n, a in model.constants.items()}
    with pytest.raises(PlanError, match="audit this model"):
        report.require_model(replace(model, constants=weights))


def test_a_report_that_leaves_out_a_split_point_is_not_of_the_model():
    model = graph()
    report = report_of(model, accepted=None)
    assert report.accepted_split() is None
    with pytest.raises(PlanError, match="other split points"):
        replace(report, points=report.points[1:]).require_model(model)


@pytest.mark.parametrize(("other", "same"), [
    (AuditedPixels((0.0,), (1.0,), "gray"), True),
    (AuditedPixels((0.0, 1e-9), (1.0 + 1e-9,), "gray"), True),
    (AuditedPixels((0.0,), (1.0,), "rgb"), False),
    (AuditedPixels((0.1,), (1.0,), "gray"), False),
    (AuditedPixels((0.0, 0.1), (1.0,), "gray"), False),
    (AuditedPixels((0.0,), (255.0,), "gray"), False),
])  # fmt: skip
def test_inputs_that_are_made_otherwise_are_not_those_of_the_audit(other, same):
    report = split_report([("a", HARMLESS, {})])
    assert report.pixels == AuditedPixels((0.0,), (1.0,), "gray")
    with nullcontext() if same else pytest.raises(PlanError, match="give the options of the audit"):
        report.require_pixels(other)


def test_means_for_other_numbers_of_channels_differ():
    three, two = (AuditedPixels((0.0,) * n, (1.0,), "rgb") for n in (3, 2))
    assert not three.equals(two)
    assert three.equals(AuditedPixels((0.0,), (1.0,), "rgb"))


def test_a_split_that_was_not_audited_is_refused():
    report = split_report([("a", HARMLESS, {})])
    with pytest.raises(PlanError, match="'x,y': the audit has not attacked it"):
        report.require_accepted(("x", "y"))


def test_the_order_of_the_last_nodes_decides_nothing():
    report = split_report([(("a", "b"), HARMLESS, {})])
    assert report.require_accepted(("b", "a")) == report.splits[0]


# ---- the file


def some_report():
    return split_report(
        [("a", EXPOSED, {}), (("b", "c"), HARMLESS, {})], ranges={"a": (1.0, 2.5), "b": (0.25,)}
    )


def test_a_report_is_read_as_it_was_written(tmp_path):
    report = some_report()
    save(report, tmp_path)
    assert load(tmp_path) == load(tmp_path / NAME) == report
    found = json.loads((tmp_path / NAME).read_text())
    assert list(found)[-1] == "digest"
    assert found["digest"] == report.digest.hex()
    assert load(tmp_path).digest == report.digest
    assert report.digest != replace(report, data="other").digest


@pytest.mark.parametrize(
    "edit",
    [
        lambda d: d["splits"][0]["attacks"][0]["ssim"].update(high=0.13, mean=0.12, low=0.0),
        lambda d: d["splits"].pop(0),
        lambda d: d.update(model_sha256="2" * 64),
        lambda d: d["settings"].update(seeds=5),
        lambda d: d.update(digest="0" * 64),
    ],
)  # fmt: skip
def test_an_edited_report_is_refused(tmp_path, edit):
    save(some_report(), tmp_path)
    document = json.loads((tmp_path / NAME).read_text())
    edit(document)
    (tmp_path / NAME).write_text(json.dumps(document))
    with pytest.raises(InputError, match="does not match its digest"):
        load(tmp_path)


def test_a_damaged_byte_is_found(tmp_path):
    save(some_report(), tmp_path)
    text = (tmp_path / NAME).read_text()
    (tmp_path / NAME).write_text(text.replace('"images": 200', '"images": 201'))
    with pytest.raises(InputError, match="digest"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda d: d.update(thresholds={}), "'thresholds' is not known"),
        (lambda d: d.pop("ranges"), "'ranges' is missing"),
        (lambda d: d["splits"][0].update(depth="1"), r"splits\[0\].depth: must be int, not str"),
        (lambda d: d.update(images=True), "images: must be int, not bool"),
        (lambda d: d.update(blind_ssim=0), "blind_ssim: must be float, not int"),
        (lambda d: d.update(splits=[]), "no split"),
        (lambda d: d["splits"].reverse(), "order of their depth"),
        (lambda d: d["splits"][1].update(until=["a"]), "names a split twice"),
        (lambda d: d["splits"][0]["attacks"][0].update(attack="magic"), "'magic'"),
        (lambda d: d["splits"][0]["attacks"][0].update(attack="ridge"), "twice"),
        (lambda d: d["splits"][0]["attacks"][0].update(seeds=0), "0 times"),
        (lambda d: d["splits"][0]["attacks"][0]["ssim"].update(mean=2.0, high=3.0), "ssim lies"),
        (lambda d: d["splits"][0]["attacks"][0]["psnr"].update(low=20.0), "outside its interval"),
        (lambda d: d.update(candidates=201), "201"),
        # Hits of so many images would be counted for years.
        (lambda d: d.update(images=10**15), "1000000000000000 attacked images"),
        (lambda d: d.update(ranges={"a": [-1.0]}), "range of 'a' that no float32 value has"),
        (lambda d: d.update(ranges={"a": [1e39]}), "range of 'a' that no float32 value has"),
        (lambda d: d.update(ranges={"a": 1.0}), "ranges.a: must be a list"),
    ],
)
def test_a_report_that_no_audit_writes_is_refused_whatever_its_digest(tmp_path, edit, said):
    document = some_report().to_dict()
    edit(document)
    from cloister.plan import split_report as module

    digest = module._digest(document).hex()
    (tmp_path / NAME).write_text(json.dumps({**document, "digest": digest}))
    with pytest.raises(InputError, match=said) as raised:
        load(tmp_path)
    assert str(tmp_path) in str(raised.value)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "null", '{"format": 1}', "[" * 10_000, '{"format": 1, "digest": NaN}']
)
def test_what_is_no_report_is_refused(tmp_path, text):
    (tmp_path / NAME).write_text(text)
    with pytest.raises(InputError, match="report"):
        load(tmp_path)


def test_another_version_and_an_absent_file_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load(tmp_path)
    (tmp_path / NAME).write_text(json.dumps({**some_report().to_dict(), "format": 2, "digest": ""}))
    with pytest.raises(InputError, match="another version"):
        load(tmp_path)


@pytest.mark.parametrize("values", [(0.5, 0.6, 0.7), (0.5, 0.1, 0.4), (float("nan"), 0.0, 1.0)])
def test_an_estimate_lies_in_its_interval(values):
    with pytest.raises(InputError):
        Estimate(*values)


def test_helpers_differ_from_the_floor_only_where_they_say():
    scores = split_scores(("a",), HARMLESS, depth=1)
    assert scores.attack("ridge") == attack_scores("ridge", HARMLESS)
    assert scores.attack("gan").explained.mean > scores.attack("ridge").explained.mean
