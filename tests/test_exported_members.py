"""The public names, and what importing them must not pull in."""

import subprocess
import sys

import pytest

import cloister

EXPORTED = {
    "Claims", "CloisterError", "Graph", "Plan", "Precision", "Report", "Result", "Session",
    "Transcript", "VerificationError", "authority", "from_keras", "from_torch", "load", "policies",
    "published", "training",
}  # fmt: skip


def test_exported_members():
    assert set(cloister.__all__) == EXPORTED
    assert list(cloister.__all__) == sorted(cloister.__all__)
    for name in EXPORTED:
        assert getattr(cloister, name).__doc__


def test_exported_members_of_functional_encryption_and_training():
    wanted = {"ddh", "lwe", "mask", "matrix"}
    assert set(cloister.published.__all__) == wanted
    for name in wanted:
        assert getattr(cloister.published, name).__doc__
    wanted = {
        "ArraySource", "Callback", "EarlyStopping", "EncryptedClassifier", "EncryptedConv2d",
        "EncryptedDataset", "EncryptedLinear", "EncryptedModel", "FolderSource", "GaussianNoise",
        "ModelDefinition", "NewDataset", "PictureOptions", "PredictionOptions", "Privacy",
        "RunFiles", "Settings", "TableOptions", "TableSource", "Trainer", "encrypt",
        "export", "open_answers", "train", "write_answers",
    }  # fmt: skip
    assert set(cloister.training.__all__) == wanted <= set(dir(cloister.training))
    for name in wanted:
        assert getattr(cloister.training, name).__doc__
        assert getattr(cloister.training, name).__name__ == name
    wanted = {"Authority", "AuthorityClient", "connect"}
    assert set(cloister.authority.__all__) == wanted <= set(dir(cloister.authority))
    for name in wanted:
        assert getattr(cloister.authority, name).__doc__
        assert getattr(cloister.authority, name).__name__ == name
    for module in (cloister.authority, cloister.training):
        with pytest.raises(AttributeError, match="nothing"):
            _ = module.nothing


def test_data_sets_are_read_without_pytorch():
    code = (
        "import sys; sys.modules.update(torch=None); import cloister as cl; "
        "cl.training.EncryptedDataset, cl.training.encrypt, cl.published.mask.setup, "
        "cl.published.ddh.setup"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
    code = "import sys; sys.modules.update(torch=None); import cloister; cloister.training.train"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert "InputError: training needs PyTorch: pip install 'cloister[train]'" in done.stderr


def test_import_needs_no_machine_learning_framework():
    code = (
        "import sys; sys.modules.update(torch=None, keras=None, sklearn=None); "
        "import cloister; from cloister.cli import main"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


def test_load_is_ready_for_planning(tmp_path):
    import onnx

    import nets

    onnx.save(nets.chain(), tmp_path / "chain.onnx")
    graph = cloister.load(tmp_path / "chain.onnx")
    plan = cloister.policies.enclave(graph)
    feeds = nets.samples(nets.chain(), 2)
    with cloister.Session(plan) as session:
        assert session.run(feeds).report.inputs == 2


def test_nothing_is_reported_home(tmp_path, monkeypatch):
    """ONNX Runtime keeps a device id and queues events for its maker unless it is told not to."""
    import onnx

    import nets

    onnx.save(nets.chain(), tmp_path / "chain.onnx")
    home = tmp_path / "home"
    home.mkdir()
    code = (
        "import sys, numpy as np, cloister; model = cloister.load(sys.argv[1]); "
        "x = np.ones((1, 3, 13, 10), np.float32); "
        "cloister.Session(cloister.policies.slalom(model, calibration=x)).run(x)"
    )
    # Cloister's own cache, of what suits the processor, has a place of its own.
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(home), **cache}
    command = [sys.executable, "-P", "-W", "ignore", "-c", code, str(tmp_path / "chain.onnx")]
    subprocess.run(command, check=True, env=environment)
    assert list(home.rglob("*")) == []
