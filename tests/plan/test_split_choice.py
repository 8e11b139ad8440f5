"""Where a plan is split: as its caller names it, or as an audit's report accepts it."""

from dataclasses import replace

import numpy as np
import pytest

import nets
from cloister.errors import CloisterError, InputError, PlanError
from cloister.graph.answers import AnswerKind, with_answers
from cloister.graph.hidden import hide
from cloister.graph.split import split_points
from cloister.plan import policies, split_report
from cloister.plan.plan import Plan
from cloister.plan.plan_choice import PlanChoice
from cloister.plan.planned_split import PlannedSplit
from cloister.plan.protection import (
    BLINDED,
    BLINDED_VERIFIED,
    ENCLAVE,
    INTEGRITY,
    MODULE,
    SPLITTING,
)
from cloister.plan.split_choice import SplitRequest, choose_split
from graph.test_hidden import DIGEST, graph_of, vgg
from plan.split_reports import HARMLESS, report_of
from plan.split_reports import split_report as report_with

SAMPLES = nets.samples(vgg(), 4)


@pytest.fixture(scope="module")
def graph():
    return graph_of(vgg())


@pytest.fixture(scope="module")
def names(graph):
    return [split.name for split in split_points(graph)]


@pytest.fixture(scope="module")
def ranges(graph):
    return policies.measure_ranges("slalom", graph, calibration=SAMPLES)


def audited(graph, accepted, ranges):
    return report_of(graph, accepted=accepted, ranges=ranges)


# ---- from Python


@pytest.mark.parametrize(("integrity", "policy"), INTEGRITY.items())
def test_a_named_split(graph, names, integrity, policy):
    plan = policies.origami(graph, until=names[1], integrity=integrity, calibration=SAMPLES)
    assert plan.policy == policy
    assert plan.split == PlannedSplit((names[1],))
    found = list(plan.protections.values())
    assert set(found) <= {ENCLAVE, SPLITTING[policy].before, SPLITTING[policy].after}
    assert SPLITTING[policy].before in found
    assert SPLITTING[policy].after in found


def test_an_unknown_integrity(graph, names):
    with pytest.raises(PlanError, match="integrity 'some': choose one of full, prefix, none"):
        policies.origami(graph, until=names[0], integrity="some", calibration=SAMPLES)


def test_the_shallowest_split_that_the_audit_accepts(graph, names, ranges):
    for accepted in names:
        report = audited(graph, accepted, ranges)
        plan = policies.origami(graph, until="auto", audit=report)
        assert plan.split.until == (accepted,)
        assert plan.split.evidence.report == report.digest
        assert plan.digest == policies.origami(graph, until=accepted, audit=report).digest
        # The ranges are the report's.
        assert dict(plan.ranges) == {name: ranges[name] for name in plan.quantised}


def test_an_audit_that_accepts_nothing_keeps_all_layers_blinded(graph, ranges):
    for integrity, protection in (
        ("full", BLINDED_VERIFIED), ("prefix", BLINDED_VERIFIED), ("none", BLINDED),
    ):  # fmt: skip
        plan = policies.origami(graph, integrity=integrity, audit=audited(graph, None, ranges))
        assert plan.split is None
        assert set(plan.protections.values()) == {protection, ENCLAVE}


def test_the_evidence_is_the_strongest_attack_of_each_figure(graph, names, ranges):
    report = audited(graph, names[0], ranges)
    strong = {
        "gan": {"ssim": 0.15},
        "optimise": {"explained": 0.2},
        "decoder": {"identification": 0.05},
    }
    splits = [(split.until, HARMLESS, strong) for split in report.splits]
    report = replace(
        report_with(splits, model=graph.name, sha256=report.model_sha256, ranges=ranges),
        points=report.points,
    )
    found = policies.origami(graph, audit=report).split.evidence
    assert found.attacks == ("gan", "decoder", "optimise", "ridge")
    assert found.identification == pytest.approx(0.06)
    assert found.explained == pytest.approx(0.22)
    assert found.ssim == pytest.approx(0.16 - report.blind_ssim)
    assert (found.images, found.candidates) == (report.images, report.candidates)
    assert (found.data, found.data_sha256) == (report.data, report.data_sha256)


def test_auto_without_an_audit(graph):
    with pytest.raises(PlanError, match=r"no split is chosen: name the last node before it \(--u"):
        policies.origami(graph, calibration=SAMPLES)


