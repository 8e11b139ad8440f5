"""Cloister: run and train neural networks on hardware you do not trust."""

import importlib
import os

# Before anything loads ONNX Runtime, which otherwise reports what it runs to its maker.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from cloister import training
from cloister.errors import CloisterError, VerificationError
from cloister.graph.graph import Graph
from cloister.graph.onnx.load import from_keras, from_torch, load
from cloister.plan import policies
from cloister.plan.plan import Plan
from cloister.plan.quantise import Precision
from cloister.trusted.report import Report, Result
from cloister.trusted.session import Session
from cloister.wire.transcript import Transcript

__all__ = [
    "CloisterError",
    "Graph",
    "Plan",
    "Precision",
    "Report",
    "Result",
    "Session",
    "Transcript",
    "VerificationError",
    "from_keras",
    "from_torch",
    "load",
    "policies",
    "published",
    "training",
]


def __getattr__(name: str) -> object:
    if name == "published":
        return importlib.import_module("cloister.published")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
