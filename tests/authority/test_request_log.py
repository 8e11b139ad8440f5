"""The release log: what is written is read, and damage is named."""

import dataclasses
import hashlib
import struct
import threading

import numpy as np
import pytest

from cloister.authority.request_log import MAGIC, Release, ReleaseLog, asked, read_releases
from cloister.authority.requests import Forward, Gradient, Labels
from cloister.errors import CloisterError, EncryptionError, ShapeError
from cloister.ring.linear import Geometry, LinearMap
from cloister.wire.https.bodies import Body, encode

CONV = Geometry((5, 4), 1, (4, 3), 2, (2, 2))
SHAPE = (5, 4, 1)


def forward(step=0, n=3):
    rng = np.random.default_rng(step)
    linear = LinearMap(CONV, rng.integers(-9, 9, CONV.weight_shape).astype(np.int16))
    values = rng.integers(-(2**31), 2**31, (n, *CONV.out_shape))
    return Release(Forward("set", np.arange(n, dtype=np.int64) + 7, linear), step, values, SHAPE)


def gradient(n=2):
    delta = np.full((n, *CONV.out_shape), -32768, np.int16)
    request = Gradient("set", np.array([9, 9], np.int64)[:n], CONV, delta)
    return Release(request, 4, np.ones(CONV.weight_shape, np.int64), SHAPE)


def labels(n=2):
    values = np.array([[-100, 100], [3, -3]], np.int64)[:n]
    return Release(Labels("set", np.arange(n, dtype=np.int64)), 2**40, values, SHAPE)


def write(path, *releases):
    with ReleaseLog(path) as log:
        for release in releases:
            log.append(release)


def same(a, b):
    plain = ("kind", "step", "geometry", "shape")
    assert all(getattr(a, name) == getattr(b, name) for name in plain)
    assert a.request.dataset == b.request.dataset
    for name in ("ids", "functional", "values"):
        left, right = getattr(a, name), getattr(b, name)
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)


def test_what_is_written_is_read(tmp_path):
    written = [forward(), gradient(), labels(), forward(1, n=0), labels(n=0)]
    write(tmp_path / "log", *written)
    read = list(read_releases(tmp_path / "log"))
    assert len(read) == len(written)
    for a, b in zip(read, written, strict=True):
        same(a, b)


def test_a_log_is_continued(tmp_path):
    write(tmp_path / "log", forward(0))
    write(tmp_path / "log", forward(1))
    write(tmp_path / "log")
    assert [r.step for r in read_releases(tmp_path / "log")] == [0, 1]
    assert (tmp_path / "log").stat().st_mode & 0o077 == 0


def test_an_empty_log_holds_nothing(tmp_path):
    write(tmp_path / "log")
    assert list(read_releases(tmp_path / "log")) == []


def test_every_cut_is_found_and_left_out_on_request(tmp_path):
    path = tmp_path / "log"
    write(path, labels())
    whole = path.stat().st_size
    write(path, labels())
    data = path.read_bytes()
    for length in range(whole + 1, len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(EncryptionError, match=f"cut off in the record at byte {whole}"):
            list(read_releases(path))
        assert len(list(read_releases(path, tail_ok=True))) == 1
    write(path, forward(5))
    assert [r.kind for r in read_releases(path)] == ["labels", "forward"]


def test_every_changed_byte_is_an_error(tmp_path):
    path = tmp_path / "log"
    write(path, labels(), forward())
    data = path.read_bytes()
    for at in range(0, len(data), 3):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :])
        with pytest.raises(EncryptionError, match="log"):
            list(read_releases(path))
        if at < len(MAGIC):
            with pytest.raises(EncryptionError, match="not a release log"):
                ReleaseLog(path)


def test_lies_with_a_correct_digest_are_errors(tmp_path):
    """Whoever writes the file can hash; lengths and kinds are checked all the same."""
    path = tmp_path / "log"
    write(path, forward())
    data = path.read_bytes()
    body = bytearray(data[len(MAGIC) + 8 : -32])
    for at in range(len(body) - 8 * 8):
        for value in (0, 1, 0x7F, 0xFF):
            lie = bytes(body[:at]) + bytes([value]) + bytes(body[at + 1 :])
            path.write_bytes(
                MAGIC + struct.pack("<Q", len(lie)) + lie + hashlib.sha256(lie).digest()
            )
            try:
                found = list(read_releases(path))
            except CloisterError as error:
                assert isinstance(error, EncryptionError), error
            else:
                assert len(found) == 1


def test_contradictions_are_refused():
    good = forward()
    request, values = good.request, good.values
    for change in (
        {"ids": request.ids.astype(np.int32)},
        {"ids": request.ids[:, None]},
    ):
        with pytest.raises(ShapeError):
            dataclasses.replace(request, **change)
    for delta in (gradient().request.delta[:1], gradient().request.delta.astype(np.int32)):
        with pytest.raises(ShapeError):
            dataclasses.replace(gradient().request, delta=delta)
    for change in (
        {"request": gradient().request},
        {"request": labels().request},
        {"request": dataclasses.replace(request, ids=request.ids[:2])},
        {"values": values[:, :2]},
        {"values": values.astype(np.float64)},
        {"shape": (5, 4)},
        {"shape": (5, 5, 1)},
        {"shape": (0, 4, 1)},
    ):
        with pytest.raises(ShapeError):
            dataclasses.replace(good, **change)


def test_bodies_that_contradict_themselves_are_refused(tmp_path):
    path = tmp_path / "log"
    for build in (forward, gradient, labels):
        release = build()
        fields = release.request.fields | {
            "kind": release.request.kind, "step": 1, "shape": list(SHAPE),
        }  # fmt: skip
        tensors = (*release.request.tensors, release.values)
        for lie in (
            Body(fields | {"kind": "other"}, tensors),
            Body(fields | {"kind": "labels" if build is forward else "forward"}, tensors),
            Body(fields | {"shape": [5, 4]}, tensors),
            Body(fields | {"step": "1"}, tensors),
            Body(fields, tensors[:-1]),
            Body(fields, (*tensors, release.values)),
            Body(fields, (tensors[0].astype(np.int32), *tensors[1:])),
            Body(fields, (*tensors[:-1], release.values.astype(np.float64))),
        ):
            data = encode(lie)
            path.write_bytes(
                MAGIC + struct.pack("<Q", len(data)) + data + hashlib.sha256(data).digest()
            )
            with pytest.raises(EncryptionError, match="malformed"):
                list(read_releases(path))


def test_requests_hold_functions_and_no_values(tmp_path):
    for like in (forward(), gradient()):
        request = asked(like.request, step=3)
        assert (request.kind, request.is_read) == (f"{like.kind} request", False)
        write(tmp_path / request.kind, request)
        [read] = read_releases(tmp_path / request.kind)
        same(read, request)
        assert not read.is_read


def test_a_log_may_be_written_by_many_threads(tmp_path):
    with ReleaseLog(tmp_path / "log") as log:
        threads = [
            threading.Thread(target=lambda: [log.append(forward(step)) for step in range(40)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(list(read_releases(tmp_path / "log"))) == 160


def test_flat_samples_may_feed_a_dense_layer(tmp_path):
    dense = Geometry((1, 1), 20, (1, 1), 3)
    linear = LinearMap(dense, np.ones((3, 1, 1, 20), np.int16))
    request = Forward("set", np.zeros(1, np.int64), linear)
    release = Release(request, 0, np.zeros((1, 1, 1, 3), np.int64), SHAPE)
    write(tmp_path / "log", release)
    same(next(iter(read_releases(tmp_path / "log"))), release)
