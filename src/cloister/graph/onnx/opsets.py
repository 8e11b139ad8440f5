"""Versions of operator sets: those a file leaves out, and those too new.

ONNX Runtime takes the newest version it has of a set that a file does not name, and refuses a file
that names a newer one.
"""

from bisect import bisect_left
from functools import cache

import onnx
from onnx import NodeProto, TensorProto, helper

from cloister.errors import ModelError, UnsupportedError
from cloister.graph.onnx.external_data import messages
from cloister.graph.ort_session import ORT_ERRORS, runtime_session

MOST = 1 << 10
"""No operator set has as many versions."""


def state_opsets(model: onnx.ModelProto, *, name: str) -> None:
    """Write the version of every operator set that a model uses into the model.

    Raises   UnsupportedError for a version that cannot be run here, ModelError where the model
             names no operator set at all
    """
    versions = _stated(model, name)
    for domain in ("", *sorted(_used(model))):
        newest = newest_version(domain)
        if newest is not None and versions.setdefault(domain, newest) > newest:
            raise UnsupportedError(
                f"{name}: opset {versions[domain]} of {domain or 'ai.onnx'} is newer than the "
                f"installed onnx and onnxruntime, which have {newest}; export the model with opset "
                f"{newest} or older, or install newer ones"
            )
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(*one) for one in versions.items())


@cache
def newest_version(domain: str) -> int | None:
    """The newest version of an operator set that can be run here; None for an unknown set."""
    # ONNX Runtime states no limit, but refuses even an empty model beyond it.
    found = bisect_left(range(1, MOST), True, key=lambda version: not _runs(domain, version))
    if found == MOST - 1:
        return None
    return found if domain else min(found, onnx.defs.onnx_opset_version())


def _runs(domain: str, version: int) -> bool:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    versions = {"": 7, domain: version}
    model = helper.make_model(
        helper.make_graph([], "empty", [value], [value]),
        opset_imports=[helper.make_opsetid(*one) for one in versions.items()],
        ir_version=onnx.IR_VERSION_2019_1_22,
    )
    try:
        runtime_session(model.SerializeToString())
    except ORT_ERRORS:
        return False
    return True


def _stated(model: onnx.ModelProto, name: str) -> dict[str, int]:
    """The versions that a model names, of several for one set the last."""
    versions = {standard_domain(entry.domain): entry.version for entry in model.opset_import}
    # A model need not repeat what its functions name.
    for function in model.functions if versions else ():
        for entry in function.opset_import:
            versions.setdefault(standard_domain(entry.domain), entry.version)
    if not versions and model.ir_version < onnx.IR_VERSION_2017_11_3:
        versions = {"": 1}  # operator sets came with the third version of the format
    if not versions or min(versions.values()) < 1:
        raise ModelError(f"{name}: names no version of its operators; export the model again")
    return versions


def _used(model: onnx.ModelProto) -> set[str]:
    """Domains of all nodes, and of those that the model names."""
    named = {standard_domain(entry.domain) for entry in model.opset_import}
    return named | {
        standard_domain(one.domain) for one in messages(model) if isinstance(one, NodeProto)
    }


def standard_domain(domain: str) -> str:
    """A domain by the name that it has here: ONNX's own has two."""
    return "" if domain == "ai.onnx" else domain
