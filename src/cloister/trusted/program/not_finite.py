"""NaN and infinity in what a fused step reads.

A fused step computes with infinities as ONNX Runtime does. Where it would not, its rule is here:

    a message         is integers: a value that is still NaN or infinite after the clamp is refused
    a pooled value    is computed by ONNX Runtime, whose pools pass over NaN
    a residual's NaN  is put back where a clamp has replaced it by a bound
"""

import numpy as np

from cloister.errors import RangeError
from cloister.graph.onnx.export import model_bytes
from cloister.trusted.program.steps import Fused, Program


def refused(name: str) -> RangeError:
    """The error for a value that would become a message, or that no fused step can compute with."""
    return RangeError(
        f"value {name!r} is NaN or infinite for this input, so it has no fixed-point form; check "
        "the input, or use the enclave policy"
    )


def require_messages(step: Fused, name: str, values: np.ndarray) -> None:
    """Refuse what a step cannot compute with; `values` are its source and residual, added up.

    Raises   RangeError naming the value
    """
    epilogue = step.epilogue
    clamped = np.clip(values, np.float32(epilogue.lo), np.float32(epilogue.hi))
    if step.sinks and not np.isfinite(clamped).all():
        raise refused(name)
    if step.node is not None and epilogue.window is not None and np.isnan(values).any():
        raise refused(name)


def is_pooled(step: Fused) -> bool:
    """Whether a step only makes a value of values, so that ONNX Runtime can compute it as well."""
    return step.node is None and not step.sinks


def runtime_model(program: Program, step: Fused) -> bytes:
    """The nodes of a step that only makes a value of values, for ONNX Runtime."""
    nodes = [node for node in program.plan.graph.nodes if node.name in step.epilogue.covered]
    return model_bytes(
        program.plan.graph, nodes=nodes, inputs=step.inputs, outputs=(step.epilogue.value,)
    )
