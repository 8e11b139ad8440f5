"""A counter that only goes up: it tells a meter whether its ledger was put back."""

from typing import Protocol


class MonotonicCounter(Protocol):
    """A counter outside of a meter's folder, which counts the outputs that were released.

    It counts outputs, and not entries of the ledger: of all copies of a ledger, each entry of which
    moves the counter by as many steps as outputs, none can release what another one has released.
    """

    @property
    def kind(self) -> str:
        """One of `CounterKind`, as tickets name it."""
        ...

    @property
    def identity(self) -> bytes:
        """Which counter of its kind it is, 32 bytes."""
        ...

    def read(self) -> int:
        """Its value.

        Raises   CounterError, or the error of a service that cannot be reached
        """
        ...

    def advance(self, before: int, to: int) -> None:
        """Move it from `before` to `to`, which is larger; on stable storage when this returns.

        It returns only if nobody else has moved the counter meanwhile. A process that is killed
        may leave it between the two.

        Raises   CounterError when it is not at `before` or was moved, and as `read`
        """
        ...