def test_a_split_that_the_audit_does_not_accept(graph, names, ranges):
    report = audited(graph, names[-1], ranges)
    with pytest.raises(PlanError, match=f"split at '{names[0]}': the audit does not accept it"):
        policies.origami(graph, until=names[0], audit=report)
    (relu, *_) = [node.name for node in graph.nodes if node.op == "Relu"]
    with pytest.raises(PlanError, match=f"split at '{relu}': the audit has not attacked it"):
        policies.origami(graph, until=relu, audit=report)


def test_a_report_of_another_model(graph, names, ranges):
    other = graph_of(nets.chain())
    for until in ("auto", names[0]):
        with pytest.raises(PlanError, match=r"the audit is of the model .*audit this model"):
            policies.origami(graph, until=until, audit=audited(other, None, ranges))


def test_a_report_may_be_a_file(graph, names, ranges, tmp_path):
    report = audited(graph, names[0], ranges)
    split_report.save(report, tmp_path)
    wanted = policies.origami(graph, audit=report)
    for place in (tmp_path, tmp_path / split_report.NAME, str(tmp_path)):
        assert policies.origami(graph, audit=place).digest == wanted.digest


@pytest.mark.parametrize("audit", [3, b"report", {}])
def test_what_is_no_report_and_no_file(graph, audit):
    with pytest.raises(PlanError, match="audit: give a report of `cloister audit input`"):
        policies.origami(graph, audit=audit)


def test_other_samples_than_the_audits(graph, names, ranges):
    report = audited(graph, names[0], dict.fromkeys(ranges, (9.0,)))
    plan = policies.origami(graph, audit=report, calibration=SAMPLES)
    assert plan.split.evidence.report == report.digest
    assert all(max(tops) < 9 for tops in plan.ranges.values())


def test_several_values_cross(graph):
    """Names in a list, or in a text with commas."""
    branches = graph_of(nets.branches())
    ends = [node.name for node in branches.nodes if node.op == "Relu"][1:3]
    samples = nets.samples(nets.branches(), 4)
    one = policies.origami(branches, until=ends, calibration=samples)
    other = policies.origami(branches, until=",".join(reversed(ends)), calibration=samples)
    assert one.digest == other.digest
    assert one.split.until == tuple(ends)


# ---- hidden ends


@pytest.mark.parametrize("policy", SPLITTING)
def test_a_split_before_a_hidden_end(graph, names, ranges, policy):
    """The audit names the whole model."""
    report = audited(graph, names[0], ranges)
    plan = policies.ennclave(graph, module_digest=DIGEST, last=1, outer=policy, audit=report)
    assert plan.policy == f"{policy}+ennclave"
    assert plan.split.evidence.report == report.digest
    assert list(plan.protections.values()).count(MODULE) == 1
    assert SPLITTING[policy].after in plan.protections.values()
    assert Plan.from_bytes(plan.to_bytes()).digest == plan.digest


def test_a_hidden_end_that_begins_before_the_accepted_split(graph, names, ranges):
    """All layers that a worker computes are before it."""
    report = audited(graph, names[-1], ranges)
    plan = policies.ennclave(graph, module_digest=DIGEST, last=2, outer="origami", audit=report)
    assert plan.split is None
    assert set(plan.protections.values()) == {BLINDED_VERIFIED, ENCLAVE, MODULE}
    with pytest.raises(InputError, match=r"no linear node is after it|has none of that name"):
        policies.ennclave(
            graph, module_digest=DIGEST, last=2, outer="origami", until=names[-1], audit=report
        )


def test_a_report_of_the_outer_part_alone(graph, names, ranges):
    outer = split_report.model_sha256(hide(graph, last=1).outer)
    report = replace(audited(graph, names[0], ranges), model_sha256=outer)
    with pytest.raises(PlanError, match="the audit is of the model"):
        policies.ennclave(
            graph, module_digest=DIGEST, last=1, outer="origami",
            audit=report,
        )  # fmt: skip


def test_policies_without_a_split_take_none(graph, names):
    with pytest.raises(PlanError, match="policy 'slalom' has no split; leave out until= and"):
        policies.ennclave(
            graph, module_digest=DIGEST, last=1, outer="slalom", until=names[0], calibration=SAMPLES
        )


# ---- as options


