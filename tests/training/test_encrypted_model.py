"""What training keeps: a folder that is whole after any crash, opened without PyTorch."""

import hashlib
import io
import json
import os
import signal
import stat
import subprocess
import sys
from dataclasses import replace
from functools import cache

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from cloister.base import files
from cloister.data.feature_noise import GaussianNoise
from cloister.errors import EncryptionError, InputError, ShapeError, UnsupportedError
from cloister.training.encrypted_model import NAME, EncryptedModel
from cloister.training.kept_model import kept_model
from training.test_trainer import FROZEN, PAPER, SHAPE, TRUSTED, small, trainer

RUNS = {"frozen": FROZEN, "trusted": TRUSTED, "paper": PAPER}


class Odd(nn.Module):
    """Reads sizes of its input, and is no Sequential."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(30, 7, bias=False)
        self.last = nn.Linear(7, 3)

    def forward(self, x):
        hidden = torch.tanh(self.first(x.flatten(1)))
        return self.last(hidden.view(x.shape[0], -1)) * x.shape[1]


def dense():
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(30, 9), nn.Sigmoid(), nn.Linear(9, 3))


MODELS = {"convolution": small, "dense": dense, "no Sequential": Odd}


def trained(settings, model=None, *, offset=0.25, epochs=1):
    made, _, _ = trainer(settings, model=model or small(), offset=offset)
    made.fit(epochs)
    return made, kept_model(made, name="small", authority="f" * 64, clients="c" * 64)


@cache
def frozen():
    return trained(FROZEN)[1]


@cache
def frozen_dense():
    return trained(FROZEN, dense())[1]


@pytest.mark.parametrize("offset", [0.0, 0.25])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("run", RUNS)
def test_a_kept_model_gives_the_scores_of_the_trained_one(tmp_path, run, model, offset):
    made, kept = trained(RUNS[run], MODELS[model](), offset=offset)
    kept.save(tmp_path / "model")
    opened = EncryptedModel.open(tmp_path / "model")
    ids = made._test_ids
    values = opened.first.values(
        made.products.forward(ids, opened.first.linear).integers(), opened.info.encoding
    )
    made.model.eval()
    with torch.no_grad():
        wanted = made._scores(ids).numpy()
    np.testing.assert_allclose(opened.scores(values), wanted, rtol=1e-5, atol=1e-5)
    assert np.ptp(wanted) > 0.1


def test_everything_is_kept(tmp_path):
    made, kept = trained(replace(FROZEN, seed=3), epochs=2)
    kept.save(tmp_path)
    opened = EncryptedModel.open(tmp_path)
    named = ("name", "run", "info", "identity", "authority", "clients")
    for name in (*named, "settings", "history", "claims"):
        assert getattr(opened, name) == getattr(kept, name), name
    assert [epoch["epoch"] for epoch in opened.history] == [1, 2]
    state = torch.load(io.BytesIO(opened.state), weights_only=True)
    again = small()
    again.load_state_dict(state)
    assert all(
        torch.equal(one, other)
        for one, other in zip(again.parameters(), made.own_model.parameters(), strict=True)
    )


def test_the_model_of_a_noisy_run_is_kept(tmp_path):
    pytest.importorskip("dp_accounting")
    noise = GaussianNoise(1.0, "gradients", clip=0.5)
    _, kept = trained(replace(TRUSTED, noise=noise), dense())
    kept.save(tmp_path)
    assert EncryptedModel.open(tmp_path).settings.noise == noise


def test_a_layer_that_onnx_lacks_is_named():
    class Lower(nn.Module):
        def forward(self, x):
            return torch.linalg.eigvalsh(x.unsqueeze(2) @ x.unsqueeze(1))

    made, _, _ = trainer(FROZEN, model=nn.Sequential(nn.Flatten(), nn.Linear(30, 3), Lower()))
    with pytest.raises(UnsupportedError, match="PyTorch cannot export"):
        kept_model(made, name="lower", authority="f" * 64, clients="c" * 64)


def _with(folder, kind, content):
    """The kept model with other content in one of its files, under the name that fits it."""
    document = json.loads((folder / NAME).read_text())
    digest, suffix = hashlib.sha256(content).hexdigest(), {"first": "npz", "rest": "onnx"}[kind]
    (folder / f"{kind}-{digest[:16]}.{suffix}").write_bytes(content)
    document["files"][kind] = digest
    (folder / NAME).write_text(json.dumps(document))


def test_a_small_file_of_large_arrays_takes_no_memory(tmp_path):
    frozen().save(tmp_path)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, weights=np.zeros(1 << 22, np.int16), steps=np.zeros(1 << 20))
    _with(tmp_path, "first", buffer.getvalue())
    with pytest.raises(EncryptionError, match=r"weights\.npy is larger than its file"):
        EncryptedModel.open(tmp_path)


def test_layers_that_cannot_be_run_are_one_line(tmp_path):
    """A hostile graph has the right types, and fails when it is run."""
    frozen().save(tmp_path)
    (size,), f32 = frozen().first.shape, onnx.TensorProto.FLOAT
    ends = [
        onnx.helper.make_tensor_value_info(name, f32, ["n", of])
        for name, of in (("x", size), ("y", 3))
    ]
    node = onnx.helper.make_node("Gather", ["x", "s"], ["y"], axis=1)
    beyond = onnx.helper.make_tensor("s", onnx.TensorProto.INT64, [3], [0, 1, 99])
    graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:], [beyond])
    opset = [onnx.helper.make_opsetid("", 17)]
    made = onnx.helper.make_model(graph, opset_imports=opset, ir_version=9)
    _with(tmp_path, "rest", made.SerializeToString())
    with pytest.raises(EncryptionError, match="model: its layers behind the first cannot be run"):
        EncryptedModel.open(tmp_path).scores(np.zeros((3, size), np.float32))


def test_only_its_owner_can_read_it(tmp_path):
    kept = frozen()
    kept.save(tmp_path / "a" / "model")
    folder = tmp_path / "a" / "model"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert len(list(folder.iterdir())) == 4


def test_another_model_takes_the_place_of_the_first(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    frozen().save(tmp_path)
    frozen_dense().save(tmp_path)
    assert EncryptedModel.open(tmp_path).state == frozen_dense().state
    assert len(list(tmp_path.iterdir())) == 5
    assert (tmp_path / "notes.txt").read_text() == "mine"


def saved_and_killed(model, folder, monkeypatch, *, at):
    """Save in another process, which is killed before the step `at`: four files, and a clean-up."""
    steps, replaced = iter(range(5)), files.replace

    def reached():
        if next(steps) == at:
            os.kill(os.getpid(), signal.SIGKILL)

    def dying_replace(*arguments, **more):
        reached()
        replaced(*arguments, **more)

    pid = os.fork()
    if not pid:
        monkeypatch.setattr(files, "replace", dying_replace)
        monkeypatch.setattr(files, "remove_leftovers", lambda folder: reached())
        model.save(folder)
        os._exit(1)
    return os.WTERMSIG(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("at", range(5))
def test_a_process_that_is_killed_leaves_the_old_model_or_the_new_one(tmp_path, monkeypatch, at):
    frozen().save(tmp_path)
    new = frozen_dense()
    assert saved_and_killed(new, tmp_path, monkeypatch, at=at) == signal.SIGKILL
    assert EncryptedModel.open(tmp_path).state == (new if at == 4 else frozen()).state
    new.save(tmp_path)
    assert EncryptedModel.open(tmp_path).state == new.state
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("kind", ["first", "rest", "state"])
@pytest.mark.parametrize("damage", ["altered", "missing", "cut"])
def test_a_damaged_file_is_named(tmp_path, kind, damage):
    kept = frozen()
    kept.save(tmp_path)
    (path,) = tmp_path.glob(f"{kind}-*")
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:-1] + (b"" if damage == "cut" else bytes([content[-1] ^ 1])))
    with pytest.raises(EncryptionError, match=path.name):
        EncryptedModel.open(tmp_path)


def document(folder, **changed):
    path = folder / NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


@pytest.mark.parametrize("changed", [
    {"format": 9}, {"files": {}}, {"settings": {}}, {"claims": 3}, {"history": [1]}, {"info": {}},
    {"first": {"shape": [2], "geometry": {}}},
    {"files": {"first": "../" * 6, "rest": "0" * 64, "state": "0" * 64}},
])  # fmt: skip
def test_a_document_of_another_version_is_refused(tmp_path, changed):
    kept = frozen()
    kept.save(tmp_path)
    document(tmp_path, **changed)
    with pytest.raises(EncryptionError, match=str(tmp_path)):
        EncryptedModel.open(tmp_path)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no model\.json; give the --out"):
        EncryptedModel.open(tmp_path)


def test_layers_that_do_not_fit_the_first_are_refused():
    kept = frozen()
    with pytest.raises(ShapeError, match="layers behind the first"):
        replace(kept, rest=trained(TRUSTED)[1].rest)
    with pytest.raises(ShapeError, match="takes values"):
        kept.scores(np.zeros((2, *SHAPE), np.float32))
    with pytest.raises(ShapeError, match="a sample is"):
        replace(kept, info=replace(kept.info, shape=(1, 1, 30)))


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    kept = frozen()
    with pytest.raises(InputError, match=r"file/model: the model cannot be kept there"):
        kept.save(tmp_path / "file" / "model")


def test_it_is_opened_without_pytorch(tmp_path):
    _, kept = trained(TRUSTED)
    kept.save(tmp_path)
    code = (
        "import sys; sys.modules.update(torch=None); import numpy as np, cloister; "
        f"m = cloister.training.EncryptedModel.open({str(tmp_path)!r}); "
        "print(m.scores(np.zeros((2, *m.first.shape), np.float32)).shape)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], check=True, capture_output=True)
    assert done.stdout == b"(2, 3)\n"
