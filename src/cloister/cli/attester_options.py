"""What proves this machine to others, on the command line."""

from pathlib import Path
from typing import Annotated

import typer

from cloister.attest.attester import Attester, attesters
from cloister.attest.simulated import SimulatedAttester
from cloister.base.rng import Csprng
from cloister.errors import AttestationError

PROVING = "What this machine proves of itself"
SimulatedMachineKey = Annotated[
    Path | None,
    typer.Option(
        "--insecure-simulated",
        metavar="KEY.pem",
        help="For tests: prove nothing, by evidence of a program that plays a machine, signed by "
        "this Ed25519 key.",
        rich_help_panel=PROVING,
    ),
]


def attester_of(insecure_simulated: Path | None, *, rng: Csprng) -> Attester:
    """The interface that proves this machine.

    Raises   AttestationError where there is none
    """
    if insecure_simulated is not None:
        return SimulatedAttester(insecure_simulated.absolute())
    found = attesters(rng=rng)
    if not found:
        raise AttestationError(
            "this machine has no interface that proves anything; run in a confidential virtual "
            "machine or an enclave (for tests: --insecure-simulated)"
        )
    return found[0]