@pytest.mark.parametrize(("named", "integrity", "policy"), [
    (None, None, None), ("slalom", None, "slalom"), ("own", None, "own"),
    ("origami", None, "origami"), ("origami", "full", "origami"),
    ("origami", "prefix", "origami-prefix"), ("origami", "none", "origami-none"),
    ("origami-prefix", None, "origami-prefix"), ("origami-prefix", "prefix", "origami-prefix"),
    ("origami-none", "none", "origami-none"),
    ("origami+ennclave", "none", "origami-none+ennclave"),
    ("origami-none+ennclave", "none", "origami-none+ennclave"),
])  # fmt: skip
def test_the_policy_that_options_mean(named, integrity, policy):
    assert SplitRequest(integrity=integrity).policy(named) == policy


@pytest.mark.parametrize(("named", "integrity"), [
    ("origami-prefix", "full"), ("origami-prefix", "none"), ("origami-none", "full"),
    ("origami-none", "prefix"), ("origami-none+ennclave", "full"),
])  # fmt: skip
def test_options_that_contradict_each_other(named, integrity):
    with pytest.raises(
        InputError, match=f"--integrity {integrity}: is policy {INTEGRITY[integrity]}"
    ):
        SplitRequest(integrity=integrity).policy(named)


@pytest.mark.parametrize("named", [None, "slalom", "verified", "open", "own", "ennclave"])
@pytest.mark.parametrize(("option", "value"), [
    ("until", "a"), ("until", "auto"), ("integrity", "full"), ("audit", "report"),
])  # fmt: skip
def test_options_of_policies_without_a_split(named, option, value):
    with pytest.raises(InputError, match=f"--{option}: goes with --policy origami; leave it out"):
        SplitRequest(**{option: value}).policy(named)


@pytest.fixture
def stored(graph, names, ranges, tmp_path):
    """A plan in a file, and the report that accepted its split."""
    report = audited(graph, names[0], ranges)
    split_report.save(report, tmp_path)
    plan = policies.origami(graph, audit=report)
    plan.save(tmp_path / "a.plan")
    return plan, tmp_path / "a.plan", tmp_path


def test_a_stored_plan_has_its_split(stored, names):
    plan, path, folder = stored
    for split in (
        SplitRequest(until=names[0]),
        SplitRequest(audit=folder),
        SplitRequest(until=names[0], integrity="full"),
        SplitRequest(until=names[0], integrity="full", audit=folder),
    ):
        found, _ = PlanChoice("origami", split=split).load(path)
        assert found.digest == plan.digest


def test_who_names_no_split_takes_that_of_a_pinned_plan_only(stored):
    plan, path, _ = stored
    found, _ = PlanChoice("origami", digest=plan.digest.hex()).load(path)
    assert found.digest == plan.digest
    for split in (SplitRequest(), SplitRequest(integrity="full")):
        with pytest.raises(InputError, match="which is its writer's choice; say --until"):
            PlanChoice("origami", split=split).load(path)


@pytest.mark.parametrize(("split", "said"), [
    (SplitRequest(until="MaxPool_9"), "node 'MaxPool_9': the model has none of that name"),
    (SplitRequest(until="auto"), "--until auto: the plan has its split already"),
    (SplitRequest(integrity="prefix"), "is a plan of policy origami, and origami-prefix is want"),
    (SplitRequest(integrity="none"), "is a plan of policy origami, and origami-none is wanted"),
])  # fmt: skip
def test_what_contradicts_a_stored_plan(stored, split, said):
    with pytest.raises(CloisterError, match=said):
        PlanChoice("origami", split=split).load(stored[1])


def test_another_split_than_the_stored_one(stored, names):
    said = f"is split at {names[0]}, and --until {names[1]} is wanted"
    with pytest.raises(PlanError, match=said):
        PlanChoice("origami", split=SplitRequest(until=names[1])).load(stored[1])


def test_the_weakest_source_never_wins(stored, graph, names, tmp_path):
    """A plan without checks where checks are wanted, and the other way round; none by default."""
    _, path, _ = stored
    weak = policies.origami(graph, until=names[0], integrity="none", calibration=SAMPLES)
    weak.save(tmp_path / "weak.plan")
    for policy in ("origami", "origami-prefix", "slalom", "blinded", "open", None):
        with pytest.raises(PlanError, match="is a plan of policy origami-none, and"):
            PlanChoice(policy).load(tmp_path / "weak.plan")
    for policy in ("origami-none", "origami-prefix", "slalom", None):
        with pytest.raises(PlanError, match="is a plan of policy origami, and"):
            PlanChoice(policy).load(path)
    digest = weak.digest.hex()
    with pytest.raises(PlanError, match="is a plan of policy origami-none, and origami is"):
        PlanChoice("origami", digest=digest).load(tmp_path / "weak.plan")
    assert PlanChoice(digest=digest).load(tmp_path / "weak.plan")[0].digest == weak.digest


