"""The manifest of a compiled module: what it reads and makes, its sizes, and what built it.

The manifest travels with the module's secrets: it names operators, shapes and sizes. Its digest is
public, because a plan names the module by it; `salt` keeps the digest from confirming a guess at
the weights.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from cloister.base.reading import parsing
from cloister.errors import InputError
from cloister.graph.canonical import entries, mapping, size, text, texts, whole
from cloister.graph.graph_file import read_fields

ABI = 1
"""Version of the C interface (codegen) that builds have."""
ALIGNMENT = 64
"""Bytes; each input and output of a module begins at a multiple of it."""
MAX_BYTES = 2**32
"""No module has more weights, and no input, output or arena is larger."""
ELEMENT_TYPES = ("float32", "int32", "int64")
"""What can enter or leave a module."""
BUILDS = ("native-x86-64-v4", "native-x86-64-v3", "native-x86-64", "wasm", "onnx")
"""Kinds of machine, the fastest native one first; `onnx` is for ONNX Runtime."""


@dataclass(frozen=True)
class ModuleTensor:
    """An input or output of a module: one sample's, of fixed shape, without the batch's axis.

    name    the value's name in the plan's graph
    dtype   NumPy's name of the element type: float32, int32, int64
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Build:
    """One compilation of a module for one kind of machine.

    compiler, flags   the exact version and arguments, without paths
    sha256            of the binary
    """

    compiler: str
    flags: tuple[str, ...]
    sha256: str
    nbytes: int


@dataclass(frozen=True)
class Manifest:
    """What a compiled module is.

    weights_sha256   of the packed weights
    builds           by one of the names of BUILDS
    contraction      fma: products are added with one rounding, on every machine; off: with two
    operators        of ONNX, in the order of the first use of each
    salt             32 random bytes, hexadecimal

    Raises   InputError for sizes that no module has
    """

    name: str
    inputs: tuple[ModuleTensor, ...]
    outputs: tuple[ModuleTensor, ...]
    arena_bytes: int
    weights_bytes: int
    weights_sha256: str
    source_sha256: str
    builds: Mapping[str, Build]
    contraction: str
    operators: tuple[str, ...]
    salt: str
    abi: int = ABI

    def __post_init__(self) -> None:
        if self.abi != ABI:
            raise InputError(
                f"module {self.name!r}: has interface {self.abi}, and this version of Cloister "
                f"runs {ABI}; compile it again"
            )
        sizes = (self.arena_bytes, self.weights_bytes, self.input_bytes, self.output_bytes)
        if not all(0 <= size <= MAX_BYTES for size in sizes):
            raise InputError(f"module {self.name!r}: absurd sizes {sizes}; the manifest is damaged")
        if not set(self.builds) <= set(BUILDS):
            raise InputError(f"module {self.name!r}: has builds for unknown machines")

    @property
    def input_bytes(self) -> int:
        """Bytes of all inputs of one sample."""
        return span(self.inputs)

    @property
    def output_bytes(self) -> int:
        """Bytes of all outputs of one sample."""
        return span(self.outputs)

    def to_bytes(self) -> bytes:
        """JSON in ASCII, keys sorted, no spaces."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Manifest":
        """Inverse of `to_bytes`.

        Raises   InputError for anything else
        """
        with parsing("manifest of a module: it cannot be read"):
            made = cls._of(json.loads(data))
            if made.to_bytes() != data:
                raise InputError("manifest of a module: is not in its canonical form")
            return made

    @classmethod
    def _of(cls, fields: dict[str, object]) -> "Manifest":
        return cls(
            name=text(fields["name"]),
            inputs=_tensors(fields["inputs"]),
            outputs=_tensors(fields["outputs"]),
            arena_bytes=size(fields["arena_bytes"]),
            weights_bytes=size(fields["weights_bytes"]),
            weights_sha256=text(fields["weights_sha256"]),
            source_sha256=text(fields["source_sha256"]),
            builds=mapping(fields["builds"], _build),
            contraction=text(fields["contraction"]),
            operators=texts(fields["operators"]),
            salt=text(fields["salt"]),
            abi=size(fields["abi"]),
        )

    @property
    def digest(self) -> bytes:
        """SHA-256 of the bytes: the module's name in a plan."""
        return hashlib.sha256(self.to_bytes()).digest()


def _tensors(value: object) -> tuple[ModuleTensor, ...]:
    return tuple(_tensor(one) for one in entries(value))


def _tensor(value: object) -> ModuleTensor:
    name, dtype, shape = read_fields(value, "name", "dtype", "shape")
    if dtype not in ELEMENT_TYPES:
        raise ValueError(f"elements are {', '.join(ELEMENT_TYPES)}")
    sizes = (whole(one, least=1, most=MAX_BYTES) for one in entries(shape))
    return ModuleTensor(text(name), text(dtype), tuple(sizes))


def _build(value: object) -> Build:
    compiler, flags, sha256, nbytes = read_fields(value, "compiler", "flags", "sha256", "nbytes")
    return Build(text(compiler), texts(flags), text(sha256), size(nbytes))


def offsets(tensors: tuple[ModuleTensor, ...]) -> tuple[int, ...]:
    """Where each tensor begins in the buffer of all of them."""
    found, at = [], 0
    for tensor in tensors:
        found.append(at)
        at += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    return tuple(found)


def span(tensors: tuple[ModuleTensor, ...]) -> int:
    """Bytes of the buffer of all tensors."""
    return sum(-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in tensors)
