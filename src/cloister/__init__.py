"""Cloister: run and train neural networks on hardware you do not trust."""

import importlib
import os
from typing import TYPE_CHECKING

# Before anything loads ONNX Runtime, which otherwise reports what it runs to its maker.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from cloister import training
from cloister.errors import CloisterError, VerificationError
from cloister.graph.graph import Graph
from cloister.plan import policies
from cloister.plan.claims import Claims
from cloister.plan.plan import Plan
from cloister.plan.quantise import Precision
from cloister.trusted.report import Report, Result
from cloister.trusted.session import Session
from cloister.wire.transcript import Transcript

if TYPE_CHECKING:
    from cloister.graph.onnx.load import from_keras, from_torch, load

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


_READERS = "cloister.graph.onnx.load"


def __getattr__(name: str) -> object:
    # Who runs a plan that was saved needs no library that reads models.
    if name in ("from_keras", "from_torch", "load"):
        return getattr(importlib.import_module(_READERS), name)
    if name in ("authority", "published"):
        return importlib.import_module(f"cloister.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