def test_an_audit_that_is_not_the_stored_plans(stored, graph, names, ranges, tmp_path):
    plan, path, _ = stored
    other = tmp_path / "other"
    other.mkdir()
    split_report.save(audited(graph, names[0], dict.fromkeys(ranges, (1.0,))), other)
    said = f"names report {plan.split.evidence.report.hex()[:16]}, and --audit .* is report"
    with pytest.raises(PlanError, match=said):
        PlanChoice("origami", split=SplitRequest(audit=other)).load(path)
    bare = policies.origami(graph, until=names[0], calibration=SAMPLES)
    bare.save(tmp_path / "bare.plan")
    with pytest.raises(PlanError, match="names no audit, and --audit"):
        PlanChoice("origami", split=SplitRequest(audit=other)).load(tmp_path / "bare.plan")


def test_figures_that_the_report_does_not_have(stored, tmp_path):
    """A plan whose writer names the report, and tells better figures."""
    plan, _, folder = stored
    evidence = replace(plan.split.evidence, identification=0.0)
    replace(plan, split=replace(plan.split, evidence=evidence)).save(tmp_path / "better.plan")
    with pytest.raises(PlanError, match="tells other figures of its audit than the report has"):
        PlanChoice("origami", split=SplitRequest(audit=folder)).load(tmp_path / "better.plan")


def test_the_line_says_where_the_plan_is_split(stored, graph, names, ranges, tmp_path):
    _, _, folder = stored
    _, line = PlanChoice("origami", split=SplitRequest(audit=folder)).make(graph)
    assert line == f"split after {names[0]}; calibrated by the audit on images"
    (tmp_path / "none").mkdir()
    split_report.save(audited(graph, None, ranges), tmp_path / "none")
    request = SplitRequest(audit=tmp_path / "none", integrity="prefix")
    plan, line = PlanChoice("origami", split=request).make(graph)
    assert line.startswith("the audit accepts no split, so all layers are blinded; ")
    assert (plan.policy, plan.split) == ("origami-prefix", None)


def test_the_answers_of_a_hidden_end_change_no_audit(stored, graph, names):
    """The module may return labels alone; the audited model is the one in the file."""
    _, _, folder = stored
    named = hide(with_answers(graph, AnswerKind.LABEL), last=1).named(DIGEST)
    request = SplitRequest(audit=folder)
    plan, _ = PlanChoice("origami", split=request).make(named, whole=graph)
    assert (plan.policy, plan.split.until) == ("origami+ennclave", (names[0],))
    with pytest.raises(PlanError, match="the audit is of the model"):
        PlanChoice("origami", split=request).make(named)


def test_the_split_of_a_pad_store(stored, graph, names):
    """Its plan decides; what contradicts it is refused."""
    plan, _, folder = stored
    for split in (SplitRequest(), SplitRequest(until=names[0], audit=folder)):
        made, line = PlanChoice("origami", split=split).make(graph, stored=plan)
        assert (made.digest, line) == (plan.digest, "calibration of the pad store")
    made, _ = PlanChoice().make(graph, stored=plan)
    assert made.digest == plan.digest
    for choice, said in (
        (PlanChoice("origami", split=SplitRequest(until=names[1])), "the pad store: is split at"),
        (PlanChoice("origami-none"), "the pad store: is a plan of policy origami, and"),
        (PlanChoice("slalom"), "the pad store: is a plan of policy origami, and slalom is"),
    ):
        with pytest.raises(PlanError, match=said):
            choice.make(graph, stored=plan)


def test_choose_split_reads_names(graph, names):
    assert choose_split(graph, names[0], None) == PlannedSplit((names[0],))
    assert choose_split(graph, [names[0]], None) == PlannedSplit((names[0],))
    for empty in ([], ()):
        with pytest.raises(InputError, match="name the last nodes before it"):
            choose_split(graph, empty, None)


def test_a_plan_of_every_split_computes_alike(graph, names):
    """The integers are those of slalom: a split changes who reads them, not what they are."""
    whole = policies.slalom(graph, calibration=SAMPLES)
    for name in names:
        plan = policies.origami(graph, until=name, calibration=SAMPLES)
        for node, numbers in plan.quantised.items():
            np.testing.assert_array_equal(
                numbers.linear.weights, whole.quantised[node].linear.weights
            )
