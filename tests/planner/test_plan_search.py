from itertools import chain as joined
from itertools import combinations, product

import pytest

import nets
from cloister.graph.hidden import hide
from cloister.plan.protection import ENCLAVE, SPLITTING, Input
from cloister.plan.split_choice import planned
from cloister.planner import plan_search
from cloister.planner.cost_table import FloatCost
from cloister.planner.goals import Goals, InputHiding, Objective
from cloister.planner.plan_search import PlanSearch
from plan.split_reports import report_of
from planner.priced import DrawnLocals, deep, graph_of, linear_names, priced_table

PROVEN, EMPIRICAL = InputHiding.PROVEN, InputHiding.EMPIRICAL


def search_of(graph, goals, *, seed=0, most_ms=0.05, splits=(), mac_ms=1e-9, **changed):
    table = priced_table(
        local=DrawnLocals(seed, most_ms), floats=FloatCost(mac_ms), module_ms=0.3, **changed
    )
    return PlanSearch(graph, goals, table.predict, mac_ms, splits=splits)


def audited_splits(graph, accepted):
    report = report_of(graph, accepted=accepted)
    first = report.accepted_split()
    return tuple(planned(one, report) for one in report.splits if one.depth >= first.depth)


def by_brute_force(search, policy, split, objective):
    names = linear_names(search.graph)
    sets = joined.from_iterable(combinations(names, k) for k in range(len(names) + 1))
    plans = [search.costed(policy, split, frozenset(chosen)) for chosen in sets]
    return min(plan.objective_ms(objective) for plan in plans if plan is not None)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("build", [nets.chain, nets.residual, nets.branches])
def test_the_placement_is_the_best_there_is(build, seed):
    graph = graph_of(build)
    for objective in Objective:
        search = search_of(graph, Goals(PROVEN, "full", objective=objective), seed=seed)
        found = [one for one in search.plans() if one.policy == "slalom"]
        least = min(one.objective_ms(objective) for one in found)
        assert least == pytest.approx(by_brute_force(search, "slalom", None, objective))


@pytest.mark.parametrize("seed", range(4))
def test_descent_finds_the_optimum_of_a_chain(seed, monkeypatch):
    graph = graph_of(deep)
    monkeypatch.setattr(plan_search, "EXACT", 0)
    search = search_of(graph, Goals(PROVEN, "full"), seed=seed)
    (found,) = [
        one for one in [search._best("slalom", None, Objective.THROUGHPUT)] if one is not None
    ]
    assert 0 < len(found.inside) < len(linear_names(graph))
    best = by_brute_force(search, "slalom", None, Objective.THROUGHPUT)
    assert found.cost.trusted_ms == pytest.approx(best, rel=0.01)


@pytest.mark.parametrize("policy", list(SPLITTING))
def test_the_placement_around_a_split_is_close_to_the_best(policy):
    graph = graph_of(lambda: deep(layers=5))
    splits = audited_splits(graph, graph.nodes[1].name)
    search = search_of(graph, Goals(EMPIRICAL, "none"), splits=splits)
    for split in splits:
        found = search._best(policy, split, Objective.THROUGHPUT)
        best = by_brute_force(search, policy, split, Objective.THROUGHPUT)
        assert found.cost.trusted_ms == pytest.approx(best, rel=0.02)


def test_with_a_limit_the_least_trusted_time_is_among_the_plans():
    graph = graph_of(deep)
    slow = Goals(PROVEN, "full", objective=Objective.LATENCY)
    limited = Goals(PROVEN, "full", 1e6, Objective.LATENCY)
    least = by_brute_force(search_of(graph, slow), "slalom", None, Objective.THROUGHPUT)
    found = search_of(graph, limited).plans()
    assert min(one.cost.trusted_ms for one in found) == pytest.approx(least, rel=0.01)


def test_nodes_with_much_work_never_move():
    graph = graph_of(nets.chain)
    search = search_of(graph, Goals(PROVEN, "full"), mac_ms=1.0, most_ms=0.0)
    assert search._movable("slalom", None) == ()
    assert [one.inside for one in search.plans() if one.policy == "slalom"] == [frozenset()]


def test_depthwise_nodes_may_always_move():
    graph = graph_of(nets.depthwise)
    search = search_of(graph, Goals(PROVEN, "full"), mac_ms=1.0)
    movable = search._movable("slalom", None)
    assert 0 < len(movable) < len(linear_names(graph))
    assert all("Conv" in name for name in movable)


@pytest.mark.parametrize(
    ("integrity", "hide_input"),
    [
        *product((None, "none", "full"), (None, PROVEN, EMPIRICAL)),
        ("prefix", EMPIRICAL),  # with any other, it is refused: tests/planner/test_goals.py
    ],
)
@pytest.mark.parametrize("last", [None, 1])
def test_no_plan_violates_its_goals(integrity, hide_input, last):
    whole = graph_of(deep)
    accepted = whole.nodes[3].name
    splits = audited_splits(whole, accepted) if hide_input is EMPIRICAL else ()
    if last is not None:
        splits = splits[:-1]
    graph = whole if last is None else hide(whole, last=last).named(bytes(32))
    plans = search_of(graph, Goals(hide_input, integrity), splits=splits).plans()
    assert {one.policy for one in plans} == set(Goals(hide_input, integrity).policies)
    shallow = {node.name for node in whole.nodes[:4]}
    for one in plans:
        sent = {name: p for name, p in one.protections.items() if p.on_worker}
        clear = {name for name, p in sent.items() if p.input is Input.CLEAR}
        if hide_input is PROVEN:
            assert not clear
        if hide_input is EMPIRICAL:
            assert clear.isdisjoint(shallow)
            assert not clear or one.split in splits
        if integrity == "full":
            assert all(p.checked for p in sent.values())
        if integrity == "prefix":
            assert all(p.checked for name, p in sent.items() if name in shallow)
        assert (last is not None) == any(p.name == "module" for p in one.protections.values())
        assert all(one.protections[name] == ENCLAVE for name in one.inside)


def test_every_split_is_tried():
    graph = graph_of(deep)
    splits = audited_splits(graph, graph.nodes[3].name)
    plans = search_of(graph, Goals(EMPIRICAL, "none"), splits=splits).plans()
    for policy in SPLITTING:
        assert {one.split for one in plans if one.policy == policy} == set(splits)


def test_progress_is_told():
    seen = []
    search_of(graph_of(nets.chain), Goals(PROVEN, "full")).plans(lambda *at: seen.append(at))
    assert seen == [(0, 2), (1, 2), (2, 2)]


def test_sizes_are_those_of_the_plan():
    graph = graph_of(nets.chain)
    search = search_of(graph, Goals(), most_ms=100.0)
    by_policy = {one.policy: one for one in search.plans()}
    assert by_policy["slalom"].pad_bytes > 0
    assert by_policy["verified"].pad_bytes == by_policy["enclave"].traffic_bytes == 0
    image, answer = 3 * 13 * 10, 5
    assert by_policy["open"].traffic_bytes == 4 * (image + answer)
    assert by_policy["open"].hidden_nodes == frozenset()
    assert by_policy["slalom"].hidden_nodes == by_policy["slalom"].checked_nodes
    assert min(one.memory_bytes for one in by_policy.values()) > 2**20
