from dataclasses import replace

import pytest

from cloister.plan import policies
from cloister.plan.protection import BLINDED, BLINDED_VERIFIED, VERIFIED
from cloister.planner.stand_in import stand_in, zero_maps
from cloister.planner.step_shape import (
    DEFAULT_RATES,
    StepShape,
    estimated_ms,
    fitted_rates,
    step_shape,
)
from cloister.trusted.program.compile import compile_plan
from cloister.trusted.program.steps import Fused
from nets import chain, residual
from planner.priced import graph_of

PLAIN = StepShape(
    answer=BLINDED, size=(10, 10, 8), out_size=(10, 10, 8), turned=0, residual=False, window=None,
    stored=False, requests=((BLINDED, 0),),
)  # fmt: skip


def program_of(graph, policy, **given):
    protections = policies.assign(graph, policy, **given)
    return compile_plan(stand_in(graph, policy, protections, zero_maps(graph)))


def shapes(program):
    stored = set()
    for step in program.steps:
        if isinstance(step, Fused):
            yield step_shape(program.plan, step, stored)
            if step.stored:
                stored.add((step.epilogue.value, step.channels_first))


def test_work_is_counted():
    work = PLAIN.work()
    assert work["step"] == work["exchange"] == 1
    assert work["answer blinded"] == work["request blinded"] == 800
    assert work["input"] == work["pad"] == 1
    assert sum(work.values()) == 4 + 1600
    checked = replace(
        PLAIN, answer=None, turned=800, residual=True, stored=True,
        requests=((BLINDED_VERIFIED, 3), (VERIFIED, 0)),
    ).work()  # fmt: skip
    assert checked["exchange"] == checked["answer blinded"] == 0
    assert checked["value"] == checked["turned"] == checked["residual"] == checked["stored"] == 800
    assert checked["check term"] == 2400
    assert (checked["pad"], replace(PLAIN, answer=VERIFIED, requests=()).work()["pad"]) == (1, 0)
    assert checked["request verified"] == checked["request blinded+verified"] == 800


def test_shapes_follow_from_the_program():
    first, *others = shapes(program_of(graph_of(chain), "slalom", inside=()))
    assert (first.answer, first.turned) == (None, 3 * 13 * 10)
    assert [shape.answer for shape in others] == [BLINDED_VERIFIED] * 3
    assert [shape.turned for shape in others] == [0] * 3
    assert [len(shape.requests) for shape in (first, *others)] == [1, 1, 1, 0]
    assert others[0].window.kind == "max"
    assert others[0].out_size != others[0].size
    assert others[-1].stored
    blind = [shape.requests for shape in shapes(program_of(graph_of(chain), "blinded", inside=()))]
    assert blind[0] == ((BLINDED, 0),)


def test_a_residual_from_a_fused_step_is_not_turned():
    found = list(shapes(program_of(graph_of(residual), "slalom", inside=())))
    adding = [shape for shape in found if shape.residual]
    assert len(adding) == 2
    assert all(shape.turned == 0 for shape in adding)


def test_weights_do_not_matter_and_protections_do():
    graph = graph_of(chain)
    assert list(shapes(program_of(graph, "slalom"))) == list(shapes(program_of(graph, "slalom")))
    assert set(shapes(program_of(graph, "slalom"))) != set(shapes(program_of(graph, "verified")))


def test_rates_are_found_again():
    true = {**DEFAULT_RATES, "answer blinded": 0.5, "request blinded": 0.05, "exchange": 60000.0}
    measured = {}
    for size in (4, 16, 64, 200):
        for sinks in ((), ((BLINDED, 0),), ((BLINDED, 0),) * 2):
            shape = replace(PLAIN, size=(size, size, 8), out_size=(size, size, 8), requests=sinks)
            measured[shape] = estimated_ms(shape, true)
    rates = fitted_rates(measured)
    for name in ("answer blinded", "request blinded"):
        assert rates[name] == pytest.approx(true[name], rel=0.3)
    assert rates["tap"] == pytest.approx(DEFAULT_RATES["tap"])
    for shape, ms in measured.items():
        assert estimated_ms(shape, rates) == pytest.approx(ms, rel=0.1)


def test_without_measurements_rates_are_the_defaults():
    assert fitted_rates({}) == pytest.approx(dict(DEFAULT_RATES))


def test_no_rate_is_negative():
    small = replace(PLAIN, size=(100, 100, 8), out_size=(100, 100, 8))
    rates = fitted_rates({small: 1.0, replace(small, requests=()): 5.0})
    assert min(rates.values()) > 0
