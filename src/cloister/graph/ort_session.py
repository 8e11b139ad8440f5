"""Sessions of ONNX Runtime on the CPU, the errors that they raise, and what they can run."""

from functools import cache

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_types

# For programs that loaded ONNX Runtime before Cloister (see cloister/__init__.py).
ort.disable_telemetry_events()

ORT_ERRORS: tuple[type[Exception], ...] = (
    ort_types.Fail,
    ort_types.InvalidArgument,
    ort_types.InvalidGraph,
    ort_types.InvalidProtobuf,
    ort_types.NoSuchFile,
    ort_types.NotImplemented,
    ort_types.RuntimeException,
)
RUN_ERRORS: tuple[type[Exception], ...] = (*ORT_ERRORS, RuntimeError)
"""The errors of a run: where a sequence, map or optional value does not fit, Python's own too."""

UNWANTED = ["WeightBiasQuantization", "QDQS8ToU8Transformer"]
"""Optimisers that are left out.

The first rounds float32 weights to 8 bits where they multiply dequantised values. The second makes
int8 values uint8 and forgets some attributes, and the model is then refused.
"""


def runtime_session(
    model: bytes, *, threads: int = 1, optimised: bool = False
) -> ort.InferenceSession:
    """A session on the CPU that neither logs nor spins; 0 threads: as many as there are cores."""
    options = ort.SessionOptions()
    options.log_severity_level = 4  # its messages contain values
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    providers = ["CPUExecutionProvider"]
    return ort.InferenceSession(model, options, providers, disabled_optimizers=UNWANTED)


def output_types(model: bytes) -> list[tuple[str, str, list[int | str | None]]]:
    """Name, type and shape of each output of a model, of which no kernel is made.

    Raises   one of ORT_ERRORS
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    loaded = ort_types.InferenceSession(options, model, False, False)
    return [(one.name, one.type, one.shape) for one in loaded.outputs_meta]


@cache
def runtime_operators() -> frozenset[tuple[str, str]]:
    """Domain and name of every operator that ONNX Runtime knows; its own domain is ''."""
    return frozenset((one.domain, one.name) for one in ort_types.get_all_operator_schema())
