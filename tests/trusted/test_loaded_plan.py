"""A plan that was saved runs without the libraries that read models or reach other machines."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

import nets
from cloister.errors import CloisterError
from cloister.graph.onnx.read import from_model
from cloister.graph.passes.normalise import prepare
from cloister.plan import policies
from cloister.plan.plan import Plan
from cloister.trusted.program.compile import Local, Segment, compile_plan
from cloister.trusted.session import Session
from cloister.wire.inprocess import InProcessLink
from cloister.worker.engine import Engine

SCRIPT = """
import sys
sys.modules.update(onnx=None, grpc=None, google=None, typer=None)
import numpy as np
import cloister
with np.load(sys.argv[2]) as file:
    samples = dict(file)
with cloister.Session(cloister.Plan.load(sys.argv[1]), on_clip="ignore") as session:
    np.savez(sys.argv[3], **session.run(samples).outputs)
try:
    cloister.load
except ImportError:
    print("no reader")
"""


def planned(build, policy):
    model = build()
    samples = nets.samples(model, 3)
    graph = prepare(from_model(model, name="net"))
    return policies.make(policy, graph, calibration=samples), samples


@pytest.mark.parametrize(
    ("build", "policy", "kind"),
    [(nets.sequence, "slalom", Local), (nets.choosing, "verified", Local),
     (nets.several, "blinded", Local), (nets.several, "open", Segment),
     (nets.residual, "enclave", Local)],
)  # fmt: skip
def test_local_nodes_and_segments_run_without_onnx_and_grpc(tmp_path, build, policy, kind):
    plan, samples = planned(build, policy)
    assert any(isinstance(step, kind) for step in compile_plan(plan).steps)
    plan.save(tmp_path / "a.plan")
    np.savez(tmp_path / "x.npz", **samples)
    files = [tmp_path / name for name in ("a.plan", "x.npz", "y.npz")]
    command = [sys.executable, "-P", "-c", SCRIPT, *files]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "no reader"
    with Session(plan, on_clip="ignore") as session:
        wanted = session.run(samples).outputs
    with np.load(tmp_path / "y.npz") as found:
        assert set(found) == set(wanted)
        for name, value in wanted.items():
            np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize("name", ["load", "from_torch", "from_keras", "published"])
def test_what_is_loaded_late_is_there(name):
    script = f"import cloister; assert cloister.{name} is not None and '{name}' in cloister.__all__"
    subprocess.run([sys.executable, "-P", "-c", script], check=True)


def test_nothing_that_reads_models_is_imported_with_the_package():
    script = (
        "import sys, cloister; "
        "print(*{'onnx', 'grpc', 'google.protobuf', 'typer', 'PIL'} & set(sys.modules))"
    )
    ran = subprocess.run(
        [sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True
    )
    assert not ran.stdout.strip()


# ---- plans that say what no model says


def lying(build, change):
    """A plan whose graph was changed after it was made, and the samples of the true one."""
    plan, samples = planned(build, "slalom")
    graph = change(plan.graph)
    return Plan.from_bytes(dataclasses.replace(plan, graph=graph).to_bytes()), samples


def with_attributes(op, **attributes):
    def change(graph):
        nodes = tuple(
            dataclasses.replace(node, attributes={**node.attributes, **attributes})
            if node.op == op
            else node
            for node in graph.nodes
        )
        return dataclasses.replace(graph, nodes=nodes)

    return change


LIES = {
    "a window of a text": (nets.chain, with_attributes("MaxPool", kernel_shape="wide")),
    "a window of no size": (nets.chain, with_attributes("MaxPool", kernel_shape=(0, 0))),
    "an endless window": (nets.chain, with_attributes("MaxPool", kernel_shape=(2**31, 2**31))),
    "endless padding": (nets.chain, with_attributes("MaxPool", pads=(2**62, 0, 0, 0))),
    "an endless stride": (nets.chain, with_attributes("MaxPool", strides=(2**62, 2**62))),
}


@pytest.mark.parametrize(("build", "change"), LIES.values(), ids=LIES)
def test_a_plan_that_lies_about_its_model_ends_in_an_error_of_ours(build, change):
    plan, samples = lying(build, change)
    with (
        pytest.raises(CloisterError),
        Session(plan, workers=[InProcessLink(Engine().handle)], on_clip="ignore") as session,
    ):
        session.run(samples)
