from dataclasses import replace

import pytest

from cloister.errors import InputError, PlanError
from cloister.plan import policies
from cloister.plan.planned_split import PlannedSplit
from cloister.plan.protection import BLINDED, BLINDED_VERIFIED, VERIFIED
from cloister.plan.split_choice import planned
from cloister.planner.goals import Goals, InputHiding
from nets import chain
from plan.split_reports import report_of
from planner.priced import graph_of

PROVEN, EMPIRICAL = InputHiding.PROVEN, InputHiding.EMPIRICAL


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"integrity": "some"}, "--integrity some: choose one of full, prefix, none"),
        ({"integrity": "prefix"}, "only --hide-input empirical allows one"),
        ({"integrity": "prefix", "hide_input": PROVEN}, "only --hide-input empirical allows one"),
        ({"max_trusted_ms": 0.0}, "--max-trusted-ms 0: give more than 0"),
        ({"max_trusted_ms": -1.0}, "--max-trusted-ms -1: give more than 0"),
        ({"max_trusted_ms": float("nan")}, "--max-trusted-ms nan: give more than 0"),
    ],
)
def test_goals_that_make_no_sense_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        Goals(**given)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"enclave", "slalom", "blinded", "verified", "open"}),
        ({"integrity": "full"}, {"enclave", "slalom", "verified"}),
        ({"hide_input": PROVEN}, {"enclave", "slalom", "blinded"}),
        ({"hide_input": PROVEN, "integrity": "full"}, {"enclave", "slalom"}),
        ({"hide_input": EMPIRICAL, "integrity": "full"}, {"enclave", "slalom", "origami"}),
        (
            {"hide_input": EMPIRICAL, "integrity": "prefix"},
            {"enclave", "slalom", "origami", "origami-prefix"},
        ),
        # What hides inputs from a worker that follows the protocol only is asked for by its name.
        (
            {"hide_input": EMPIRICAL},
            {"enclave", "slalom", "origami", "origami-prefix", "blinded"},
        ),
        (
            {"hide_input": EMPIRICAL, "integrity": "none"},
            {"enclave", "slalom", "origami", "origami-prefix", "origami-none", "blinded"},
        ),
    ],
)
def test_policies_follow_from_goals(given, expected):
    assert set(Goals(**given).policies) == expected


def test_protections_to_measure_follow_from_policies():
    assert Goals(PROVEN, "full").protections == (BLINDED_VERIFIED,)
    assert set(Goals(EMPIRICAL, "full").protections) == {BLINDED_VERIFIED, VERIFIED}
    assert BLINDED in Goals(EMPIRICAL, "none").protections


def test_protections_that_do_not_meet_the_goals_are_refused():
    graph = graph_of(chain)
    name = graph.nodes[2].name
    audited = planned(report_of(graph, accepted=name).splits[0], report_of(graph, accepted=name))
    bare = PlannedSplit(audited.until)

    def given(policy, split=None):
        return policies.assign(graph, policy, split=split)

    Goals().require_met(graph, given("open"), None)
    Goals(PROVEN, "full").require_met(graph, given("slalom"), None)
    Goals(PROVEN).require_met(graph, given("blinded"), None)
    Goals(EMPIRICAL, "full").require_met(graph, given("origami", audited), audited)
    Goals(EMPIRICAL, "prefix").require_met(graph, given("origami-prefix", audited), audited)
    for goals, policy, split, why in (
        (Goals(PROVEN), "verified", None, "inputs are to be hidden"),
        (Goals(PROVEN), "origami", audited, "inputs are to be hidden"),
        (Goals(integrity="full"), "open", None, "is to be checked"),
        (Goals(integrity="full"), "blinded", None, "is to be checked"),
        (Goals(EMPIRICAL), "verified", None, "no audit accepts"),
        (Goals(EMPIRICAL), "origami", bare, "no audit accepts"),
        (Goals(EMPIRICAL, "full"), "origami-prefix", audited, "is to be checked"),
        (Goals(EMPIRICAL, "prefix"), "origami-none", audited, "is to be checked"),
    ):
        with pytest.raises(PlanError, match=why):
            goals.require_met(graph, given(policy, split), split)
    assert replace(Goals(), integrity="full").integrity == "full"
