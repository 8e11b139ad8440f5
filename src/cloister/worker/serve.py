"""Starts workers: for the process that owns a descriptor, or for every client that connects."""

import argparse
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial

from cloister.base.tls_identity import TlsIdentity
from cloister.errors import CloisterError, InputError, ProtocolError
from cloister.wire.messages import Failure
from cloister.wire.process_end import end_with
from cloister.worker.budget import MemoryBudget
from cloister.worker.byzantine import ByzantineEngine, Lie
from cloister.worker.engine import Engine, described
from cloister.worker.grpc_server import Client, Server, WorkerLimits
from cloister.worker.segment_process import SegmentProcess, serve_segments
from cloister.worker.shm_server import serve_descriptor
from cloister.worker.targets import TargetStore


def start_server(
    listen: str,
    *,
    device: str = "cpu",
    threads: int = 1,
    limits: WorkerLimits | None = None,
    budget_bytes: int | None = None,
    identity: TlsIdentity | None = None,
    insecure_lie: Lie | None = None,
    insecure_lie_after: int = 0,
) -> Server:
    """Serve in the background; `.address` names the port chosen when the one given is 0.

    budget_bytes   what all clients together may take; default: three quarters of the machine's
                   memory, at most 32 GiB
    identity       what clients pin; default: connections are not encrypted

    Raises   InputError when the address or the device cannot be used
    """
    limits = limits or WorkerLimits()
    store = TargetStore(MemoryBudget(budget_bytes))
    share_bytes = store.budget.total_bytes // limits.max_clients
    # Fail now, not at the first client, when the device is missing.
    Engine(device=device, threads=threads)

    def isolate(budget: MemoryBudget) -> SegmentProcess:
        return SegmentProcess(budget, device=device, threads=threads, share_bytes=share_bytes)

    def new_client() -> Client:
        engine = Engine(
            device=device, threads=threads, name=f"worker {listen}", store=store, isolate=isolate
        )
        if insecure_lie is None:
            return Client(engine.handle, close=engine.close, cut=engine.cut)
        liar = ByzantineEngine(engine, insecure_lie, after=insecure_lie_after)
        return Client(liar.handle, close=engine.close, cut=engine.cut, encoder=liar.encode)

    return Server(
        listen, new_client=new_client, limits=limits, budget=store.budget, identity=identity
    )


def serve(
    listen: str,
    *,
    device: str = "cpu",
    threads: int = 1,
    limits: WorkerLimits | None = None,
    budget_bytes: int | None = None,
    identity: TlsIdentity | None = None,
    ready: Callable[[str], None] | None = None,
    insecure_lie: Lie | None = None,
    insecure_lie_after: int = 0,
) -> None:
    """Serve until interrupted.

    ready   called with the address once it is served; default: one line on standard output

    Raises   InputError when the address or the device cannot be used
    """
    server = start_server(
        listen,
        device=device,
        threads=threads,
        limits=limits,
        budget_bytes=budget_bytes,
        identity=identity,
        insecure_lie=insecure_lie,
        insecure_lie_after=insecure_lie_after,
    )
    try:
        (ready or partial(_say_ready, device=device))(server.address)
        server.wait()
    except KeyboardInterrupt:
        pass
    finally:
        server.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m cloister.worker`: serve the process that started this one, or other machines."""
    options = _parse(arguments)
    lie = Lie(options.lie) if options.lie else None
    try:
        if options.fd is not None:
            _serve_descriptors(options, lie)
        elif options.segments is not None:
            engine = Engine(device=options.device, threads=options.threads)
            serve_segments(options.segments, engine.handle)
        else:
            serve(
                options.listen,
                device=options.device,
                threads=options.threads,
                insecure_lie=lie,
                insecure_lie_after=options.lie_after,
            )
    except CloisterError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _serve_descriptors(options: argparse.Namespace, lie: Lie | None) -> None:
    """Serve every connection in a thread of its own, until all are closed."""
    store, gate = TargetStore(), threading.Lock()
    broken: list[ProtocolError] = []

    def serve(descriptor: int) -> None:
        try:
            _serve_descriptor(descriptor, options, lie, store, gate)
        except ProtocolError as error:
            broken.append(error)

    end_with(options.fd)
    *others, last = options.fd
    threads = [threading.Thread(target=serve, args=(descriptor,)) for descriptor in others]
    for thread in threads:
        thread.start()
    serve(last)
    for thread in threads:
        thread.join()
    if broken:
        raise broken[0]


def _serve_descriptor(
    descriptor: int,
    options: argparse.Namespace,
    lie: Lie | None,
    store: TargetStore,
    gate: threading.Lock,
) -> None:
    try:
        # One computation at a time, which then has all threads: more at once would take the
        # cores of the trusted side, whose fused steps run at the same time.
        engine = Engine(
            device=options.device,
            threads=options.threads,
            name="local worker",
            store=store,
            gate=gate,
        )
    except InputError as error:
        # The process that waits for a greeting receives the reason why there is none.
        reason = str(error)
        serve_descriptor(descriptor, lambda _: Failure(0, reason))
        return
    poll_us = options.poll_us
    try:
        if lie is None:
            serve_descriptor(descriptor, engine.handle, poll_us=poll_us)
            return
        liar = ByzantineEngine(engine, lie, after=options.lie_after)
        serve_descriptor(descriptor, liar.handle, encoder=liar.encode, poll_us=poll_us)
    finally:
        engine.close()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m cloister.worker", description=main.__doc__)
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument(
        "--fd", type=int, action="append", help="descriptor of a connected socket; repeatable"
    )
    place.add_argument(
        "--segments",
        type=int,
        metavar="FD",
        help="run segments for a worker that serves other machines",
    )
    place.add_argument("--listen", metavar="HOST:PORT", help="serve other machines")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--poll-us", type=int, default=0, help="busy-poll so long before blocking (--fd)"
    )
    # Workers that lie are for tests of the other side.
    parser.add_argument("--lie", choices=[lie.value for lie in Lie], help=argparse.SUPPRESS)
    parser.add_argument("--lie-after", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _say_ready(address: str, *, device: str) -> None:
    where = "" if device == "cpu" else f", device {described(device)}"
    sys.stdout.write(f"worker: serving on {address}{where}\n")
    sys.stdout.flush()
