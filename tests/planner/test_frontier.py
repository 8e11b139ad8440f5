import json
from dataclasses import replace

import pytest

from cloister.cli.console import json_text
from cloister.errors import PlanError
from cloister.plan.protection import BLINDED, BLINDED_VERIFIED, ENCLAVE, OPEN, VERIFIED
from cloister.planner.chosen_parts import plan_parts
from cloister.planner.cost_table import ProgramCost, StepCost
from cloister.planner.frontier import PlanFrontier
from cloister.planner.goals import Goals, Objective
from cloister.planner.plan_search import CostedPlan

NAMES = ("a", "b", "c", "d")


def costed(policy, protection, trusted, worker=0.0, **changed):
    steps = tuple(StepCost((name,), protection, trusted / 4, worker / 4) for name in NAMES)
    given = {
        "policy": policy, "split": None, "inside": frozenset(),
        "protections": dict.fromkeys(NAMES, protection), "cost": ProgramCost(steps, 0.0),
        "pad_bytes": 0, "traffic_bytes": 100, "memory_bytes": 1000, **changed,
    }  # fmt: skip
    return CostedPlan(**given)


ENCLOSED = costed("enclave", ENCLAVE, 100.0, traffic_bytes=0)
SLALOM = costed("slalom", BLINDED_VERIFIED, 10.0, 90.0, pad_bytes=400)
BLIND = costed("blinded", BLINDED, 9.8, 90.0, pad_bytes=400)
CLEAR = costed("open", OPEN, 1.0, 50.0)


def frontier(*plans, **goals):
    return PlanFrontier("net", Goals(**goals), plans)


def test_the_cheapest_plan_is_chosen():
    assert frontier(ENCLOSED, SLALOM, CLEAR).chosen is CLEAR
    assert frontier(ENCLOSED, SLALOM).chosen is SLALOM
    assert frontier(ENCLOSED, SLALOM, objective=Objective.LATENCY).chosen in (ENCLOSED, SLALOM)
    slow = costed("slalom", BLINDED_VERIFIED, 10.0, 500.0)
    assert frontier(slow, ENCLOSED, objective=Objective.LATENCY).chosen is ENCLOSED


def test_of_equally_fast_plans_the_one_that_protects_most_is_chosen():
    found = frontier(BLIND, SLALOM)
    assert found.chosen is SLALOM
    assert found.why(SLALOM) == "chosen: within 3% of the least trusted time, and protects most"
    assert found.why(BLIND) == "equally fast; checks 4 nodes less"
    assert frontier(replace(BLIND, cost=CLEAR.cost), SLALOM).chosen.policy == "blinded"
    fewer = replace(SLALOM, pad_bytes=10)
    found = frontier(SLALOM, fewer)
    assert found.chosen is fewer
    assert found.why(SLALOM) == "equally fast; protects no more and needs more pads"


def test_a_limit_is_kept_though_another_plan_has_less_latency():
    found = frontier(ENCLOSED, SLALOM, objective=Objective.LATENCY, max_trusted_ms=20.0)
    assert found.chosen is SLALOM
    assert found.why(ENCLOSED) == "80.00 ms above --max-trusted-ms"


def test_a_limit_that_no_plan_keeps_is_refused_with_the_best():
    with pytest.raises(PlanError, match=r"--max-trusted-ms 5: .* slalom with 10.00 ms"):
        frontier(ENCLOSED, SLALOM, max_trusted_ms=5.0)
    with pytest.raises(PlanError, match="no plan of this model meets the goals"):
        frontier()


def test_reasons_say_what_is_traded():
    found = frontier(SLALOM, CLEAR, ENCLOSED)
    assert found.why(CLEAR) == "chosen: the least trusted time"
    assert found.why(SLALOM) == "9.00 ms more trusted time; hides 4 nodes more, checks 4 nodes more"


def test_the_frontier_has_no_plan_that_another_one_beats():
    worse = replace(SLALOM, pad_bytes=500, inside=frozenset("a"))
    verified = costed("verified", VERIFIED, 12.0, 90.0)
    found = frontier(SLALOM, worse, verified, ENCLOSED)
    # In the clear costs more time than blinded here, but needs no pads.
    assert found.best == (SLALOM, verified, ENCLOSED)
    assert found.plans == (SLALOM, worse, verified, ENCLOSED)


def test_json_has_all_plans():
    found = frontier(SLALOM, ENCLOSED, max_trusted_ms=50.0)
    document = json.loads(json_text(found.to_dict()))
    assert document["goals"]["objective"] == "throughput"
    assert document["goals"]["max_trusted_ms"] == 50.0
    assert [one["policy"] for one in document["plans"]] == ["slalom", "enclave"]
    assert [one["chosen"] for one in document["plans"]] == [True, False]
    assert document["chosen"]["trusted_ms"] == 10.0
    assert sum(step["trusted_ms"] for step in document["chosen"]["nodes"]) == 10.0
    assert len(found.rows(found.plans)[0]) == 11


def test_parts_are_neighbours_under_one_protection():
    steps = (
        StepCost((), ENCLAVE, 0.5),
        StepCost(("a",), BLINDED_VERIFIED, 0.0, 7.0),
        StepCost(("a", "b"), BLINDED_VERIFIED, 1.0),
        StepCost(("c",), VERIFIED, 0.0, 2.0),
        StepCost(("c",), VERIFIED, 0.25),
        StepCost(("d",), ENCLAVE, 0.125),
    )
    parts = plan_parts(replace(SLALOM, cost=ProgramCost(steps, 1.0)))
    assert [(part.protection, part.span) for part in parts] == [
        (BLINDED_VERIFIED, "a .. b"), (VERIFIED, "c"), (ENCLAVE, "d"),
    ]  # fmt: skip
    assert [part.trusted_ms for part in parts] == [1.5, 0.25, 0.125]
    assert [part.worker_ms for part in parts] == [7.0, 2.0, 0.0]
