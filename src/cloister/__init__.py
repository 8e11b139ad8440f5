"""Cloister: run and train neural networks on hardware you do not trust.

Names are loaded when they are first used: a process that runs a saved plan loads nothing that
reads models, makes plans or trains, and an authority loads nothing of the trusted side.
"""

import importlib
import importlib.metadata
import os
from typing import TYPE_CHECKING

# Before anything loads ONNX Runtime, which otherwise reports what it runs to its maker.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
# And before gRPC, which otherwise writes a line for every failed handshake of a stranger.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

if TYPE_CHECKING:
    from cloister import authority, published, training
    from cloister.errors import CloisterError, VerificationError
    from cloister.graph.graph import Graph
    from cloister.graph.onnx.load import from_keras, from_torch, load
    from cloister.plan import policies
    from cloister.plan.claims import Claims
    from cloister.plan.plan import Plan
    from cloister.plan.quantised import Precision
    from cloister.trusted.report import Report, Result
    from cloister.trusted.session import Session
    from cloister.wire.transcript import Transcript

    __version__: str

_HOMES = {
    "Claims": "plan.claims",
    "CloisterError": "errors",
    "Graph": "graph.graph",
    "Plan": "plan.plan",
    "Precision": "plan.quantised",
    "Report": "trusted.report",
    "Result": "trusted.report",
    "Session": "trusted.session",
    "Transcript": "wire.transcript",
    "VerificationError": "errors",
    "from_keras": "graph.onnx.load",
    "from_torch": "graph.onnx.load",
    "load": "graph.onnx.load",
}
_MODULES = {
    "authority": "authority",
    "policies": "plan.policies",
    "published": "published",
    "training": "training",
}

__all__ = [
    "Claims",
    "CloisterError",
    "Graph",
    "Plan",
    "Precision",
    "Report",
    "Result",
    "Session",
    "Transcript",
    "VerificationError",
    "authority",
    "from_keras",
    "from_torch",
    "load",
    "policies",
    "published",
    "training",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        return importlib.metadata.version("cloister")
    if name in _MODULES:
        return importlib.import_module(f"cloister.{_MODULES[name]}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"cloister.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
