"""What an engine shows of a module's sizes and times: those of a profile, in place of its own."""

from dataclasses import dataclass

from cloister.errors import InputError


@dataclass(frozen=True)
class PaddingProfile:
    """Rounds up what the owner of the machine can measure from outside.

    memory_bytes   that code, weights and scratch memory take together, with padding that is sent
                   and touched as they are; None: the next power of two
    grid_ms        the process answers only at multiples of it after a request, and computes until
                   then; a module that takes longer than one shows how many

    Raises   InputError
    """

    memory_bytes: int | None = None
    grid_ms: float = 10.0

    def __post_init__(self) -> None:
        if not 0.001 <= self.grid_ms <= 60_000:
            raise InputError(f"padding: a grid of {self.grid_ms:g} ms; give 0.001 to 60000")

    @property
    def grid_ns(self) -> int:
        """The grid in nanoseconds."""
        return round(self.grid_ms * 1e6)

    def added_bytes(self, nbytes: int) -> int:
        """The padding of so many bytes.

        Raises   InputError for more bytes than the profile has
        """
        wanted = 1 << (nbytes - 1).bit_length() if self.memory_bytes is None else self.memory_bytes
        if nbytes > wanted:
            raise InputError(f"padding to {wanted} B: the module takes {nbytes} B; give more")
        return wanted - nbytes
