"""Reading binary structures whose bytes nobody vouches for yet."""

from cloister.errors import AttestationError


class Fields:
    """Bytes of a structure, read by offset.

    what   names the structure in errors

    Raises   AttestationError from every method when the structure is too short
    """

    def __init__(self, data: bytes, what: str) -> None:
        self.data = data
        self._what = what

    def raw(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on."""
        if offset < 0 or size < 0 or offset + size > len(self.data):
            raise AttestationError(
                f"{self._what}: cut short: {len(self.data)} bytes, needs {offset + size}; give the "
                "whole file"
            )
        return self.data[offset : offset + size]

    def number(self, offset: int, size: int) -> int:
        """A little-endian number without sign."""
        return int.from_bytes(self.raw(offset, size), "little")

    def rest(self, offset: int) -> bytes:
        """Everything from `offset` on."""
        self.raw(0, offset)
        return self.data[offset:]

    def require_zeros(self, begin: int, end: int) -> None:
        """Refuse a gap of the format that is not empty: a newer format would mean something by it.

        Raises   AttestationError
        """
        if any(self.raw(begin, end - begin)):
            raise AttestationError(
                f"{self._what}: bytes {begin:#x} to {end:#x} must be zero; this version does not "
                "know what they mean"
            )
