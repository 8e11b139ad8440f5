"""A share of a pad as a worker may see it: digits whose products do not wrap, and their check.

The product of a uniform 32-bit share wraps modulo 2^32, and no check modulo a prime sees through
that. A balanced digit is as small as an activation: `|A d| < 2^31`, so that the answer is an
integer and Freivalds' check applies as it stands. Proofs: docs/protocols/padfactory.md.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int16, Int32, UInt32, UInt64

from cloister import _native
from cloister.crypto.csprng import Csprng
from cloister.errors import RangeError
from cloister.field.freivalds import P52, CheckVectors, draw_dense
from cloister.field.linear import LinearMap
from cloister.wire.messages import TensorSpec

RING_BITS = 32
MAX_DIGIT_BITS = 16
MAX_FUSED_BITS = 13
"""2^12 is the largest power of two that the native pass takes as `qmax`."""
BLOCK_WORDS = 1 << 16
"""Words cut into digits at a time, so that all steps but the first find them in the cache."""


@dataclass(frozen=True)
class Digits:
    """How a word of Z_2^32 is written as balanced digits, lowest first.

    Domain   digit k lies in [-2^(w_k - 1), 2^(w_k - 1)); the widths w_k sum to 32
    """

    widths: tuple[int, ...]

    @property
    def shifts(self) -> tuple[int, ...]:
        """The power of two each digit stands for."""
        return tuple(sum(self.widths[:k]) for k in range(len(self.widths)))

    @staticmethod
    def of(linear: LinearMap) -> "Digits":
        """The fewest digits d for which |A d| < 2^31 is proved, nearly equal in width.

        Raises   RangeError when even digits of one bit may wrap, which no plan contains
        """
        magnitudes = np.abs(linear.weights.astype(np.int64))
        largest = max(int(magnitudes.sum(axis=(1, 2, 3)).max()), 1)
        # 2^(width - 1) * largest <= 2^31 - 1.
        widest = min(((2**31 - 1) // largest).bit_length(), MAX_DIGIT_BITS)
        if widest < 1:
            raise RangeError("linear map: the weights' sum exceeds 2^31; lower --weight-bits")
        count = -(-RING_BITS // widest)
        low = -(-RING_BITS // count)
        rest = RING_BITS - low * (count - 1)
        # For every width from 1 to 16 the last digit has at least one bit.
        return Digits((low,) * (count - 1) + (rest,))


class _Emitter:
    """Writes digits as int16 and returns `<t, digits> mod P52`.

    Small digits take the fused native pass: they are exact in float32, at most `qmax` in magnitude
    and stand for themselves at scale 1. Larger ones take the plain dot product.
    """

    def __init__(self, t: UInt64[np.ndarray, " words"], *, widest: int) -> None:
        self._t = t
        self._pass = None
        if widest <= MAX_FUSED_BITS:
            sink = (1.0, 1 << (widest - 1))
            self._pass = _native.Pass(1, 1, len(t), None, None, -np.inf, np.inf, None, [sink])
            self._pass.set_sink_check(0, t, None)

    def __call__(
        self, digits: Int32[np.ndarray, " words"], out: Int16[np.ndarray, " words"]
    ) -> int:
        if self._pass is None:
            out[:] = digits
            return _native.freivalds_dot(self._t, digits)
        unused, found = np.empty(1, np.uint64), np.empty((1, 1), np.uint64)
        values = digits.astype(np.float32).reshape(1, 1, 1, -1)
        sink = out.reshape(1, 1, 1, -1)
        self._pass.run(
            1, values, None, None, None, None, [sink], [None], [None], [None], unused, found
        )
        return int(found[0, 0])


class Splitter:
    """Cuts shares into digits and sums them for the check.

    Secret   t, which must not change while this object is used
    """

    def __init__(self, digits: Digits, t: UInt64[np.ndarray, " words"]) -> None:
        self._fields = tuple(zip(digits.shifts, digits.widths, strict=True))
        widest = max(digits.widths)
        self._blocks = [
            (start, _Emitter(t[start : start + BLOCK_WORDS], widest=widest))
            for start in range(0, len(t), BLOCK_WORDS)
        ]

    def split(
        self, share: UInt32[np.ndarray, " words"], limbs: Int16[np.ndarray, "digits words"]
    ) -> UInt64[np.ndarray, " digits"]:
        """Write a share's digits to `limbs`, each word once; `<t, digit> mod P52` of each.

        Let c have the top bit of every digit set. The plain digits of share + c, less half their
        range each, are balanced digits of the share, because the subtractions take c away again;
        and a digit less half its range is the digit with its top bit flipped, read as signed.
        """
        c = np.uint32(sum(1 << (shift + width - 1) for shift, width in self._fields))
        sums = [0] * len(self._fields)
        words, digit = np.empty((2, min(BLOCK_WORDS, len(share))), np.uint32)
        for start, emit in self._blocks:
            stop = min(start + BLOCK_WORDS, len(share))
            w, d = words[: stop - start], digit[: stop - start]
            signed = d.view(np.int32)
            np.add(share[start:stop], c, out=w)
            np.bitwise_xor(w, c, out=w)
            for k, (shift, width) in enumerate(self._fields):
                # The field goes to the top of the word and comes down with its sign.
                np.left_shift(w, np.uint32(RING_BITS - shift - width), out=d)
                np.right_shift(signed, np.int32(RING_BITS - width), out=signed)
                sums[k] = (sums[k] + emit(signed, limbs[k, start:stop])) % P52
        words.fill(0)
        digit.fill(0)
        return np.array(sums, np.uint64)


class SharedNode:
    """A blinded node: how its shares are cut, and the secret check of its answers."""

    def __init__(self, index: int, name: str, linear: LinearMap) -> None:
        self.index = index
        self.name = name
        self.linear = linear
        self.geometry = linear.geometry
        self.digits = Digits.of(linear)
        count = len(self.digits.widths)
        self.request = TensorSpec(np.dtype(np.int16), (count, *self.geometry.in_shape))
        self.answer = TensorSpec(np.dtype(np.uint32), (count, *self.geometry.out_shape))
        channels = self.geometry.out_channels
        # Only this pass's sum is used; its floating-point side has nowhere to go.
        self._pass = _native.Pass(
            *self.geometry.out_shape,
            np.ones(channels, np.float32),
            np.zeros(channels, np.float32),
            -np.inf,
            np.inf,
            None,
            [],
        )
        self.vectors: CheckVectors | None = None
        self._splitter: Splitter | None = None

    def splitter(self, rng: Csprng) -> Splitter:
        """What cuts this node's shares; draws the check vectors when there are none."""
        if self._splitter is None:
            self.vectors = draw_dense(self.linear, rng=rng)
            self._pass.set_check(self.vectors.a, self.vectors.b)
            self._splitter = Splitter(self.digits, self.vectors.rows.reshape(-1))
        return self._splitter

    def forget(self) -> None:
        """Overwrite the check vectors; `splitter` draws new ones."""
        if self.vectors is not None:
            self.vectors.erase()
        self.vectors = self._splitter = None

    def answer_sum(self, z: UInt32[np.ndarray, "1 h w c"]) -> int:
        """`<s, z> mod P52` of private memory, read as centred values."""
        total = np.zeros(1, np.uint64)
        nothing = np.empty((0, 1), np.uint64)
        self._pass.run(1, z, None, None, None, None, [], [], [], [], total, nothing)
        return int(total[0])
