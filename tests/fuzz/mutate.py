"""Damage files as accidents and attackers do: bytes, JSON documents, protobuf messages."""

import json
import struct
from collections.abc import Callable

import numpy as np
import onnx

ODD_LENGTHS = (0, 1, 0x7F, 0xFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
ODD_VALUES: tuple[object, ...] = (
    None, True, -1, 0, 1, 2**31, 2**63, 10**400, 1.5, float("nan"), float("inf"), "", "x", "\x00",
    "\ud800", "ff" * 40, [], [[]], {}, {"": None}, [None] * 40,
)  # fmt: skip
DEEP = b"[" * 100_000


def mutated_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    """Flipped bits, odd lengths, cuts, insertions, repetitions: one to four of them."""
    out = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        size = len(out)
        at = int(rng.integers(0, size + 1))
        match int(rng.integers(0, 8)):
            case 0 if size:
                out[at % size] ^= 1 << int(rng.integers(0, 8))
            case 1 if size:
                out[at % size] = int(rng.integers(0, 256))
            case 2:
                width, code = ((1, "B"), (2, "<H"), (4, "<I"), (8, "<Q"))[int(rng.integers(0, 4))]
                value = int(rng.choice(np.array(ODD_LENGTHS, dtype=object))) & (256**width - 1)
                out[at : at + width] = struct.pack(code, value)
            case 3:
                del out[at:]
            case 4:
                del out[at : at + int(rng.integers(1, 64))]
            case 5:
                out[at:at] = rng.bytes(int(rng.integers(1, 64)))
            case 6 if size:
                start = int(rng.integers(0, size))
                out[at:at] = out[start : start + int(rng.integers(1, 256))]
            case _:
                out += rng.bytes(int(rng.integers(1, 16)))
    return bytes(out)


def mutated_json(data: bytes, rng: np.random.Generator) -> bytes:
    """One part of a document replaced by something odd, or nested deeper than Python can follow."""
    if rng.integers(0, 12) == 0:
        return DEEP
    document = json.loads(data)
    places: list[tuple[object, object]] = []

    def visit(node: object) -> None:
        keys: list[object] = []
        if isinstance(node, dict):
            keys = list(node)
        elif isinstance(node, list):
            keys = list(range(min(len(node), 8)))
        for key in keys:
            places.append((node, key))
            visit(node[key])  # type: ignore[index]

    visit(document)
    odd = ODD_VALUES[int(rng.integers(0, len(ODD_VALUES)))]
    if not places or rng.integers(0, 20) == 0:
        return json.dumps(odd).encode()
    holder, key = places[int(rng.integers(0, len(places)))]
    if rng.integers(0, 4) == 0:
        del holder[key]  # type: ignore[attr-defined]
    else:
        holder[key] = odd  # type: ignore[index]
    return json.dumps(document).encode()


def mutated_document(data: bytes, rng: np.random.Generator) -> bytes:
    """A canonical file with a part of its document replaced, and canonical all the same."""
    prelude = struct.Struct("<4sIQ")
    magic, version, length = prelude.unpack_from(data)
    end = prelude.size + length
    text = mutated_json(data[prelude.size : end], rng)
    if text is not DEEP:
        text = json.dumps(json.loads(text), sort_keys=True, separators=(",", ":")).encode()
    head = prelude.pack(magic, version, len(text)) + text
    return head + bytes(-len(head) % 64) + data[end + -end % 64 :]


def mutated_message(data: bytes, rng: np.random.Generator) -> bytes:
    """A model with one to three fields of its messages changed, and valid protobuf all the same."""
    model = onnx.load_model_from_string(data)
    for _ in range(rng.integers(1, 4)):
        _change(model, rng)
    return model.SerializeToString()


def _change(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    message = model
    # Walk down to a message at random; deeper ones are likelier, because there are more.
    while True:
        inner = [
            child
            for field, value in message.ListFields()
            if field.message_type is not None
            for child in (value if field.is_repeated else [value])
        ]
        if not inner or rng.integers(0, 4) == 0:
            break
        message = inner[int(rng.integers(0, len(inner)))]
    fields = list(message.DESCRIPTOR.fields)
    field = fields[int(rng.integers(0, len(fields)))]
    if rng.integers(0, 3) == 0:
        message.ClearField(field.name)
        return
    if field.message_type is not None:
        target = getattr(message, field.name)
        if field.is_repeated:
            if len(target) and rng.integers(0, 2):
                target.add().CopyFrom(target[int(rng.integers(0, len(target)))])
            elif len(target):
                del target[int(rng.integers(0, len(target)))]
            else:
                target.add()
        else:
            target.SetInParent()
        return
    value = _odd_scalar(field, rng)
    if field.is_repeated:
        getattr(message, field.name).append(value)
    else:
        setattr(message, field.name, value)


def _odd_scalar(field: object, rng: np.random.Generator) -> object:
    kind = field.cpp_type  # type: ignore[attr-defined]
    if kind == field.CPPTYPE_STRING:  # type: ignore[attr-defined]
        text = ("", "x", "../../etc/passwd", "a\x1b[2J", "é" * 300, "0")[int(rng.integers(0, 6))]
        bytes_wanted = field.type == field.TYPE_BYTES  # type: ignore[attr-defined]
        return (text.encode() + b"\xff") if bytes_wanted else text
    if kind in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):  # type: ignore[attr-defined]
        return (0.0, -1.0, float("nan"), float("inf"), 1e38)[int(rng.integers(0, 5))]
    if kind == field.CPPTYPE_ENUM:  # type: ignore[attr-defined]
        values = [value.number for value in field.enum_type.values]  # type: ignore[attr-defined]
        return int(rng.choice(values))
    large = 2**31 - 1 if kind == field.CPPTYPE_INT32 else 2**63 - 1  # type: ignore[attr-defined]
    odd = (0, 1, 2, 7, 1000, large)[int(rng.integers(0, 6))]
    signed = kind in (field.CPPTYPE_INT32, field.CPPTYPE_INT64)  # type: ignore[attr-defined]
    return -odd if signed and rng.integers(0, 3) == 0 else odd


Mutator = Callable[[bytes, np.random.Generator], bytes]
