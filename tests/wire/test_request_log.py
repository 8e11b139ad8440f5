"""The release log: what is written is read, and damage is named."""

import dataclasses
import threading

import numpy as np
import pytest

from cloister.errors import CloisterError, EncryptionError, ShapeError
from cloister.ring.linear import Geometry
from cloister.wire.request_log import MAGIC, Release, ReleaseLog, asked, read_releases

CONV = Geometry((5, 4), 1, (4, 3), 2, (2, 2))


def forward(step=0, n=3):
    rng = np.random.default_rng(step)
    return Release(
        "forward", step, np.arange(n, dtype=np.int64) + 7, CONV,
        rng.integers(-9, 9, CONV.weight_shape).astype(np.int16),
        rng.integers(-(2**31), 2**31, (n, *CONV.out_shape)), (5, 4, 1),
    )  # fmt: skip


def gradient(n=2):
    return Release(
        "gradient", 4, np.array([9, 9], np.int64)[:n], CONV,
        np.full((n, *CONV.out_shape), -32768, np.int16), np.ones(CONV.weight_shape, np.int64),
        (5, 4, 1),
    )  # fmt: skip


def labels(n=2):
    values = np.array([[-100, 100], [3, -3]], np.int64)[:n]
    ids = np.arange(n, dtype=np.int64)
    return Release("labels", 2**40, ids, None, np.zeros(0, np.int16), values, (5, 4, 1))


def write(path, *releases):
    with ReleaseLog(path) as log:
        for release in releases:
            log.append(release)


def same(a, b):
    plain = ("kind", "step", "geometry", "shape")
    assert all(getattr(a, name) == getattr(b, name) for name in plain)
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
    import hashlib
    import struct

    path = tmp_path / "log"
    write(path, forward())
    data = path.read_bytes()
    start = len(MAGIC) + 8
    body = bytearray(data[start:-32])
    for at in range(24 + 17 * 8 + 8 * 8):
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
    for change in (
        {"kind": "other"},
        {"kind": "gradient"},
        {"kind": "labels"},
        {"geometry": None},
        {"ids": good.ids[:2]},
        {"ids": good.ids.astype(np.int32)},
        {"functional": good.functional[:1]},
        {"functional": good.functional.astype(np.int32)},
        {"values": good.values[:, :2]},
        {"values": good.values.astype(np.float64)},
        {"shape": (5, 4)},
        {"shape": (5, 5, 1)},
        {"shape": (0, 4, 1)},
    ):
        with pytest.raises(ShapeError):
            dataclasses.replace(good, **change)


def test_requests_hold_functions_and_no_values(tmp_path):
    for like in (forward(), gradient()):
        kind = f"{like.kind} request"
        request = asked(kind, like.ids, like.geometry, like.functional, step=3)
        write(tmp_path / kind, request)
        [read] = read_releases(tmp_path / kind)
        same(read, request)
        with pytest.raises(ShapeError, match="belong together"):
            dataclasses.replace(request, values=like.values)
        with pytest.raises(ShapeError, match="belong together"):
            dataclasses.replace(like, values=request.values)


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
    release = Release(
        "forward", 0, np.zeros(1, np.int64), dense, np.ones((3, 1, 1, 20), np.int16),
        np.zeros((1, 1, 1, 3), np.int64), (5, 4, 1),
    )  # fmt: skip
    write(tmp_path / "log", release)
    same(next(iter(read_releases(tmp_path / "log"))), release)
