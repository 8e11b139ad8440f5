"""Inputs as people have them, run under every policy: nothing of their form changes a result."""

import warnings

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

import nets
from cloister.errors import ClipWarning, InputError, PlanError, RangeError, VerificationError
from cloister.graph.onnx import read
from cloister.graph.passes import normalise
from cloister.plan import policies
from cloister.trusted.session import Session
from cloister.wire.inprocess import InProcessLink
from cloister.wire.messages import LoadLinear, LoadSegment
from cloister.worker.engine import Engine
from trusted.links import DirectLink

POLICIES = ("enclave", "open", "slalom", "verified", "blinded")


def graph_of(model):
    return normalise.prepare(read.from_model(model, name="net"))


def session(model, policy, **options):
    plan = policies.make(policy, graph_of(model), calibration=nets.samples(model, 20))
    return Session(plan, workers=[worker()], batch=4, **options)


def worker(seen=None):
    """A worker in this process, and what it was sent."""
    engine = Engine()

    def handle(message):
        if seen is not None:
            seen.append(message)
        return engine.handle(message)

    return InProcessLink(handle)


def image(count=10):
    return nets.samples(nets.chain(), count)["image"]


@pytest.mark.parametrize("policy", POLICIES)
def test_every_form_of_an_input_gives_the_same_outputs(policy):
    x = image()
    forms = {
        "float64": x.astype(np.float64), "list": x.tolist(), "tensor": torch.from_numpy(x),
        "mapping": {"image": list(x)}, "samples": iter(x), "batches": iter(np.split(x, [3, 9])),
        "records": [{"image": one} for one in x], "in Fortran's order": np.asfortranarray(x),
    }  # fmt: skip
    x.setflags(write=False)
    with session(nets.chain(), policy) as opened:
        (expected,) = opened.run(x).outputs.values()
        for form, given in forms.items():
            result = opened.run(given)
            (found,) = result.outputs.values()
            np.testing.assert_array_equal(found, expected, err_msg=form)
            assert result.report.inputs == len(x)
        (found,) = opened.run(x[3]).outputs.values()
        np.testing.assert_array_equal(found, expected[3:4])


def test_float16_inputs_are_those_of_float32():
    half = image().astype(np.float16)
    with session(nets.chain(), "slalom") as opened:
        expected = opened.run(half.astype(np.float32)).outputs
        for name, found in opened.run(half).outputs.items():
            np.testing.assert_array_equal(found, expected[name])


@pytest.mark.parametrize("policy", POLICIES)
def test_a_model_of_many_columns_takes_a_table(policy):
    net = nets.Net()
    columns = [net.input(name, 1) for name in ("age", "income", "rooms")]
    model = net.model(net.gemm(net.op("Concat", *columns, axis=1), 3, 2))
    rows = np.array(
        [(2, 41.5, 1e3), (1, 30, 2e3)], [("rooms", "i8"), ("age", "f4"), ("income", "f8")]
    )
    table = {name: rows[name] for name in rows.dtype.names}
    with Session(
        policies.make(policy, graph_of(model), calibration=rows), workers=[worker()]
    ) as opened:
        shaped = {name: column.astype(np.float32)[:, None] for name, column in table.items()}
        (expected,) = opened.run(shaped).outputs.values()
        for given in (rows, table, [dict(zip(table, row.tolist(), strict=True)) for row in rows]):
            (found,) = opened.run(given).outputs.values()
            np.testing.assert_array_equal(found, expected)


def test_calibration_takes_what_a_session_takes():
    model, x = nets.chain(), image()
    digests = {
        policies.slalom(graph_of(model), calibration=given).digest
        for given in (x, x.tolist(), iter(x), {"image": torch.from_numpy(x)}, x.astype(np.float64))
    }
    assert len(digests) == 1


# ---- an empty batch


def classifier():
    """Outputs of several types and ranks, a table that no sample changes, and a constant."""
    net = nets.Net()
    net.input("x", 3)
    net.inputs.append(helper.make_tensor_value_info("table", TensorProto.FLOAT, [2, 4]))
    scores = net.gemm("x", 3, 4)
    label = net.op("ArgMax", scores, axis=1, keepdims=0)
    kept = net.constant(np.arange(3, dtype=np.float32))
    model = net.model(scores, net.op("Greater", scores, "table"), "table", kept)
    del model.graph.output[1]
    model.graph.output.append(helper.make_tensor_value_info(label, TensorProto.INT64, None))
    return model


