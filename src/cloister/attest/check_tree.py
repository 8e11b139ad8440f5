"""The tree of checks of one piece of evidence: passed, failed or not made, and each with a reason.

A verifier names the steps it will take before it takes them. So a step that an error kept from
being taken stands in the tree as not made, and never as passed.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum

from cloister.errors import AttestationError


class CheckState(StrEnum):
    """How a check went."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_CHECKED = "not checked"


@dataclass
class Check:
    """A check, and those it consists of."""

    name: str
    state: CheckState = CheckState.NOT_CHECKED
    detail: str = ""
    parts: list["Check"] = field(default_factory=list)

    def expect(self, *names: str) -> None:
        """Announce checks, which count as not made until `step` makes them."""
        self.parts += [Check(name) for name in names]

    @contextmanager
    def step(self, name: str) -> Iterator["Check"]:
        """Make a check: it has passed when the block was left without an error.

        Raises   AttestationError, from the block
        """
        check = next((part for part in self.parts if part.name == name), None)
        if check is None or check.state is not CheckState.NOT_CHECKED:
            check = Check(name)
            self.parts.append(check)
        try:
            yield check
        except AttestationError as error:
            check.state, check.detail = CheckState.FAILED, str(error)
            raise
        check.state = CheckState.PASSED

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Make the checks below this one: it has failed when the block was left by an error.

        Raises   AttestationError, from the block
        """
        try:
            yield
        except AttestationError:
            self.state = CheckState.FAILED
            raise
        self.state = CheckState.PASSED

    def leave(self, name: str, why: str) -> None:
        """Say that a check is not made, and why."""
        check = next((part for part in self.parts if part.name == name), None)
        if check is None:
            check = Check(name)
            self.parts.append(check)
        # One that was begun and lacked a part was not made either.
        check.state, check.detail = CheckState.NOT_CHECKED, why

    def to_json(self) -> dict[str, object]:
        """The tree in plain values."""
        found: dict[str, object] = {"name": self.name, "state": self.state.value}
        if self.detail:
            found["detail"] = self.detail
        if self.parts:
            found["parts"] = [part.to_json() for part in self.parts]
        return found


def refused(field_name: str, *, expected: object, found: object, remedy: str) -> AttestationError:
    """The error of a check that failed: field, expected, found, and what to do."""
    return AttestationError(
        f"{field_name}: expected {shown(expected)}, found {shown(found)}; {remedy}"
    )


def require_equal(field_name: str, found: object, expected: object, *, remedy: str) -> None:
    """Refuse a value that is not the one expected.

    Raises   AttestationError
    """
    if found != expected:
        raise refused(field_name, expected=expected, found=found, remedy=remedy)


def shown(value: object) -> str:
    """A value for people: bytes in hexadecimal, truth as in TOML, the choices of a list by "or"."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {shown(one)}" for name, one in value.items())
    if isinstance(value, bytes):
        return (
            value.hex() if len(value) <= MAX_SHOWN_BYTES else value[:MAX_SHOWN_BYTES].hex() + ".."
        )
    if isinstance(value, list | tuple | set | frozenset):
        return " or ".join(shown(one) for one in value) or "none"
    text = str(value)
    return text if len(text) <= MAX_SHOWN_CHARS else text[:MAX_SHOWN_CHARS] + ".."


MAX_SHOWN_BYTES, MAX_SHOWN_CHARS = 64, 512
