"""What an attested conversation costs: CPU time of a handshake, and of sealed records.

Times are of one thread, and the least of all repeats. The handshake is on simulated evidence, whose
verification costs one Ed25519 signature; what real evidence costs to verify stands beside it.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks.environment import environment
from cloister.attest.attested_client import AttestedClient
from cloister.attest.attested_conversation import Operation
from cloister.attest.attested_service import AttestedService
from cloister.attest.handshake_messages import Direction
from cloister.attest.record_stream import RecordStream, RecordType
from cloister.attest.verify import verify
from cloister.base.identity import create_certificate
from cloister.wire.https.bodies import Body

TESTS = Path(__file__).parents[1] / "tests"
MIB = 1 << 20
MOST_HANDSHAKE_MS = 5.0
LEAST_GB_S = 1.0


def measure(
    repeats: Annotated[int, typer.Option(min=1, help="Of each part; the least counts.")] = 30,
    mib: Annotated[int, typer.Option(min=1, help="Of the largest record.")] = 64,
) -> dict[str, object]:
    """CPU milliseconds of both sides of a handshake, and GB/s of records, on one core."""
    sys.path.insert(0, str(TESTS))
    from attest import cases, sessions  # noqa: PLC0415  (tests are no package)

    sides = {"verifier": [], "prover": []}
    for _ in range(repeats):
        for name, spent in _handshake(sessions).items():
            sides[name].append(spent)
    sizes = sorted({4096, MIB, mib * MIB})
    return {
        "handshake_ms": {name: min(spent) for name, spent in sides.items()},
        "verify_ms": _verified(cases.GENUINE, max(1, repeats // 5)),
        "records": [_records(size, repeats) for size in sizes],
        "https": _https(sessions, mib, max(1, repeats // 5)),
        **environment(),
    }


def _cpu_ms(run: Callable[[], object]) -> tuple[float, object]:
    began = time.thread_time()
    found = run()
    return 1e3 * (time.thread_time() - began), found


def _handshake(sessions) -> dict[str, float]:
    direction = Direction.CALLEE
    prover = sessions.prover(direction)
    offer_ms, verifier = _cpu_ms(lambda: sessions.verifier(direction))
    answer_ms, (answer, channel) = _cpu_ms(lambda: prover.answer(verifier.offer()))
    accept_ms, accepted = _cpu_ms(lambda: verifier.accept(answer))
    confirm_ms, _ = _cpu_ms(lambda: channel.confirm(accepted.confirmation))
    return {"verifier": offer_ms + accept_ms, "prover": answer_ms + confirm_ms}


def _verified(genuine, repeats: int) -> dict[str, float]:
    """The dearest vector of each format."""
    most: dict[str, float] = {}
    for case in genuine:
        given = case.given()
        spent = []
        for _ in range(repeats):
            took_ms, found = _cpu_ms(
                lambda case=case, given=given: verify(case.data, given, now=case.at)
            )
            spent.append(took_ms)
        most[found.format.value] = max(most.get(found.format.value, 0.0), min(spent))
    return most


def _records(size: int, repeats: int) -> dict[str, float]:
    key, plaintext = bytes(range(32)), bytes(size)
    sealing, opening = RecordStream(key), RecordStream(key)
    seal_ms, open_ms = [], []
    for _ in range(repeats):
        took_ms, record = _cpu_ms(lambda: sealing.seal(RecordType.DATA, plaintext))
        seal_ms.append(took_ms)
        took_ms, _ = _cpu_ms(lambda record=record: opening.open(record))
        open_ms.append(took_ms)
    return {
        "bytes": size,
        "seal_gb_s": size / min(seal_ms) / 1e6,
        "open_gb_s": size / min(open_ms) / 1e6,
    }


def _https(sessions, mib: int, repeats: int) -> dict[str, float]:
    """Client, service and TLS in one process: wall time, of a first call and of an echo."""
    with tempfile.TemporaryDirectory() as folder:
        create_certificate(Path(folder), "benchmark")
        operations = {"echo": Operation((mib + 1) * MIB, lambda body: body)}
        with AttestedService(
            "127.0.0.1:0", folder=Path(folder), start=sessions.prover,
            operations=lambda _: operations, max_call_bytes=(mib + 2) * MIB,
        ) as service:  # fmt: skip
            first, echo = [], []
            data = np.zeros(mib * MIB, np.uint8)
            for _ in range(repeats):
                began = time.perf_counter()
                with AttestedClient(service.url, start=sessions.verifier) as client:
                    client.call("echo")
                    first.append(time.perf_counter() - began)
                    began = time.perf_counter()
                    answer: Body = client.call("echo", {}, (data,))
                    echo.append(time.perf_counter() - began)
                    assert answer.tensors[0].nbytes == data.nbytes
    return {"first_call_ms": 1e3 * min(first), "echo_gb_s": 2 * mib * MIB / min(echo) / 1e9}


def faults(found: dict[str, object]) -> int:
    """Sides whose handshake takes longer, and records that go slower, than the documents say."""
    late = sum(spent > MOST_HANDSHAKE_MS for spent in found["handshake_ms"].values())
    largest = max(found["records"], key=lambda row: row["bytes"])
    return late + sum(largest[name] < LEAST_GB_S for name in ("seal_gb_s", "open_gb_s"))
