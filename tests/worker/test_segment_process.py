"""Segments of strangers run in processes of their own, within a limit that is charged."""

import os
import resource
import select
import subprocess
import textwrap
import threading

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from cloister.errors import RangeError, WorkerUnavailable
from cloister.wire.messages import Answer, Apply, Failure, Loaded, LoadLinear, LoadSegment
from cloister.wire.process import python
from cloister.worker import segment_process
from cloister.worker.budget import MemoryBudget
from cloister.worker.engine import Engine
from cloister.worker.segment_process import LEAST_SHARE_BYTES, MODEL_COPIES, SegmentProcess
from cloister.worker.targets import TargetStore
from wire.loopback import blinded, linear

GIB = 1 << 30
INT64, FLOAT, UINT8 = TensorProto.INT64, TensorProto.FLOAT, TensorProto.UINT8


def model(nodes, x, y, *constants):
    """A segment's bytes; x and y are (type, shape)."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", *x)],
        [helper.make_tensor_value_info("y", *y)],
        [numpy_helper.from_array(array, name) for name, array in constants],
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def doubles():
    node = helper.make_node("Add", ["x", "x"], ["y"])
    return model([node], (FLOAT, ["N"]), (FLOAT, ["N"]))


def expands():
    """y = zeros of the shape x: a message of 8 bytes decides how large."""
    node = helper.make_node("ConstantOfShape", ["x"], ["y"])
    return model([node], (INT64, ["N"]), (FLOAT, None))


def counts_expanded():
    """The same, but the answer is one number."""
    nodes = [
        helper.make_node("ConstantOfShape", ["x"], ["c"]),
        helper.make_node("ReduceSum", ["c"], ["y"], keepdims=0),
    ]
    return model(nodes, (INT64, ["N"]), (FLOAT, []))


def large_constant(elements):
    """A hundred bytes that take this many as soon as they are loaded."""
    value = helper.make_tensor("v", UINT8, [1], [1])
    nodes = [
        helper.make_node("ConstantOfShape", ["s"], ["c"], value=value),
        helper.make_node("Gather", ["c", "x"], ["y"]),
    ]
    return model(nodes, (INT64, [1]), (UINT8, [1]), ("s", np.array([elements], np.int64)))


def endless():
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["again"]),
            helper.make_node("Add", ["a", "a"], ["b"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("a", FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("again", TensorProto.BOOL, []),
            helper.make_tensor_value_info("b", FLOAT, [1]),
        ],
    )
    loop = helper.make_node("Loop", ["", "yes", "x"], ["y"], body=body)
    return model([loop], (FLOAT, [1]), (FLOAT, [1]), ("yes", np.array(True)))


@pytest.fixture
def started(monkeypatch):
    """The processes that were started, in order."""
    found = []
    start = segment_process.start

    def noted(*arguments, **options):
        found.append(start(*arguments, **options))
        return found[-1]

    monkeypatch.setattr(segment_process, "start", noted)
    return found


class Clients:
    """Engines of one worker, as a server makes them."""

    def __init__(self):
        self.engines = []

    def __call__(self, *, budget=None, share_bytes=0):
        self.budget = budget or MemoryBudget(8 * GIB)
        return [self.one(TargetStore(self.budget), share_bytes) for _ in range(2)]

    def one(self, store, share_bytes=0):
        def isolate(budget):
            return SegmentProcess(budget, device="cpu", threads=1, share_bytes=share_bytes)

        self.engines.append(Engine(store=store, isolate=isolate))
        return self.engines[-1]


@pytest.fixture
def clients():
    made = Clients()
    yield made
    for engine in made.engines:
        engine.close()


def run(engine, target_id, array):
    reply = engine.handle(Apply(7, target_id, (array,)))
    if isinstance(reply, Answer):
        assert reply.request_id == 7
        return reply.tensors[0]
    return reply


def runs(engine, target_id=1):
    x = np.arange(3, dtype=np.float32)
    return np.array_equal(run(engine, target_id, x), 2 * x)


def test_segments_run_and_are_replaced(clients, started):
    first, second = clients()
    for engine in (first, second):
        assert engine.handle(LoadSegment(1, doubles())) == Loaded(1)
        assert runs(engine)
    assert len({process.pid for process in started}) == 2
    assert first.handle(LoadSegment(2, expands())) == Loaded(2)
    assert run(first, 2, np.array([2, 3])).shape == (2, 3)
    assert first.handle(LoadSegment(1, expands())) == Loaded(1)
    assert run(first, 1, np.array([4])).shape == (4,)
    assert first.handle(LoadLinear(1, linear())) == Loaded(1)
    assert isinstance(first.handle(Apply(1, 1, (blinded(),))), Answer)
    assert len(started) == 2


def test_a_message_of_many_frames_comes_back_whole(clients):
    first, _ = clients()
    assert first.handle(LoadSegment(1, doubles())) == Loaded(1)
    x = np.random.default_rng(1).standard_normal(1 << 20).astype(np.float32)
    np.testing.assert_array_equal(run(first, 1, x), 2 * x)


def test_a_process_stands_under_the_limit_that_was_charged(clients, started):
    first, _ = clients()
    first.handle(LoadSegment(1, doubles()))
    taken = 8 * GIB - clients.budget._left
    assert taken >= LEAST_SHARE_BYTES + MODEL_COPIES * len(doubles())
    assert resource.prlimit(started[0].pid, resource.RLIMIT_DATA)[0] == taken
    first.handle(LoadSegment(2, expands()))
    taken = 8 * GIB - clients.budget._left
    assert resource.prlimit(started[0].pid, resource.RLIMIT_DATA)[0] == taken
    first.close()
    assert clients.budget._left == 8 * GIB
    assert started[0].poll() is not None


@pytest.mark.parametrize("elements", [GIB, 1 << 45])
def test_a_small_segment_that_takes_much_memory_is_refused_alone(clients, elements):
    first, second = clients()
    assert second.handle(LoadSegment(1, doubles())) == Loaded(1)
    hungry = large_constant(elements)
    assert len(hungry) < 200
    failure = first.handle(LoadSegment(1, hungry))
    if failure == Loaded(1):  # ONNX Runtime may leave it for the first run
        failure = run(first, 1, np.array([0]))
    assert isinstance(failure, Failure)
    assert runs(second)
    assert first.handle(LoadSegment(2, doubles())) == Loaded(2)
    assert runs(first, 2)


def test_a_small_message_that_takes_much_memory_fails_alone(clients):
    first, second = clients()
    for engine in (first, second):
        assert engine.handle(LoadSegment(1, counts_expanded())) == Loaded(1)
    assert isinstance(run(first, 1, np.array([GIB])), Failure)
    assert run(second, 1, np.array([1000])) == 0
    reply = run(first, 1, np.array([1000]))
    if isinstance(reply, Failure):  # its process had to end
        assert first.handle(LoadSegment(1, counts_expanded())) == Loaded(1)
        reply = run(first, 1, np.array([1000]))
    assert reply == 0


def test_a_share_that_is_larger_holds_more(clients):
    first, _ = clients(share_bytes=3 * GIB)
    assert first.handle(LoadSegment(1, counts_expanded())) == Loaded(1)
    assert run(first, 1, np.array([GIB // 4])) == 0


def test_an_answer_is_paid_for_before_it_has_memory(clients):
    budget = MemoryBudget(LEAST_SHARE_BYTES + (32 << 20))
    first, _ = clients(budget=budget)
    assert first.handle(LoadSegment(1, expands())) == Loaded(1)
    reply = run(first, 1, np.array([8 << 20]))
    assert isinstance(reply, Failure)
    assert "worker memory" in reply.message
    assert first.handle(LoadSegment(1, expands())) == Loaded(1)
    assert run(first, 1, np.array([5])).shape == (5,)


def test_without_memory_for_a_process_none_is_started(clients, started):
    first, _ = clients(budget=MemoryBudget(1 << 20))
    assert "worker memory" in first.handle(LoadSegment(1, doubles())).message
    assert not started
    assert first.handle(LoadLinear(1, linear())) == Loaded(1)


def test_failures_of_the_segment_are_told_and_end_nothing(clients, started):
    first, _ = clients()
    assert isinstance(first.handle(LoadSegment(1, b"nonsense")), Failure)
    assert first.handle(LoadSegment(1, doubles())) == Loaded(1)
    assert isinstance(run(first, 1, np.zeros(3, np.int64)), Failure)
    assert runs(first)
    assert len(started) == 1


def test_a_process_that_dies_takes_its_own_segments_along(clients, started):
    first, second = clients()
    for engine in (first, second):
        engine.handle(LoadSegment(1, doubles()))
    assert first.handle(LoadLinear(2, linear())) == Loaded(2)
    started[0].kill()
    reply = run(first, 1, np.zeros(3, np.float32))
    assert isinstance(reply, Failure)
    assert "its process ended" in reply.message
    assert "load it again" in run(first, 1, np.zeros(3, np.float32)).message
    assert isinstance(first.handle(Apply(1, 2, (blinded(),))), Answer)
    assert runs(second)
    assert first.handle(LoadSegment(1, doubles())) == Loaded(1)
    assert runs(first)


def ticks(pid):
    """Processor time of a process."""
    with open(f"/proc/{pid}/stat") as file:
        return sum(map(int, file.read().rpartition(")")[2].split()[11:13]))


def test_a_segment_without_an_end_ends_with_its_client(clients, started):
    first, _ = clients()
    assert first.handle(LoadSegment(1, endless())) == Loaded(1)
    replies = []
    work = threading.Thread(target=lambda: replies.append(run(first, 1, np.ones(1, np.float32))))
    before = ticks(started[0].pid)
    work.start()
    while ticks(started[0].pid) < before + 20:
        assert work.is_alive()
        threading.Event().wait(0.05)
    first.cut()
    work.join(60)
    assert not work.is_alive()
    assert isinstance(replies[0], Failure)
    assert started[0].wait(60) < 0
    assert isinstance(first.handle(LoadSegment(1, doubles())), Failure)


def test_a_segment_without_an_end_ends_with_its_worker(tmp_path):
    (tmp_path / "endless.onnx").write_bytes(endless())
    code = textwrap.dedent(
        f"""
        import numpy as np
        from cloister.wire.messages import Apply, LoadSegment
        from cloister.worker.engine import Engine
        from cloister.worker.segment_process import SegmentProcess

        engine = Engine(isolate=lambda b: SegmentProcess(b, device="cpu", threads=1, share_bytes=0))
        with open({str(tmp_path / "endless.onnx")!r}, "rb") as file:
            engine.handle(LoadSegment(1, file.read()))
        print(engine._segments._process.pid, flush=True)
        engine.handle(Apply(1, 1, (np.ones(1, np.float32),)))
        """
    )
    with subprocess.Popen(python("-c", code), stdout=subprocess.PIPE) as worker:
        pid = int(worker.stdout.readline())
        watch = os.pidfd_open(pid)
        before = ticks(pid)
        while ticks(pid) < before + 20:
            threading.Event().wait(0.05)
        worker.kill()
        worker.wait()
        ready, _, _ = select.select([watch], [], [], 60)
        os.close(watch)
        assert ready


def test_what_is_cut_starts_nothing():
    process = SegmentProcess(MemoryBudget(GIB), device="cpu", threads=1, share_bytes=0)
    process.cut()
    with pytest.raises(WorkerUnavailable, match="gone"):
        process.load(LoadSegment(1, doubles()))
    process.close()


def test_a_budget_that_is_spent_refuses_further_segments(clients):
    budget = MemoryBudget(LEAST_SHARE_BYTES + (20 << 20))
    first, second = clients(budget=budget)
    assert first.handle(LoadSegment(1, doubles())) == Loaded(1)
    assert "worker memory" in second.handle(LoadSegment(1, doubles())).message
    first.close()
    assert second.handle(LoadSegment(1, doubles())) == Loaded(1)
    with pytest.raises(RangeError):
        budget.take(LEAST_SHARE_BYTES)


def test_the_process_gets_nothing_of_the_folder_and_little_of_the_environment(
    clients, started, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECRET", "1")
    first, _ = clients()
    assert first.handle(LoadSegment(1, doubles())) == Loaded(1)
    assert os.readlink(f"/proc/{started[0].pid}/cwd") == "/"
    with open(f"/proc/{started[0].pid}/environ", "rb") as file:
        assert b"SECRET" not in file.read()
