"""What a client can make large is counted before it is allocated, or refused."""

import subprocess
import textwrap
import weakref

import numpy as np
import pytest

from cloister.errors import RangeError
from cloister.ring.linear import Geometry, LinearMap
from cloister.wire.messages import Answer, Apply, Failure, Loaded, LoadLinear
from cloister.wire.process import python
from cloister.worker import cpu_maps, linear_target, torch_maps
from cloister.worker.budget import (
    MAX_BUDGET_BYTES,
    MemoryBudget,
    Reservation,
    default_budget_bytes,
)
from cloister.worker.engine import Engine
from cloister.worker.linear_target import map_memory
from cloister.worker.targets import TargetStore
from wire.loopback import GEOMETRY, blinded, expected, linear, map_bytes

MIB = 1 << 20
# Weights of 8 bytes and requests of 4, blown up to a gigabyte, or for the second to 30 MiB.
GAPS = Geometry((1, 1), 1, (1, 1), 1, kernel=(2, 2), dilation=(16000, 16000))
SMALLER_GAPS = Geometry((1, 1), 1, (1, 1), 1, kernel=(2, 2), dilation=(2800, 2800))
INFLATED = {
    "dilation": GAPS,
    "one row": Geometry((1, 1), 1, (1, 1), 1, kernel=(1, 2), dilation=(1, 1 << 30)),
    "stride": Geometry((1, 1), 1, (2, 2), 1, kernel=(1, 1), stride=(30000, 30000)),
    "depthwise": Geometry((1, 1), 2, (1, 1), 2, kernel=(2, 2), dilation=(9000, 9000), groups=2),
    "upsampling": Geometry((1, 2), 1, (1, 1), 1, (1, 2), (1, 1), (1, 1 << 29), (1, 1 << 29)),
}


def ones(geometry):
    return LinearMap(geometry, np.ones(geometry.weight_shape, np.int16))


def engine(budget_bytes=None):
    return Engine(store=TargetStore(MemoryBudget(budget_bytes)))


@pytest.mark.parametrize("geometry", INFLATED.values(), ids=INFLATED)
def test_a_map_that_blows_its_input_up_is_refused_unmade(geometry, monkeypatch):
    monkeypatch.setattr(linear_target.cpu_maps, "CpuMap", None)
    failure = engine().handle(LoadLinear(1, ones(geometry)))
    assert isinstance(failure, Failure)
    assert "scratch memory" in failure.message
    with pytest.raises(RangeError, match="scratch memory"):
        map_memory(GAPS, device="cuda", threads=1)


def test_a_batch_that_is_blown_up_is_refused_and_others_are_not():
    one = engine()
    assert one.handle(LoadLinear(1, ones(SMALLER_GAPS))) == Loaded(1)
    shape = SMALLER_GAPS.in_shape
    assert isinstance(one.handle(Apply(1, 1, (np.ones((1, *shape), np.uint32),))), Answer)
    failure = one.handle(Apply(2, 1, (np.ones((40, *shape), np.uint32),)))
    assert isinstance(failure, Failure)
    assert (failure.request_id, "scratch memory" in failure.message) == (2, True)
    assert isinstance(one.handle(Apply(3, 1, (np.ones((1, *shape), np.int16),))), Answer)


def test_layers_of_real_models_are_far_from_the_limits():
    """The largest of VGG16, an atrous pyramid, upsampling by 8, and a long signal."""
    layers = [
        Geometry((224, 224), 64, (224, 224), 64, kernel=(3, 3), pad=(1, 1)),
        Geometry((65, 65), 2048, (65, 65), 256, (3, 3), dilation=(36, 36), pad=(36, 36)),
        Geometry((33, 33), 2048, (33, 33), 256, (3, 3), dilation=(18, 18), pad=(18, 18)),
        Geometry((128, 128), 21, (1024, 1024), 21, (16, 16), upsample=(8, 8), pad=(11, 11)),
        Geometry((1, 1), 25088, (1, 1), 4096),
        Geometry((1, 160_000), 1, (1, 32_000), 512, kernel=(1, 10), stride=(1, 5)),
    ]
    for geometry in layers:
        for batch in (1, 8, 64):
            for device in ("cpu", "cuda"):
                map_memory(geometry, device=device, threads=8, batch=batch)


