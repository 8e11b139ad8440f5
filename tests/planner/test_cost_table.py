from dataclasses import replace

import pytest

from cloister.graph.hidden import hide
from cloister.plan import policies
from cloister.plan.planned_split import PlannedSplit
from cloister.plan.protection import BLINDED_VERIFIED, ENCLAVE, MODULE, OPEN, VERIFIED
from cloister.planner.cost_table import MODULE_CALL_MS, FloatCost, segment_bytes
from cloister.planner.stand_in import stand_in, zero_maps
from cloister.planner.step_shape import estimated_ms
from cloister.trusted.program.compile import compile_plan
from cloister.trusted.program.steps import Exchange, Fused, Local, Segment
from nets import branches, chain
from planner.priced import DrawnLocals, graph_of, linear_names, priced_table
from planner.test_step_shape import program_of, shapes


def test_a_program_costs_the_sum_of_its_steps():
    program = program_of(graph_of(chain), "slalom", inside=())
    steps = {shape: 1.0 + i for i, shape in enumerate(shapes(program))}
    exchanges = {
        (program.plan.linear_nodes[step.node].linear.geometry, True): 10.0 * (1 + step.node)
        for step in program.steps
        if isinstance(step, Exchange)
    }
    table = priced_table(steps=steps, exchanges=exchanges)
    cost = table.predict(program)
    local = sum(table.local.ms(step) for step in program.steps if isinstance(step, Local))
    python = 0.5 + 0.01 * len(program.steps)
    assert cost.request_ms == pytest.approx(python)
    assert cost.trusted_ms == pytest.approx(sum(steps.values()) + local + python)
    assert cost.worker_ms == pytest.approx(60.0)
    assert cost.latency_ms == pytest.approx(cost.trusted_ms + 60.0)
    assert cost.estimated_ms == 0
    assert len(cost.steps) == len(program.steps)


def test_every_node_is_part_of_a_step():
    for build in (chain, branches):
        graph = graph_of(build)
        for policy in ("slalom", "enclave"):
            cost = priced_table().predict(program_of(graph, policy))
            named = {name for step in cost.steps for name in step.nodes}
            assert {node.name for node in graph.nodes} - named <= {
                node.name for node in graph.nodes if node.op == "Concat"
            }


def test_a_shape_that_was_not_measured_is_estimated_from_one_alike():
    first, second, *_ = shapes(program_of(graph_of(chain), "slalom", inside=()))
    table = priced_table(steps={second: 7.0})
    assert table.fused_ms(second) == 7.0
    assert table.fused_ms(first) == pytest.approx(estimated_ms(first, table.rates))
    clear = replace(second, requests=((VERIFIED, 2),))
    less = estimated_ms(second, table.rates) - estimated_ms(clear, table.rates)
    assert less > 0
    assert table.fused_ms(clear) == pytest.approx(7.0 - less)
    cost = table.predict(program_of(graph_of(chain), "slalom", inside=()))
    assert cost.estimated_ms == pytest.approx(
        sum(step.trusted_ms for step in cost.steps if not step.measured)
    )
    assert 0 < cost.estimated_ms < cost.trusted_ms


def test_a_blinded_request_takes_two_products():
    graph = graph_of(chain)
    program = program_of(graph, "slalom", inside=())
    shape = program.plan.linear_nodes[0].linear.geometry
    table = priced_table(exchanges={(shape, True): 6.0})
    assert table.exchange_ms(shape, hidden=True) == 6.0
    assert table.exchange_ms(shape, hidden=False) == 3.0
    other = program.plan.linear_nodes[1].linear.geometry
    assert table.exchange_ms(other, hidden=True) == pytest.approx(2e-9 * other.macs)


def test_an_open_segment_costs_its_message():
    graph = graph_of(chain)
    split = PlannedSplit((graph.nodes[2].name,))
    given = policies.assign(graph, "origami-prefix", split=split)
    program = compile_plan(stand_in(graph, "origami-prefix", given, zero_maps(graph), split=split))
    table = priced_table(floats=FloatCost(1e-6, 1e-5))
    cost = table.predict(program)
    (segment,) = [step for step in program.steps if isinstance(step, Segment)]
    (priced,) = [step for step in cost.steps if step.protection == OPEN]
    nbytes = segment_bytes(graph, segment)
    crossing = graph.types[segment.inputs[0]].shape
    assert nbytes == 4 * (crossing[1] * crossing[2] * crossing[3] + 5)
    assert priced.trusted_ms == pytest.approx(0.25 + 1e-6 * nbytes)
    assert priced.worker_ms == pytest.approx(2.0 * table.floats.ms(graph, segment.nodes))


def test_a_hidden_end_costs_a_call_and_its_time():
    split = hide(graph_of(chain), last=1)
    graph = split.named(bytes(32))
    given = policies.assign(graph, "slalom+ennclave")
    program = compile_plan(stand_in(graph, "slalom+ennclave", given, zero_maps(graph)))
    cost = priced_table(module_ms=3.0).predict(program)
    (module,) = [step for step in cost.steps if step.protection == MODULE]
    assert (module.trusted_ms, module.module_ms) == (MODULE_CALL_MS, 3.0)
    assert cost.module_ms == 3.0
    assert cost.latency_ms == pytest.approx(cost.trusted_ms + cost.worker_ms + 3.0)


def test_rates_of_a_model_explain_its_time():
    graph = graph_of(chain)
    for total in (1e-6, 0.01, 5.0):
        floats = FloatCost.of(graph, total)
        assert floats.ms(graph, graph.nodes) == pytest.approx(total)
        assert min(floats.mac_ms, floats.element_ms) >= 0


def test_a_node_inside_is_a_local_step():
    graph = graph_of(chain)
    last = linear_names(graph)[-1:]
    table = priced_table(local=DrawnLocals(most_ms=1.0))
    cost = table.predict(program_of(graph, "slalom", inside=last))
    (step,) = [one for one in cost.steps if set(last) <= set(one.nodes)]
    assert step.protection == ENCLAVE
    assert step.trusted_ms == pytest.approx(sum(table.local.of(name) for name in step.nodes))


def test_protections_of_steps_are_those_of_their_answers():
    cost = priced_table().predict(program_of(graph_of(chain), "slalom", inside=()))
    program = program_of(graph_of(chain), "slalom", inside=())
    for step, priced in zip(program.steps, cost.steps, strict=True):
        if isinstance(step, Fused) and step.node is not None:
            assert priced.protection == BLINDED_VERIFIED