@pytest.mark.parametrize("policy", POLICIES)
def test_an_empty_batch_has_outputs_of_no_row_and_sends_nothing(policy):
    model, table = classifier(), np.ones((2, 4), np.float32)
    feeds = {"x": np.ones((5, 3), np.float32), "table": table}
    plan = policies.make(policy, graph_of(model), calibration=feeds)
    sent = []
    with Session(plan, workers=[worker(sent)]) as opened:
        whole = opened.run(feeds).outputs
        before = len(sent)
        assert (before > 0) == (policy != "enclave")
        result = opened.run({"x": np.zeros((0, 3)), "table": table})
        assert len(sent) == before
        assert (result.report.inputs, result.report.bytes_to_worker) == (0, 0)
        assert result.report.pads_used == 0
        assert len(result.transcript) == 0
    assert list(result.outputs) == list(whole)
    for name, found in result.outputs.items():
        expected = whole[name] if name in ("table", "c2") else whole[name][:0]
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("policy", POLICIES)
def test_an_empty_batch_of_a_model_that_needs_all_samples_is_run_inside(policy):
    net = nets.Net()
    hidden = net.gemm(net.input("x", 3), 3, 4)
    model = net.model(hidden, net.op("ReduceSum", hidden, keepdims=0))
    plan = policies.make(policy, graph_of(model), calibration=np.ones((3, 3)))
    sent = []
    with Session(plan, workers=[worker(sent)]) as opened:
        rows, total = opened.run(np.zeros((0, 3))).outputs.values()
        assert {type(one) for one in sent} <= {LoadLinear, LoadSegment}  # on entering
    assert (rows.shape, rows.dtype, total.shape, total) == ((0, 4), np.float32, (), 0)
    if not policies.needs_ranges(policy):
        return
    with (
        Session(plan.without_float_weights(), workers=[worker()]) as opened,
        pytest.raises(RangeError, match="the batch is empty, and this model needs a sample"),
    ):
        opened.run(np.zeros((0, 3)))


# ---- iterators


def test_the_report_of_an_iterator_is_that_of_its_batch():
    x = image()
    with session(nets.chain(), "slalom", record_payloads=True) as opened:
        whole, parts = opened.run(x), opened.run(iter(x))
    for name in ("inputs", "bytes_to_worker", "bytes_from_worker", "pads_used", "soundness_bits",
                 "workers", "clipped", "quantised", "policy", "pads_from"):  # fmt: skip
        assert getattr(parts.report, name) == getattr(whole.report, name), name
    assert parts.report.trusted_ms > 0
    for found, expected in zip(parts.report.layers, whole.report.layers, strict=True):
        assert (found.name, found.quantised) == (expected.name, expected.quantised)
    assert len(parts.transcript) == len(whole.transcript)
    ids = [entry.request_id for entry in parts.transcript.entries]
    assert ids == sorted(ids)


def test_clipped_samples_of_an_iterator_are_counted_from_its_begin():
    x = image()
    x[7] *= 50
    with session(nets.chain(), "slalom", on_clip="ignore") as opened:
        assert opened.run(iter(x)).report.inputs_beyond == (7,)
    with session(nets.chain(), "slalom") as opened, pytest.warns(ClipWarning, match="input 7 lies"):
        opened.run(iter(x))


def test_progress_of_an_iterator():
    told = []
    with session(nets.chain(), "enclave") as opened:
        opened.run(iter(image()), progress=lambda done, total: told.append((done, total)))
    assert told == [(4, 4), (8, 8), (10, 10)]


def test_at_most_a_micro_batch_for_each_lane_is_read_ahead():
    alive = []

    def items():
        for i in range(12):
            alive.append(i)
            yield image(1)[0]

    def progress(done, total):
        assert len(alive) == total <= done + 8

    with session(nets.chain(), "enclave", lanes=2) as opened:
        assert opened.run(items(), progress=progress).report.inputs == 12


def test_a_lie_in_a_later_part_releases_nothing():
    plan = policies.make("verified", graph_of(nets.chain()), calibration=image())
    answers = []

    def lie(_, answer):
        answers.append(answer)
        if len(answers) > 3 * len(plan.linear_nodes):
            answer.flat[0] += 1
        return answer

    with (
        Session(plan, workers=[DirectLink(lie=lie)], batch=2) as opened,
        pytest.raises(VerificationError),
    ):
        opened.run(iter(image()))
    assert len(answers) > 3 * len(plan.linear_nodes)


def test_an_error_of_the_iterator_is_its_own_and_the_session_lives_on():
    def items():
        yield image(1)
        raise KeyError("mine")

    with session(nets.chain(), "slalom") as opened:
        with pytest.raises(KeyError, match="mine"):
            opened.run(items())
        with pytest.raises(InputError, match="item 1: input 'image'"):
            opened.run(iter([image(1), np.zeros(3)]))
        assert opened.run(image(1)).report.inputs == 1


def test_an_iterator_may_use_the_session_and_close_it():
    with session(nets.chain(), "enclave") as opened:

        def items():
            assert opened.run(image(2)).report.inputs == 2
            yield image(4)
            opened.close()
            yield image(4)

        with pytest.raises(PlanError, match="closed"):
            opened.run(items())


def test_the_inputs_of_a_caller_are_not_changed():
    x = image().astype(np.float64)
    before = x.copy()
    with warnings.catch_warnings(), session(nets.chain(), "slalom") as opened:
        opened.run(x)
    np.testing.assert_array_equal(x, before)