def test_packed_weights_and_their_tables_are_counted():
    geometry = Geometry((1, 1), 1, (1, 1), 1, kernel=(1, 4000), dilation=(1, 2))
    weights = ones(geometry).weights.nbytes
    assert map_memory(geometry, device="cpu", threads=1).held > 60 * weights
    assert "worker memory" in engine(50 * weights).handle(LoadLinear(1, ones(geometry))).message


def test_an_answer_is_counted_until_the_next_message():
    geometry = Geometry((1, 1), 1, (1, 1), 4096)
    one = engine(8 * MIB)
    assert one.handle(LoadLinear(1, ones(geometry))) == Loaded(1)
    left = one._store.budget._left
    small, large = (np.ones((n, 1, 1, 1), np.uint32) for n in (10, 2000))
    failure = one.handle(Apply(1, 1, (large,)))
    assert isinstance(failure, Failure)
    assert "worker memory" in failure.message
    assert isinstance(one.handle(Apply(2, 1, (small,))), Answer)
    assert one._store.budget._left <= left - 10 * 4096 * 4
    one.close()
    assert one._store.budget._left == 8 * MIB


def test_scratch_memory_is_counted_as_long_as_the_map_is_there():
    budget = map_bytes(64) + 64 * GEOMETRY.out_elements * 4
    one = engine(budget)
    assert one.handle(LoadLinear(1, linear())) == Loaded(1)
    at_first = one._store.budget._left
    assert at_first == budget - map_bytes(1)
    for batch in (64, 1, 64, 8):
        assert isinstance(one.handle(Apply(1, 1, (blinded(batch),))), Answer)
        answer = expected(batch)[0].nbytes
        assert one._store.budget._left == budget - map_bytes(64) - answer
    assert isinstance(one.handle(Apply(1, 1, (blinded(640),))), Failure)
    one.close()
    assert one._store.budget._left == budget


def test_clients_of_one_map_share_its_scratch_memory():
    store = TargetStore(MemoryBudget(map_bytes(8) + 2 * expected(8)[0].nbytes))
    first, second = Engine(store=store), Engine(store=store)
    for client in (first, second):
        assert client.handle(LoadLinear(1, linear())) == Loaded(1)
        assert isinstance(client.handle(Apply(1, 1, (blinded(8),))), Answer)
    assert store.budget._left == 0
    first.close()
    second.close()
    assert store.budget._left == map_bytes(8) + 2 * expected(8)[0].nbytes


def test_reservations():
    budget = MemoryBudget(10)
    reservation = Reservation(budget)
    reservation.take(4)
    reservation.take(6)
    with pytest.raises(RangeError, match="worker memory"):
        reservation.take(1)
    reservation.end()
    reservation.end()
    budget.take(10)


def test_the_default_is_a_part_of_the_machine_s_memory():
    with open("/proc/meminfo") as file:
        total = 1024 * int(file.readline().split()[1])
    assert total / 2 < default_budget_bytes() < total or default_budget_bytes() == MAX_BUDGET_BYTES
    assert MemoryBudget().total_bytes == default_budget_bytes()


MEASURED = {
    "a plane in gaps": (SMALLER_GAPS, 1),
    "several planes": (Geometry((1, 1), 1, (1, 1), 1, (2, 2), dilation=(1000, 1000)), 10),
    "repeated channels": (
        Geometry((8, 8), 2, (8, 8), 512, (3, 3), dilation=(60, 60), pad=(60, 60), groups=2), 4,
    ),
    "many taps": (Geometry((1, 1), 1, (1, 1), 1, kernel=(300, 300), dilation=(2, 2)), 1),
    "many pixels": (Geometry((1, 1), 1, (1, 4_000_000), 1, pad=(0, 100)), 1),
    "wide rows": (Geometry((16, 16), 4096, (16, 16), 64, (3, 3), pad=(1, 1)), 8),
}  # fmt: skip


