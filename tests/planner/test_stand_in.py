import numpy as np
import pytest

import nets
from cloister.errors import PlanError, UnsupportedError
from cloister.graph.onnx import read
from cloister.graph.passes import normalise
from cloister.plan import policies
from cloister.planner.calibration import calibrate, measure_program
from cloister.planner.stand_in import StandInPads, filled, stand_in, typical_feeds, zero_maps
from cloister.trusted.pads.source import PadSource
from cloister.trusted.program.compile import compile_plan
from cloister.trusted.session import Session
from planner.priced import graph_of, linear_names
from planner.test_step_shape import shapes
from trusted.links import DirectLink


@pytest.mark.parametrize("policy", ["slalom", "verified", "blinded"])
@pytest.mark.parametrize("build", [nets.residual, nets.depthwise, nets.branches])
def test_a_stand_in_runs_the_steps_of_the_models_own_plan(build, policy):
    graph = graph_of(build)
    feeds = typical_feeds(graph, 2)
    real = policies.make(policy, graph, calibration=feeds, by_channel=False)
    plan = stand_in(graph, policy, real.protections, zero_maps(graph))
    assert list(shapes(compile_plan(plan))) == list(shapes(compile_plan(real)))
    pads = StandInPads(plan) if plan.hidden_nodes else None
    # Checks are on: zero is the right answer, and its pads' images are right.
    with Session(plan, workers=[DirectLink()], pads=pads, on_clip="raise") as session:
        for _ in range(3):
            report = session.run(feeds).report
    assert report.clipped == 0
    assert (report.soundness_bits is None) == (policy == "blinded")


def test_pads_are_memory_of_their_own_and_no_id_comes_twice():
    graph = graph_of(nets.chain)
    plan = stand_in(graph, "slalom", policies.assign(graph, "slalom"), zero_maps(graph))
    pads = StandInPads(plan)
    assert isinstance(pads, PadSource)
    first = pads.take(2)
    ids = [pad.pad_id for pad in first]
    assert not np.may_share_memory(*(pad.terms for pad in first))
    pads.recycle(first)
    ids += [pad.pad_id for pad in pads.take(3)]
    assert len(set(ids)) == 5
    assert not any(pad.terms.any() for pad in pads.take(1))
    pads.erase()


def test_an_illegal_stand_in_is_refused():
    graph = graph_of(nets.chain)
    given = policies.assign(graph, "blinded", inside=())
    clear = policies.assign(graph, "verified", inside=())
    last = linear_names(graph)[-1]
    with pytest.raises(PlanError, match="not checked"):
        stand_in(graph, "mixed", {**given, last: clear[last]}, zero_maps(graph))


def test_open_sizes_are_refused():
    graph = normalise.prepare(read.from_model(nets.chain(), name="net"))
    known = graph.types["image"]
    graph.types["image"] = type(known)(known.dtype, (None, 3, None, 10))
    with pytest.raises(UnsupportedError, match="'image': its size is open"):
        filled(graph, "image", 1)


def test_measured_rows_are_those_of_the_program():
    graph = graph_of(nets.residual)
    given = policies.assign(graph, "slalom", inside=())
    plan = stand_in(graph, "slalom", given, zero_maps(graph))
    found = measure_program(plan, typical_feeds(graph, 1), repeats=2)
    names = {node.node for node in plan.linear_nodes}
    assert names < set(found.rows)
    assert all(found.rows[name].trusted_ms > 0 for name in names)
    assert all(found.rows[name].worker_ms > 0 for name in names)
    spent = sum(row.trusted_ms for row in found.rows.values())
    assert found.total_ms == pytest.approx(spent + found.request_ms, rel=0.5)


def test_a_table_has_every_step_of_the_measured_policies():
    graph = graph_of(nets.depthwise)
    seen = []
    table = calibrate(
        graph, [policies.OUTSOURCED["slalom"]], repeats=1,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(i, 3) for i in range(4)]
    for inside in (None, ()):
        given = policies.assign(graph, "slalom", inside=inside)
        program = compile_plan(stand_in(graph, "slalom", given, zero_maps(graph)))
        assert table.predict(program).estimated_ms == 0
    # How Python's time is shared between a request and its steps depends on the machine.
    assert table.request_ms + table.step_ms > 0
    assert min(table.rates.values()) > 0
