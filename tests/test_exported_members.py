"""The public names, and what importing them must not pull in."""

import subprocess
import sys

import cloister

EXPORTED = {
    "CloisterError", "Graph", "Plan", "Precision", "Report", "Result", "Session", "Transcript",
    "VerificationError", "from_keras", "from_torch", "load", "policies",
}  # fmt: skip


def test_exported_members():
    assert set(cloister.__all__) == EXPORTED
    assert list(cloister.__all__) == sorted(cloister.__all__)
    for name in EXPORTED:
        assert getattr(cloister, name).__doc__


def test_import_needs_no_machine_learning_framework():
    code = (
        "import sys; sys.modules.update(torch=None, keras=None, sklearn=None); "
        "import cloister; from cloister.cli import main"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_load_is_ready_for_planning(tmp_path):
    import onnx

    import nets

    onnx.save(nets.chain(), tmp_path / "chain.onnx")
    graph = cloister.load(tmp_path / "chain.onnx")
    plan = cloister.policies.enclave(graph)
    feeds = nets.samples(nets.chain(), 2)
    with cloister.Session(plan) as session:
        assert session.run(feeds).report.inputs == 2
