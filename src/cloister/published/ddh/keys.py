"""Keys and ciphertexts of the schemes over a group, and their bytes."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt8

from cloister.errors import EncryptionError
from cloister.published.ddh import serial
from cloister.published.ddh.parameters import Public
from cloister.published.released import Keep, Released, stored_bytes
from cloister.published.scheme import Op
from cloister.ring.rank import Basis


@dataclass(frozen=True, repr=False, eq=False)
class EncryptionKey:
    """The clients' key, which is public: g (and h), h_1 .. h_dim, and FEBO's own g^s.

    `points` has secrets + dim + 1 rows.
    """

    public: Public
    points: UInt8[np.ndarray, "rows element_bytes"]

    @property
    def inner(self) -> UInt8[np.ndarray, "rows element_bytes"]:
        """The rows of the inner-product scheme."""
        return self.points[:-1]

    @property
    def elements(self) -> UInt8[np.ndarray, "2 element_bytes"]:
        """G and FEBO's key."""
        return self.points[[0, -1]]

    def to_bytes(self) -> bytes:
        """Canonical bytes."""
        return serial.pack(serial.Kind.ENCRYPTION_KEY, self.public, (1, 1), self.points)

    @classmethod
    def from_bytes(cls, data: bytes) -> "EncryptionKey":
        """Checked bytes: every element is in the group and not its identity.

        Raises   EncryptionError
        """
        reader = serial.Reader(data, serial.Kind.ENCRYPTION_KEY, shape=(1, 1))
        public = reader.public
        points = reader.elements((public.secrets + public.bounds.dim + 1,), identity=False)
        reader.end()
        return cls(public, points)


@dataclass(frozen=True, repr=False, eq=False)
class MasterKey:
    """The authority's secret: `scalars` are s_1 .. s_dim, (t_1 .. t_dim,) and FEBO's s.

    `released` counts the functions that keys were made for. It goes with the secret, in one file.
    """

    public: Public
    scalars: UInt8[np.ndarray, "rows scalar_bytes"]
    released: Released

    @classmethod
    def counting(
        cls,
        public: Public,
        scalars: UInt8[np.ndarray, "rows scalar_bytes"],
        *,
        basis: Basis,
        budget: int,
        keep: Keep | None,
    ) -> "MasterKey":
        """With a count that `keep`, if there is one, brings to stable storage.

        Raises   EncryptionError
        """

        def kept(before: Basis, grown: Basis) -> None:
            if keep is not None:
                old = _master_bytes(public, scalars, before, budget)
                keep(_master_bytes(public, scalars, grown, budget), replaces=old)

        return cls(public, scalars, Released(basis, budget=budget, name="ddh", keep=kept))

    def inner(self, which: int) -> UInt8[np.ndarray, "dim scalar_bytes"]:
        """S (0) or t (1)."""
        dim = self.public.bounds.dim
        return self.scalars[which * dim : (which + 1) * dim]

    @property
    def elements(self) -> UInt8[np.ndarray, "1 scalar_bytes"]:
        """FEBO's s."""
        return self.scalars[-1:]

    def to_bytes(self) -> bytes:
        """The secret in the clear with its count so far: for the authority's own file only."""
        released = self.released
        return _master_bytes(self.public, self.scalars, released.basis, released.budget)

    @classmethod
    def from_bytes(cls, data: bytes, *, keep: Keep | None) -> "MasterKey":
        """Checked bytes, the newest there are: an older count would be forgotten functions.

        keep     as `setup`; None only for a copy that makes no keys, or that nobody else makes
        Raises   EncryptionError
        """
        reader = serial.Reader(data, serial.Kind.MASTER_KEY)
        public, (budget, rank) = reader.public, reader.shape
        state = reader.state(stored_bytes(public.bounds.dim, rank))
        scalars = reader.scalars((public.secrets * public.bounds.dim + 1,))
        reader.end()
        basis = Basis.from_bytes(state)
        if (basis.dim, basis.rank) != (public.bounds.dim, rank):
            raise EncryptionError("ddh master key: its count is of another dimension or rank")
        return cls.counting(public, scalars, basis=basis, budget=budget, keep=keep)


