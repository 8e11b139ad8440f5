"""What an engine and its process say to each other, over a stream socket.

    engine   length (u32), settings, and after the first answer the code, the weights and padding
             then, for each call: the rows to compute (u32); 0 ends the process
    process  an answer when it is locked, one when the module is loaded, and one to each call

Tensors of calls lie in shared memory: `rows` inputs, then `rows` outputs, each of one sample.
"""

import json
import socket
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any, NamedTuple

LENGTH = struct.Struct("<I")
ROWS = struct.Struct("<I")
MAX_SETTINGS_BYTES = 1 << 20
_ANSWER = struct.Struct("<IIQQ160s")
ANSWER_BYTES = _ANSWER.size


class Status(IntEnum):
    """What became of a request."""

    DONE = 0
    REFUSED = 1
    """The module was not loaded; `text` says why."""
    FAILED = 2
    """The module returned `detail`, and wrote nothing."""
    SIZE = 3
    """The module's own size number `detail` is not the manifest's."""


class EngineAnswer(NamedTuple):
    """What the process says.

    compute_ns   in the module itself
    fuel         of WebAssembly, if it is counted
    text         of the process, never of the module
    """

    status: int = Status.DONE
    detail: int = 0
    compute_ns: int = 0
    fuel: int = 0
    text: str = ""

    def to_bytes(self) -> bytes:
        """Of fixed length."""
        text = self.text.encode("ascii", "replace")[:160]
        return _ANSWER.pack(self.status, self.detail, self.compute_ns, self.fuel, text)

    @classmethod
    def from_bytes(cls, data: bytes | bytearray) -> "EngineAnswer":
        """Inverse of `to_bytes`."""
        status, detail, compute_ns, fuel, text = _ANSWER.unpack(data)
        return cls(status, detail, compute_ns, fuel, text.rstrip(b"\0").decode("ascii", "replace"))


@dataclass(frozen=True)
class EngineSettings:
    """What a process must know before it gets the module.

    sizes          what `cloister_module_size` must say: interface, weights, inputs, outputs, arena
    rows           samples that shared memory has room for
    memory_bytes   what the process may allocate from now on
    inputs         type and shape of one sample, of each input; outputs likewise
    padding_bytes  what it gets beside code and weights, and keeps
    grid_ns        it answers at multiples of this; 1: at once
    """

    kind: str
    sizes: tuple[int, ...]
    code_bytes: int
    rows: int
    memory_bytes: int
    threads: int
    fuel: bool
    inputs: tuple[tuple[str, tuple[int, ...]], ...]
    outputs: tuple[tuple[str, tuple[int, ...]], ...]
    padding_bytes: int = 0
    grid_ns: int = 1

    @property
    def weights_bytes(self) -> int:
        """Of the packed weights that the process gets after the code."""
        return self.sizes[1]

    @property
    def input_bytes(self) -> int:
        """Of all inputs of one sample."""
        return self.sizes[2]

    @property
    def output_bytes(self) -> int:
        """Of all outputs of one sample."""
        return self.sizes[3]

    @property
    def arena_bytes(self) -> int:
        """Of the module's scratch memory."""
        return self.sizes[4]

    def to_bytes(self) -> bytes:
        """JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, data: bytes | bytearray) -> "EngineSettings":
        """Inverse of `to_bytes`; read by the process, which trusts the engine that started it."""
        fields: Mapping[str, Any] = json.loads(data)
        tensors = {
            side: tuple((dtype, tuple(shape)) for dtype, shape in fields[side])
            for side in ("inputs", "outputs")
        }
        return cls(**{**fields, **tensors, "sizes": tuple(fields["sizes"])})


def receive_into(channel: socket.socket, memory: memoryview) -> None:
    """Fill `memory` from a socket.

    Raises   EOFError when the other end closes it before; OSError
    """
    while memory:
        got = channel.recv_into(memory)
        if not got:
            raise EOFError
        memory = memory[got:]


def receive(channel: socket.socket, nbytes: int) -> bytearray:
    """So many bytes from a socket.

    Raises   as `receive_into`
    """
    data = bytearray(nbytes)
    receive_into(channel, memoryview(data))
    return data