@pytest.mark.parametrize(("geometry", "batch"), MEASURED.values(), ids=MEASURED)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_map_takes_what_is_counted_and_no_more(geometry, batch, threads):
    code = textwrap.dedent(
        f"""
        import numpy as np
        from cloister.ring.linear import Geometry, LinearMap
        from cloister.worker.linear_target import LinearTarget, map_memory

        def peak():
            with open("/proc/self/status") as file:
                return 1024 * int(next(l for l in file if l.startswith("VmHWM")).split()[1])

        geometry = {geometry!r}
        small = Geometry((3, 3), 1, (3, 3), 1, (3, 3), pad=(1, 1))
        for one, n in ((small, 2), (geometry, {batch})):
            linear = LinearMap(one, np.ones(one.weight_shape, np.int16))
            x = np.ones((n, *one.in_shape), np.uint32)
            out = np.ones((n, *one.out_shape), np.uint32)
            del out
            before = peak()
            target = LinearTarget(linear, device="cpu", threads={threads})
            target.run((x,))
        found = map_memory(one, device="cpu", threads={threads}, batch=n)
        print(peak() - before, found.total, x.nbytes + 4 * n * one.out_elements)
        """
    )
    done = subprocess.run(python("-c", code), capture_output=True, text=True, check=True)
    grown, counted, messages = map(int, done.stdout.split())
    assert grown <= counted + messages + 4 * MIB
    # The bound is not idle either.
    assert grown >= counted / 4 - 4 * MIB


def test_bounds_grow_with_the_batch():
    rng = np.random.default_rng(3)
    for _ in range(300):
        kernel, dilation, size, stride = rng.integers(1, 6, (4, 2)).tolist()
        groups = int(rng.choice([1, 2, 4]))
        geometry = Geometry(
            tuple(size), 4, tuple(rng.integers(1, 40, 2).tolist()), 4 * int(rng.integers(1, 30)),
            tuple(kernel), tuple(stride), tuple(dilation), groups=groups,
        )  # fmt: skip
        for threads in (1, 3):
            found = [
                cpu_maps.ring_memory(geometry, batch=n, threads=threads)
                for n in (0, 1, 2, 3, 7, 50, 10_000)
            ]
            assert len({memory.held for memory in found}) == 1
            scratch = [memory.scratch for memory in found]
            assert scratch == sorted(scratch)


def test_sizes_beyond_64_bits_are_large_numbers():
    geometry = Geometry((1, 1), 2, (1, 1), 1 << 29, (2, 2), dilation=(20_000, 20_000), groups=2)
    found = cpu_maps.ring_memory(geometry, batch=1 << 40, threads=1 << 20)
    assert found.scratch > 1 << 60
    with pytest.raises(RangeError):
        cpu_maps.map_memory(geometry, batch=48, element_bytes=4, threads=1)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("kind", ["TorchMap", "Int8Map"])
def test_the_bound_for_devices_holds_the_arrays_of_a_product(kind, batch):
    torch = pytest.importorskip("torch")
    geometry = Geometry((19, 19), 3, (19, 19), 5, (3, 3), pad=(1, 1))
    made, peaks = [], []
    x = blinded(batch, geometry=geometry)

    class Counting(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            if isinstance(found, torch.Tensor):
                made.append(weakref.ref(found))
            storages = [one.untyped_storage() for ref in made if (one := ref()) is not None]
            peaks.append(sum({one.data_ptr(): one.nbytes() for one in storages}.values()))
            return found

    target = getattr(torch_maps, kind)(linear(geometry=geometry), device="cpu")
    with Counting():
        target.apply(x)
    bound = torch_maps.map_memory(geometry, batch=batch, element_bytes=4)
    assert bound.scratch / 20 < max(peaks) <= bound.scratch
