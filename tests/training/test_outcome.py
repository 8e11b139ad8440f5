"""What a run says about itself: claims, curve, and the ciphertext server over HTTPS."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from cloister.errors import AuthorityUnavailable, EncryptionError, InputError
from cloister.field.linear import Geometry, LinearMap
from cloister.training import remote
from cloister.training.checkpoint import EpochResult
from cloister.training.claims import claims
from cloister.training.curve import write_curve
from cloister.training.server import LocalCiphertextServer
from training.doubles import MemoryDataset, blobs
from training.test_trainer import FROZEN, PAPER, TRUSTED, trainer

HISTORY = [
    EpochResult(1, 1.2, 0.5, None, 3.0), EpochResult(2, 0.7, 0.75, 0.7, 3.0),
    EpochResult(3, 0.5, 1.0, 0.9, 3.0),
]  # fmt: skip


def table(settings, **more):
    made, _, _ = trainer(settings, **more)
    return {claim.about: claim for claim in claims(made, epochs=2)}


def test_claims_follow_the_settings():
    paper, frozen, trusted = table(PAPER), table(FROZEN), table(TRUSTED)
    values = "a sample's values"
    assert [t[values].severity for t in (paper, frozen, trusted)] == [
        "everything", "bounded", "nothing",
    ]  # fmt: skip
    assert "7 fixed linear functions of 30 values" in frozen[values].learns
    assert trusted["labels"].severity == "nothing"
    assert paper["labels"].severity == frozen["labels"].severity == "everything"
    assert "gradients of batches" in trusted["the model"].learns
    offloading = table(replace(TRUSTED, offload_gradients=True))
    assert offloading["labels"].severity == "everything"
    assert "output gradient" in offloading["the model"].learns
    clean = table(replace(TRUSTED, first_layer="frozen"))
    clean.pop("who trains with what")
    assert {claim.severity for claim in clean.values()} == {"nothing"}
    guarded = table(replace(FROZEN, first_layer="trainable"))
    assert "beyond, the authority refuses" in guarded[values].learns


def test_in_trusted_mode_the_host_sees_no_gradient():
    """It is asked for forward products, ciphertexts and labels, and for nothing else."""
    seen = []

    class Host(LocalCiphertextServer):
        def gradient(self, *arguments):
            seen.append("gradient")
            return super().gradient(*arguments)

        def forward(self, *arguments):
            seen.append("forward")
            return super().forward(*arguments)

    for offload, expected in ((False, {"forward"}), (True, {"forward", "gradient"})):
        seen.clear()
        made, _, (_, _, dataset) = trainer(replace(TRUSTED, offload_gradients=offload))
        made.products._server = Host(dataset)
        made.fit(1)
        assert set(seen) == expected


@pytest.mark.parametrize("history", [HISTORY, HISTORY[:1], []])
def test_curves(history, tmp_path):
    write_curve(history, tmp_path / "curve.svg", title="a < b & c")
    text = (tmp_path / "curve.svg").read_text()
    assert "a &lt; b &amp; c" in text
    measured = sum(result.test_accuracy is not None for result in history)
    assert text.count("<circle") == len(history) + measured
    write_curve(history, tmp_path / "curve.PNG", title="a < b & c")
    with Image.open(tmp_path / "curve.PNG") as image:
        assert image.size == (640, 400)
        assert len(image.getcolors(1 << 16)) > (4 if history else 2)
    with pytest.raises(InputError, match=r"\.svg or \.png"):
        write_curve(history, tmp_path / "curve.gif", title="")


@pytest.fixture
def served(tmp_path):
    x, y, encoding = blobs(20, (5, 4, 2))
    held = LocalCiphertextServer(MemoryDataset(x, y, encoding=encoding, classes=3))
    public = remote.init(tmp_path / "host")
    server = remote.serve(held, folder=tmp_path / "host", listen="127.0.0.1:0")
    client = remote.RemoteCiphertextServer(server.url, public=public)
    yield held, client, server, public
    client.close()
    server.close()


def test_the_remote_server_answers_as_the_local_one(served):
    held, client, _, _ = served
    ids = np.array([3, 0, 19], np.int64)
    rng = np.random.default_rng(0)
    geometry = Geometry((5, 4), 2, (5, 4), 3, (3, 3), pad=(1, 1))
    weights = rng.integers(-(2**15), 2**15, geometry.weight_shape).astype(np.int16)
    delta = rng.integers(-9, 9, (3, *geometry.out_shape)).astype(np.int16)
    linear = LinearMap(geometry, weights)
    for name, arguments in (("forward", (linear,)), ("gradient", (geometry, delta)),
                            ("data", ()), ("labels", ())):  # fmt: skip
        wanted = getattr(held, name)("set", ids, *arguments)
        np.testing.assert_array_equal(getattr(client, name)("set", ids, *arguments), wanted)


def test_errors_cross_the_wire(served, tmp_path):
    _, client, server, _ = served
    with pytest.raises(EncryptionError, match="not here"):
        client.data("other", np.zeros(1, np.int64))
    other = remote.init(tmp_path / "other")
    stranger = remote.RemoteCiphertextServer(server.url, public=other, retry_for_s=0.0)
    with pytest.raises(AuthorityUnavailable):
        stranger.data("set", np.zeros(1, np.int64))


def test_public_files(tmp_path):
    path = remote.init(tmp_path / "host")
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(InputError, match="not empty"):
        remote.init(tmp_path / "host")
    for secret in ("server.pub", "server.key"):
        (tmp_path / "host" / secret).chmod(0o640)
        with pytest.raises(InputError, match="chmod 600"):
            remote.serve(LocalCiphertextServer(), folder=tmp_path / "host", listen="127.0.0.1:0")
        (tmp_path / "host" / secret).chmod(0o600)
    path.chmod(0o604)
    with pytest.raises(InputError, match="chmod 600"):
        remote.RemoteCiphertextServer("https://127.0.0.1:1", public=path)
    path.chmod(0o600)
    for text in ("{}", "", '{"format": "x"}', "[1]"):
        path.write_text(text)
        with pytest.raises(InputError, match="public file"):
            remote.RemoteCiphertextServer("https://127.0.0.1:1", public=path)
        with pytest.raises(InputError, match="public file"):
            remote.serve(LocalCiphertextServer(), folder=tmp_path / "host", listen="127.0.0.1:0")
    path.unlink()
    with pytest.raises(InputError, match="ciphertexts init"):
        remote.RemoteCiphertextServer("https://127.0.0.1:1", public=path)
    with pytest.raises(InputError, match="ciphertexts init"):
        remote.serve(LocalCiphertextServer(), folder=tmp_path / "host", listen="127.0.0.1:0")
