"""Small modules, their plans and bundles, and the parts of a bundle's file."""

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.base.rng import InsecureSeededRandom
from cloister.bundle.bundle_header import (
    NONCE_BYTES,
    TAG_BYTES,
    BundleHeader,
    read_head,
)
from cloister.bundle.compiled_module import CompiledModule
from cloister.bundle.manifest import Build, Manifest, ModuleTensor
from cloister.bundle.sealed_bundle import SealedBundle
from cloister.bundle.signed_document import SIGNATURE_BYTES
from cloister.graph.graph import Graph, Node, TensorType
from cloister.plan.plan import Plan
from cloister.plan.protection import ENCLAVE, MODULE

CHUNK_BYTES = 256
SIGNER = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
VENDOR = SIGNER.public_key()
FOREIGN_SIGNER = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
KEY, FOREIGN_KEY = hashlib.sha256(b"content").digest(), hashlib.sha256(b"foreign").digest()


def module(seed: int = 0, *, weights_bytes: int = 1500, source: str = "int secret;\n"):
    """A module that looks as a compiled one does; nothing runs it."""
    rng = InsecureSeededRandom(seed)
    weights = rng.random_bytes(weights_bytes)
    builds = {name: rng.random_bytes(300) for name in ("wasm", "native-x86-64")}
    return CompiledModule(
        Manifest(
            name="head",
            inputs=(ModuleTensor("features", "float32", (4,)),),
            outputs=(ModuleTensor("scores", "float32", (3,)),),
            arena_bytes=64,
            weights_bytes=len(weights),
            weights_sha256=hashlib.sha256(weights).hexdigest(),
            source_sha256=hashlib.sha256(source.encode()).hexdigest(),
            builds={
                name: Build("zig 0", ("-O3",), hashlib.sha256(binary).hexdigest(), len(binary))
                for name, binary in builds.items()
            },
            contraction="fma",
            operators=("Gemm", "HiddenOperator"),
            salt=rng.random_bytes(32).hex(),
        ),
        builds,
        weights,
        source,
    )


def plan_of(sealed: CompiledModule, *, node: str = "module") -> Plan:
    """A plan of one open node and the module."""
    tensor = TensorType(np.dtype(np.float32), (None, 4))
    graph = Graph(
        name="model",
        nodes=(
            Node("relu", "Relu", ("x",), ("features",)),
            Node(node, "Module", ("features",), ("scores",),
                 {"digest": sealed.manifest.digest}, "cloister"),
        ),
        inputs=("x",),
        outputs=("scores",),
        constants={},
        types={"x": tensor, "features": tensor,
               "scores": TensorType(np.dtype(np.float32), (None, 3))},
        opset=17,
        domains={"cloister": 1},
    )  # fmt: skip
    return Plan(graph, "hidden head", {"relu": ENCLAVE, node: MODULE}, {})


def sealed(path: Path, made: CompiledModule, **chosen) -> Path:
    """A bundle's file."""
    given = {
        "plan": plan_of(made), "content_key": KEY, "signer": SIGNER, "version": 1,
        "rng": InsecureSeededRandom(int.from_bytes(made.manifest.digest[:4])),
        "chunk_bytes": CHUNK_BYTES,
    } | chosen  # fmt: skip
    SealedBundle.seal(path, given.pop("plan"), made, **given)
    return path


@dataclass
class File:
    """A bundle's file in its parts, to be changed and put together again."""

    head: bytes
    signature: bytes
    plan: bytes
    chunks: list[bytes]

    @staticmethod
    def read(path: Path) -> "File":
        with path.open("rb") as file:
            head, signature = read_head(file)
            header = BundleHeader.from_bytes(head)
            plan = file.read(header.plan_bytes)
            overhead = NONCE_BYTES + TAG_BYTES
            chunks = [file.read(header.chunk_size(i) + overhead) for i in range(header.chunks)]
            assert file.read() == b""
        assert len(signature) == SIGNATURE_BYTES
        return File(head, signature, plan, chunks)

    @property
    def header(self) -> BundleHeader:
        return BundleHeader.from_bytes(self.head)

    def data(self) -> bytes:
        return self.head + self.signature + self.plan + b"".join(self.chunks)

    def resigned(self, signer: Ed25519PrivateKey = SIGNER, **changes: object) -> "File":
        """As only the vendor could: sizes and digests are those of the parts."""
        sealed_part = b"".join(self.chunks)
        found = {
            "vendor": signer.public_key().public_bytes_raw(),
            "plan_digest": hashlib.sha256(self.plan).digest(),
            "plan_bytes": len(self.plan),
            "sealed_digest": hashlib.sha256(sealed_part).digest(),
        } | changes
        header = dataclasses.replace(self.header, **found)
        signed = header.signed_by(signer)
        return File(signed[:-SIGNATURE_BYTES], signed[-SIGNATURE_BYTES:], self.plan, self.chunks)
