"""Gaussian noise with an accountant: on the samples before they are encrypted, or on gradients.

The accountant is dp-accounting (Google). Noise is added to integers of a grid, and drawn as
integers of the same grid, so the low bits of a float cannot tell a neighbouring input (Mironov
2012 is the attack). `cloister.training.private` has the mechanism on gradients.
"""

import hashlib
import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from jaxtyping import Float, Float64

from cloister.base.hkdf import derive
from cloister.base.rng import Csprng
from cloister.data.encoding import Encoding
from cloister.errors import InputError, RangeError

Where = Literal["gradients", "ciphertexts"]


@dataclass(frozen=True)
class GaussianNoise:
    """Noise of standard deviation `sigma` times the bound of what is protected.

    on       gradients: the bound is `clip`, the largest norm of one sample's gradient.
             ciphertexts: the bound is the encoding's range, for every field on its own.
    delta    of the (epsilon, delta) that is reported
    """

    sigma: float
    on: Where
    clip: float = 1.0
    delta: float = 1e-5

    def __post_init__(self) -> None:
        if self.on not in ("gradients", "ciphertexts"):
            raise InputError(f"noise: on must be gradients or ciphertexts, got {self.on!r}")
        for name in ("sigma", "clip", "delta"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise RangeError(f"noise: {name} must be positive, got {value}")
        if self.delta >= 1:
            raise RangeError(f"noise: delta must be below 1, got {self.delta}")


@dataclass(frozen=True)
class StepNoise:
    """The randomness of one step's noise: a pseudorandom function of the values it hides.

    A step that is made again after a crash has the same noise if all of it is the same: two noises
    on one sum would average out. If anything differs, such as a server's answer, its noise is
    independent: one noise on two sums would cancel in their difference.

    seen     digest of the answers of other parties in this step. With the sums alone, equal noise
             would show that an altered answer changes a sum by nothing at all.
    Secret   key
    """

    key: bytes
    epoch: int
    step: int
    seen: Callable[[], bytes]

    def of(self, name: str, values: Float64[np.ndarray, "..."], *, unit: float) -> Csprng:
        """The generator of one tensor's noise; `values` are integers in steps of `unit`."""
        described = repr((name, unit.hex(), values.shape)).encode()
        parts = (described, values.tobytes(), self.seen())
        hides = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).digest()
        where = f"cloister noise of step {self.epoch} {self.step} ".encode()
        return _Stream(derive(self.key, info=where + hides))


class _Stream:
    def __init__(self, key: bytes) -> None:
        self._stream = Cipher(AES(key), CTR(bytes(16))).encryptor()

    def random_bytes(self, n: int) -> bytes:
        """`n` bytes of the stream."""
        return self._stream.update(bytes(n))


def gaussian(count: int, *, rng: Csprng) -> Float64[np.ndarray, " count"]:
    """Standard normal values by Box and Muller's transform of uniform 53-bit fractions."""
    half = -(-count // 2)
    words = np.frombuffer(rng.random_bytes(16 * half), np.uint64) >> np.uint64(11)
    u, v = ((words.astype(np.float64) + 0.5) * 2.0**-53).reshape(2, half)
    radius = np.sqrt(-2 * np.log(u))
    return np.concatenate([radius * np.cos(2 * np.pi * v), radius * np.sin(2 * np.pi * v)])[:count]


def perturb(
    x: Float[np.ndarray, "n ..."], noise: GaussianNoise, *, encoding: Encoding, rng: Csprng
) -> Float64[np.ndarray, "n ..."]:
    """Samples with noise, cut to the encoding's range: local privacy, before encryption."""
    if noise.on != "ciphertexts":
        raise InputError("noise: this noise is for gradients; clients add noise on ciphertexts")
    deviation = noise.sigma * (encoding.high - encoding.low)
    noisy = x + deviation * gaussian(x.size, rng=rng).reshape(x.shape)
    return np.asarray(np.clip(noisy, encoding.low, encoding.high), np.float64)


def epsilon(noise: GaussianNoise, *, epochs: int = 1, fields: int = 1) -> float:
    """Epsilon at `noise.delta`.

    gradients     after `epochs` epochs, for one sample replaced: sensitivity 2 clip, and in one
                  epoch each sample enters one noisy sum. Nothing rests on secret sampling.
    ciphertexts   for `fields` fields of one sample changed arbitrarily within the range
    Raises        InputError without dp-accounting
    """
    if noise.on == "gradients":
        multiplier, times = noise.sigma / 2, epochs
    else:
        multiplier, times = noise.sigma / math.sqrt(fields), 1
    accounting = _accounting()
    accountant = accounting.rdp.RdpAccountant()
    accountant.compose(accounting.GaussianDpEvent(multiplier), times)
    return float(accountant.get_epsilon(noise.delta))


def _accounting() -> Any:  # noqa: ANN401  (a module that may be absent has no static type)
    try:
        importlib.import_module("dp_accounting.rdp")
        return importlib.import_module("dp_accounting")
    except ImportError as error:
        raise InputError("noise needs an accountant: pip install 'cloister[train]'") from error
