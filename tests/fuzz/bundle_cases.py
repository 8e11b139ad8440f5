"""Hostile bundles: none is opened but what a holder of both keys made consistent."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bundle.hostile import ATTACKS, Good, hidden_part_changed_and_signed
from cloister.bundle.sealed_bundle import SealedBundle
from cloister.errors import CloisterError
from fuzz.bounds import FindingError
from fuzz.case import Case, Maker
from fuzz.structures import pick


@contextmanager
def bundles(folder: Path) -> Iterator[Maker]:
    """Cases; each writes the bundle's file into a folder."""
    good = Good.made(folder)
    genuine, path = good.genuine(), folder / "hostile.bundle"

    def case(rng) -> Case:
        attack = pick(rng, (*ATTACKS, hidden_part_changed_and_signed))
        call = attack(good, rng)
        while call in genuine:
            call = attack(good, rng)

        def run() -> None:
            with suppress(CloisterError):
                path.write_bytes(call.data)
                SealedBundle.show(path)
            call.open(path)
            if attack is not hidden_part_changed_and_signed:
                raise FindingError("accepted", attack.__name__)

        return Case(attack.__name__, call.data, run)

    yield case
