"""The result of a request as bytes: outputs, report and transcript, from where it was computed; of
outputs that a ticket has bought, the receipt and its opening too.

The reader takes no claim about hardware from these bytes: it has its own appraisal.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

import numpy as np

from cloister.base.reading import parsing
from cloister.errors import ProtocolError
from cloister.graph.canonical import MAX_RANK, entries, real, text, texts, whole
from cloister.graph.output_values import owned
from cloister.tickets.receipt import KIND, Receipt
from cloister.tickets.ticket_meter import SignedReceipt
from cloister.trusted.layer_row import LayerRow
from cloister.trusted.metered_session import MeteredResult
from cloister.trusted.packed_values import pack, unpack
from cloister.trusted.report import Report, Result
from cloister.wire.transcript import Direction, Entry, Transcript

if TYPE_CHECKING:
    from cloister.attest.appraisal import Appraisal

_Read = Callable[[object], Any]


def _optional(read: _Read) -> _Read:
    return lambda value: None if value is None else read(value)


def _finite(value: object) -> float:
    number = real(value)
    if not math.isfinite(number):
        raise ValueError("a number of the report is infinite or none")
    return number


def _count(value: object) -> int:
    return whole(value, least=0)


def _counts(value: object) -> tuple[int, ...]:
    return tuple(map(_count, entries(value)))


_REPORT: Mapping[str, _Read] = {
    "policy": text, "inputs": _count, "soundness_bits": _optional(_finite), "trusted_ms": _finite,
    "worker_ms": _finite, "module_ms": _finite, "offline_ms": _finite, "bytes_to_worker": _count,
    "bytes_from_worker": _count, "pads_used": _count, "pads_from": text, "workers": texts,
    "workers_lost": texts, "makers": texts, "makers_lost": texts, "inputs_beyond": _counts,
    "queries_used": _count, "queries_left": _optional(_count), "plans_made": _count,
}  # fmt: skip
"""Fields of a report that cross, and how they are read."""
_ROW: tuple[_Read, ...] = (
    text, text, _finite, _finite, _finite, _count, _count, _optional(_finite), _count, _count,
    _finite,
)  # fmt: skip
"""Of LayerRow, in its order."""
_DIRECTIONS: tuple[Direction, ...] = ("to_worker", "from_worker")


def pack_result(result: Result) -> bytes:
    """The bytes of a result; its transcript has no payloads.

    Raises   InputError for an output that has no bytes
    """
    found = result.report
    bought: dict[str, object] = {}
    if isinstance(result, MeteredResult):
        parts = {"receipt": result.receipt.data, "opening": result.opening}
        bought = {name: np.frombuffer(data, np.uint8) for name, data in parts.items()}
    return pack(
        {
            "outputs": result.outputs,
            "report": {name: getattr(found, name) for name in _REPORT},
            "layers": [astuple(row) for row in found.layers],
            "transcript": _described(result.transcript.entries),
            **bought,
        }
    )


def unpack_result(data: np.ndarray, *, appraisal: "Appraisal | None") -> Result:
    """The result of these bytes; nothing of it shares their memory.

    appraisal   of the machine that computed it, by whoever asked

    Raises   ProtocolError
    """
    with parsing("the result cannot be read", kind=ProtocolError):
        found = unpack(data)
        outputs, told, layers, sent = (
            found.pop(name) for name in ("outputs", "report", "layers", "transcript")
        )
        bought = [_bytes(found.pop(name)) for name in ("receipt", "opening") if name in found]
        rows = [_row(one) for one in entries(layers)]
        named = {name: read(told.pop(name)) for name, read in _REPORT.items()}
        if found or told:
            raise ValueError("it holds more than this version knows")
        report = Report(**named, parts=(rows,), appraisal=appraisal)
        named_outputs = {text(name): owned(value) for name, value in outputs.items()}
        transcript = Transcript(_entries(sent))
        if not bought:
            return Result(named_outputs, report, transcript)
        signed, opening = bought
        receipt = SignedReceipt(Receipt.from_head(KIND.split(signed)[0]), signed)
        return MeteredResult(named_outputs, report, transcript, receipt, opening)


def _bytes(value: np.ndarray) -> bytes:
    if value.dtype != np.uint8 or value.ndim != 1:
        raise ValueError("bytes are needed")
    return value.tobytes()


def _row(values: object) -> LayerRow:
    return LayerRow(*(read(one) for read, one in zip(_ROW, entries(values), strict=True)))


def _described(sent: Iterable[Entry]) -> dict[str, object]:
    """The entries in columns: texts that repeat have numbers."""
    found, known = list(sent), dict[tuple[str, str, tuple[int, ...]], int]()
    kinds = [known.setdefault((e.worker, e.dtype.str, e.shape), len(known)) for e in found]
    return {
        "direction": np.array([_DIRECTIONS.index(e.direction) for e in found], np.uint8),
        "request_id": np.array([e.request_id for e in found], np.int64),
        "target_id": np.array([e.target_id for e in found], np.int64),
        "kind": np.array(kinds, np.int64),
        "kinds": [[worker, dtype, list(shape)] for worker, dtype, shape in known],
    }


def _entries(sent: Mapping[str, Any]) -> list[Entry]:
    kinds = []
    for worker, dtype, shape in sent["kinds"]:
        kind, sizes = np.dtype(text(dtype)), _counts(shape)
        if len(sizes) > MAX_RANK:
            raise ValueError("a message has too many axes")
        kinds.append((text(worker), kind, sizes, kind.itemsize * math.prod(sizes)))
    columns = (sent[name].tolist() for name in ("direction", "request_id", "target_id", "kind"))
    made = []
    for direction, request_id, target_id, number in zip(*columns, strict=True):
        worker, kind, sizes, nbytes = kinds[_count(number)]
        way = _DIRECTIONS[_count(direction)]
        made.append(Entry(way, whole(request_id), whole(target_id), worker, kind, sizes, nbytes))
    return made