def _master_bytes(
    public: Public, scalars: UInt8[np.ndarray, "rows scalar_bytes"], basis: Basis, budget: int
) -> bytes:
    state = np.frombuffer(basis.to_bytes(), np.uint8)
    return serial.pack(serial.Kind.MASTER_KEY, public, (budget, basis.rank), state, scalars)


@dataclass(frozen=True, eq=False)
class Ciphertexts:
    """n encrypted vectors: per row g^r, (h^r,) and h_j^r g^x_j."""

    public: Public
    elements: UInt8[np.ndarray, "n columns element_bytes"]

    @property
    def ids(self) -> Int64[np.ndarray, " n"]:
        """Row numbers: keys are not bound to ciphertexts."""
        return np.arange(len(self.elements), dtype=np.int64)

    def to_bytes(self) -> bytes:
        """Canonical bytes."""
        shape = (len(self.elements), 1)
        return serial.pack(serial.Kind.CIPHERTEXTS, self.public, shape, self.elements)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Ciphertexts":
        """Checked bytes: every element is in the group and not its identity.

        Raises   EncryptionError
        """
        reader = serial.Reader(data, serial.Kind.CIPHERTEXTS, shape=(None, 1))
        public = reader.public
        columns = public.secrets + public.bounds.dim
        elements = reader.elements((reader.shape[0], columns), identity=False)
        reader.end()
        return cls(public, elements)


@dataclass(frozen=True, eq=False)
class FunctionKey:
    """Keys of k vectors y: per vector sum_j y_j s_j (and sum_j y_j t_j)."""

    public: Public
    y: Int64[np.ndarray, "k dim"]
    scalars: UInt8[np.ndarray, "k secrets scalar_bytes"]

    def to_bytes(self) -> bytes:
        """Canonical bytes."""
        kind = serial.Kind.FUNCTION_KEY
        return serial.pack(kind, self.public, (len(self.y), 1), self.y, self.scalars)

    @classmethod
    def from_bytes(cls, data: bytes) -> "FunctionKey":
        """Checked bytes.

        Raises   EncryptionError
        """
        reader = serial.Reader(data, serial.Kind.FUNCTION_KEY, shape=(None, 1))
        bounds, k = reader.public.bounds, reader.shape[0]
        y = reader.numbers((k, bounds.dim), bound=bounds.y_bound)
        scalars = reader.scalars((k, reader.public.secrets))
        reader.end()
        return cls(reader.public, y, scalars)


@dataclass(frozen=True, eq=False)
class ElementCiphertexts:
    """A matrix encrypted entry by entry: g^r and h^r g^x for every entry."""

    public: Public
    commitments: UInt8[np.ndarray, "a b element_bytes"]
    values: UInt8[np.ndarray, "a b element_bytes"]

    def to_bytes(self) -> bytes:
        """Canonical bytes."""
        a, b, _ = self.values.shape
        kind = serial.Kind.ELEMENT_CIPHERTEXTS
        return serial.pack(kind, self.public, (a, b), self.commitments, self.values)

    @classmethod
    def from_bytes(cls, data: bytes) -> "ElementCiphertexts":
        """Checked bytes: every element is in the group and not its identity.

        Raises   EncryptionError
        """
        reader = serial.Reader(data, serial.Kind.ELEMENT_CIPHERTEXTS)
        commitments = reader.elements(reader.shape, identity=False)
        values = reader.elements(reader.shape, identity=False)
        reader.end()
        return cls(reader.public, commitments, values)


@dataclass(frozen=True, eq=False)
class ElementKey:
    """One operation with a known operand on every entry of one ciphertext."""

    public: Public
    op: Op
    y: Int64[np.ndarray, "a b"]
    elements: UInt8[np.ndarray, "a b element_bytes"]

    def to_bytes(self) -> bytes:
        """Canonical bytes."""
        kind = serial.ELEMENT_KEYS[self.op]
        a, b = self.y.shape
        return serial.pack(kind, self.public, (a, b), self.y, self.elements)

    @classmethod
    def from_bytes(cls, data: bytes) -> "ElementKey":
        """Checked bytes; the key of a product with zero is the identity.

        Raises   EncryptionError
        """
        op, kind = serial.element_operation(data)
        reader = serial.Reader(data, kind)
        y = reader.numbers(reader.shape, bound=reader.public.bounds.y_bound)
        elements = reader.elements(reader.shape, identity=op == "*")
        reader.end()
        return cls(reader.public, op, y, elements)
