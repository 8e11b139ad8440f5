"""Open segments in ONNX Runtime, and the parts of a client's model that reach it."""

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError

from cloister.base.reading import require_truths
from cloister.base.tensor_limits import DTYPES
from cloister.errors import ModelError, ShapeError, UnsupportedError
from cloister.graph.legality import runs_on_worker
from cloister.graph.onnx.external_data import (
    messages,
    require_inside,
    require_stored_truths,
)
from cloister.graph.ort_session import UNWANTED
from cloister.worker.targets import Cost

NAME = "segment"
CUDA = "CUDAExecutionProvider"


def segment_device(device: str) -> str:
    """Where the segments of a worker run: on its CUDA device, if ONNX Runtime was built for that.

    PyTorch, which computes linear layers, may know devices that ONNX Runtime does not.
    """
    known = device.startswith("cuda") and CUDA in ort.get_available_providers()
    return device if known else "cpu"


class SegmentTarget:
    """A segment in ONNX Runtime; open segments promise nothing.

    Raises   ModelError, UnsupportedError for a device that ONNX Runtime cannot use, and what it
             raises for a model that it does not take
    """

    def __init__(self, model: bytes, *, device: str, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # It would write the names in a client's model to the terminal or log of this machine.
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Bytes can be a message of ONNX and a file of ONNX Runtime's own format at once.
        options.add_session_config_entry("session.load_model_format", "ONNX")
        providers: list[object] = ["CPUExecutionProvider"]
        on_cuda = segment_device(device) != "cpu"
        if on_cuda:
            providers.insert(0, (CUDA, {"device_id": device.partition(":")[2] or "0"}))
        self._session = ort.InferenceSession(
            checked(model), options, providers=providers, disabled_optimizers=UNWANTED
        )
        if on_cuda and CUDA not in self._session.get_providers():
            # ONNX Runtime goes on without a provider whose libraries do not load.
            raise UnsupportedError(
                f"{NAME}: this worker's ONNX Runtime has CUDA and cannot use {device}; install the "
                "CUDA libraries that it needs, or use --device cpu"
            )
        self._inputs = [value.name for value in self._session.get_inputs()]
        self._outputs = [value.name for value in self._session.get_outputs()]

    def cost(self, _: tuple[np.ndarray, ...]) -> Cost:
        """See Target; only an operating system can bound it (segment_process.py)."""
        return Cost()

    def run(self, tensors: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        """The segment's outputs.

        Raises   ShapeError, InputError, UnsupportedError, and what ONNX Runtime raises
        """
        if len(tensors) != len(self._inputs):
            raise ShapeError(f"segment takes {len(self._inputs)} tensors, got {len(tensors)}")
        feeds = dict(zip(self._inputs, tensors, strict=True))
        for name, tensor in feeds.items():
            require_truths(tensor, f"segment: input {name!r}")
        found = self._session.run(self._outputs, feeds)
        return tuple(map(_tensor, self._outputs, found))


def _tensor(name: str, output: object) -> np.ndarray:
    """An output that can be sent: neither text nor a sequence or map.

    Raises   UnsupportedError
    """
    if isinstance(output, np.ndarray) and output.dtype in DTYPES:
        return output
    raise UnsupportedError(
        f"{NAME}: output {name!r} is no tensor of numbers, so it cannot be sent; use the enclave "
        "policy"
    )


def checked(model: bytes) -> bytes:
    """A segment's bytes, written anew from the checked parts, for ONNX Runtime.

    The model computes from its inputs and its own data alone: no tensor lies in a file, and no
    operator is one of those that may open files or were registered by other software.

    Raises   ModelError, UnsupportedError
    """
    try:
        parsed = onnx.ModelProto.FromString(model)
    except (DecodeError, ValueError) as error:
        raise ModelError(f"{NAME}: not an ONNX model, or nested too deeply") from error
    # ONNX Runtime's parser may know fields that this one does not, and reads settings of its own
    # from the metadata.
    parsed.DiscardUnknownFields()
    parsed.ClearField("metadata_props")
    require_inside(parsed, name=NAME)
    require_stored_truths(parsed, name=NAME)
    for message in messages(parsed):
        if isinstance(message, onnx.NodeProto):
            _require_known(message)
    return parsed.SerializeToString()


def _require_known(node: onnx.NodeProto) -> None:
    if runs_on_worker(node.domain, node.op_type):
        return
    raise UnsupportedError(
        f"{NAME}: node {node.name!r}: a worker runs no operator {node.domain}.{node.op_type}; "
        "export the model with standard operators, or keep the node inside"
    )
