"""What a run leaves: its curve; and the ciphertext server over HTTPS."""

import contextlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from cloister.authority.requests import Forward, Gradient
from cloister.base.identity import Access
from cloister.base.rng import SystemRandom
from cloister.errors import (
    CiphertextServerUnavailable,
    CloisterError,
    InputError,
    ProtocolError,
    UnknownDatasetError,
)
from cloister.ring.bounds import MAX_REQUEST_SAMPLES
from cloister.ring.linear import Geometry, LinearMap
from cloister.training import ciphertext_service
from cloister.training.accuracy_plot import write_curve
from cloister.training.checkpoint import EpochResult
from cloister.training.ciphertexts import LocalCiphertextServer
from cloister.wire.https.https_client import HttpsClient
from training.doubles import MemoryDataset, blobs

HISTORY = [
    EpochResult(1, 1.2, 0.5, None, 3.0), EpochResult(2, 0.7, 0.75, 0.7, 3.0),
    EpochResult(3, 0.5, 1.0, 0.9, 3.0),
]  # fmt: skip


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
    access = ciphertext_service.init(tmp_path / "host", rng=SystemRandom())
    server = ciphertext_service.serve(held, folder=tmp_path / "host", listen="127.0.0.1:0")
    client = ciphertext_service.RemoteCiphertextServer(server.url, access=access)
    yield held, client, server, access
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
    for request in (Forward("set", ids, linear), Gradient("set", ids, geometry, delta)):
        np.testing.assert_array_equal(client.ask(request), held.ask(request))


def pixel_sum():
    geometry = Geometry((5, 4), 2, (1, 1), 1, (5, 4))
    return LinearMap(geometry, np.ones(geometry.weight_shape, np.int16))


def test_the_remote_server_hands_out_no_ciphertexts(served):
    """A trusted runtime has its own, and must not take a liar's."""
    _, client, _, _ = served
    for operation in ("data", "labels", "other"):
        with pytest.raises(ProtocolError, match="knows forward and gradient"):
            client._client.call(
                operation, {"dataset": "set", "geometry": pixel_sum().geometry.to_fields()},
                (np.zeros(1, np.int64),),
            )  # fmt: skip


def test_errors_cross_the_wire(served, tmp_path):
    _, client, server, _ = served
    linear = pixel_sum()
    with pytest.raises(UnknownDatasetError, match="not here"):
        client.ask(Forward("other", np.zeros(1, np.int64), linear))
    other = ciphertext_service.init(tmp_path / "other", rng=SystemRandom())
    stranger = ciphertext_service.RemoteCiphertextServer(server.url, access=other, retry_for_s=0.0)
    with pytest.raises(CiphertextServerUnavailable):
        stranger.ask(Forward("set", np.zeros(1, np.int64), linear))


def test_strangers_are_refused_before_their_request_is_read(served, tmp_path):
    _, client, server, access = served
    certificate = Access.load(access).certificate
    with contextlib.closing(
        HttpsClient(server.url, certificate=certificate, token="other", retry_for_s=20)
    ) as stranger:
        for operation in (*ciphertext_service.OPERATIONS, "everything"):
            with pytest.raises(InputError, match="token"):
                stranger.call(operation, {}, (np.zeros(1 << 24, np.uint8),))
    assert client.ask(Forward("set", np.zeros(1, np.int64), pixel_sum())).shape == (1, 1, 1, 1)


def test_what_one_request_may_cost_is_bounded(served, monkeypatch):
    held, client, _, _ = served

    def reads(*_):
        raise AssertionError("samples were read")

    monkeypatch.setattr(held, "data", reads)
    many = np.zeros(MAX_REQUEST_SAMPLES + 1, np.int64)
    some, geometry = many[:1024], Geometry((5, 4), 2, (5, 4), 3, (3, 3), pad=(1, 1))
    monkeypatch.setattr("cloister.ring.bounds.MAX_PRODUCTS", 1024 * geometry.macs - 1)
    weights = np.zeros(geometry.weight_shape, np.int16)
    delta = np.zeros((1024, *geometry.out_shape), np.int16)
    far = replace(geometry, stride=(1 << 14, 1))
    for ask in (
        lambda: client.ask(Forward("set", many, pixel_sum())),
        lambda: client.ask(Forward("set", many[:0], pixel_sum())),
        lambda: client.ask(Forward("set", some, LinearMap(geometry, weights))),
        lambda: client.ask(Gradient("set", some, geometry, delta)),
        lambda: client.ask(Forward("set", some[:1], LinearMap(far, weights))),
    ):
        with pytest.raises(CloisterError):
            ask()


def test_requests_at_the_same_time_get_their_own_samples(tmp_path):
    """The cached batch of one request is never the answer to another."""
    x, y, encoding = blobs(20, (5, 4, 2))
    dataset = MemoryDataset(x, y, encoding=encoding, classes=3)
    read = dataset.data
    held = LocalCiphertextServer(dataset)
    ids, others = np.array([1, 2], np.int64), np.array([3], np.int64)

    def interrupted(wanted):
        dataset.data = read
        found = read(wanted)
        held._last = ("set", others.tobytes(), read(others))
        return found

    dataset.data = interrupted
    np.testing.assert_array_equal(held.data("set", ids), read(ids))


def test_access_files(tmp_path):
    path = ciphertext_service.init(tmp_path / "host", rng=SystemRandom())
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(InputError, match="not empty"):
        ciphertext_service.init(tmp_path / "host", rng=SystemRandom())
    for secret in ("server.access", "certificate.key"):
        (tmp_path / "host" / secret).chmod(0o640)
        with pytest.raises(InputError, match="chmod 600"):
            ciphertext_service.serve(
                LocalCiphertextServer(), folder=tmp_path / "host", listen="127.0.0.1:0"
            )
        (tmp_path / "host" / secret).chmod(0o600)
    path.chmod(0o604)
    with pytest.raises(InputError, match="chmod 600"):
        ciphertext_service.RemoteCiphertextServer("https://127.0.0.1:1", access=path)
    path.chmod(0o600)
    for text in ("{}", "", '{"format": "x"}', "[1]"):
        path.write_text(text)
        with pytest.raises(InputError, match="access file"):
            ciphertext_service.RemoteCiphertextServer("https://127.0.0.1:1", access=path)
        with pytest.raises(InputError, match="access file"):
            ciphertext_service.serve(
                LocalCiphertextServer(), folder=tmp_path / "host", listen="127.0.0.1:0"
            )
    path.unlink()
    with pytest.raises(InputError, match="data init"):
        ciphertext_service.RemoteCiphertextServer("https://127.0.0.1:1", access=path)
    with pytest.raises(InputError, match="data init"):
        ciphertext_service.serve(
            LocalCiphertextServer(), folder=tmp_path / "host", listen="127.0.0.1:0"
        )
