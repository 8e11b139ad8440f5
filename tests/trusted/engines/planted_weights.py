"""Weights that can be recognised: finds eight bytes in a row of them, anywhere."""

import contextlib
import os
from pathlib import Path

import numpy as np

WINDOW = 8


def planted(nbytes, seed=11):
    """Random bytes that are normal float32 numbers of both signs, between 0.25 and 2."""
    rng = np.random.default_rng(seed)
    return (
        (rng.uniform(0.25, 2.0, nbytes // 4) * rng.choice([-1, 1], nbytes // 4))
        .astype(np.float32)
        .tobytes()
    )


def _windows(data):
    """Each run of eight bytes, at every offset."""
    if len(data) < WINDOW:
        return np.empty(0, np.uint64)
    flat = np.frombuffer(data, np.uint8)
    return np.unique(np.lib.stride_tricks.sliding_window_view(flat, WINDOW).copy().view("<u8"))


def found(secret, data):
    """How many runs of eight bytes of `secret` are in `data`, in any order."""
    wanted = _windows(secret)
    # Where packed weights are padded, bytes of a weight lie among zeros, as elsewhere.
    many = (wanted.view(np.uint8).reshape(-1, WINDOW) == 0).sum(axis=1) < WINDOW // 2
    return int(np.isin(_windows(data), wanted[many]).sum())


def leaks(secret, places):
    """What holds a part of the secret: (name, runs) for each; places are names and bytes."""
    seen = ((name, found(secret, data)) for name, data in places)
    return [(name, count) for name, count in seen if count]


def files(*folders):
    """All files below some folders, and what each contains."""
    for folder in folders:
        for parent, _, names in os.walk(folder):
            for name in names:
                path = Path(parent, name)
                if path.is_file() and not path.is_symlink():
                    yield str(path), path.read_bytes()


def of_process(pid):
    """What a process shows of itself: its arguments and, to root, its environment."""
    for name in ("cmdline", "environ"):
        path = Path(f"/proc/{pid}/{name}")
        with contextlib.suppress(PermissionError):
            yield str(path), path.read_bytes()
