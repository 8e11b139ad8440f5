"""Options of a run whose trusted side is another machine."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from cloister.attest.appraiser import Appraiser
from cloister.attest.collateral import Collateral
from cloister.attest.policy import Policy
from cloister.cli.console import note
from cloister.cli.options import Execution, refuse_given
from cloister.errors import InputError
from cloister.tickets.receipt_files import save_receipt
from cloister.trusted.metered_session import MeteredResult
from cloister.trusted.session import DEFAULT_BATCH

ELSEWHERE = "On another machine, which proves itself first"
OPERATOR = "is decided by the operator of the --trusted machine; leave it out"

TrustedUrl = Annotated[
    str | None,
    typer.Option(
        "--trusted",
        metavar="URL",
        help="Run all of it there: https://HOST:PORT of `cloister trusted serve`.",
        rich_help_panel=ELSEWHERE,
    ),
]
AppraisalPolicy = Annotated[
    Path | None,
    typer.Option(
        "--appraisal",
        metavar="policy.toml",
        help="What that machine has to prove (cloister attest policy init).",
        rich_help_panel=ELSEWHERE,
    ),
]
AppraisalCollateral = Annotated[
    list[Path] | None,
    typer.Option(
        "--collateral",
        metavar="DIR|FILE",
        help="Certificates and lists that go with its evidence. Repeatable.",
        rich_help_panel=ELSEWHERE,
    ),
]

ReceiptsTo = Annotated[
    Path | None,
    typer.Option(
        "--receipts",
        metavar="DIR",
        help="Where receipts of that machine are kept, if a ticket buys its outputs.",
        rich_help_panel=ELSEWHERE,
    ),
]


@dataclass(frozen=True)
class TrustedElsewhere:
    """The machine that is the trusted side of a run, if it is not this one."""

    trusted: TrustedUrl = None
    appraisal: AppraisalPolicy = None
    collateral: AppraisalCollateral = None
    receipts: ReceiptsTo = None

    def appraiser(self) -> Appraiser | None:
        """What judges that machine; None where this one is the trusted side.

        Raises   InputError
        """
        if self.trusted is None:
            given = {
                "--appraisal": self.appraisal, "--collateral": self.collateral or None,
                "--receipts": self.receipts,
            }  # fmt: skip
            refuse_given("goes with --trusted", given)
            return None
        if self.appraisal is None:
            raise InputError(
                f"--trusted {self.trusted}: give --appraisal policy.toml, what that machine has to "
                "prove (`cloister attest policy init policy.toml` writes one)"
            )
        return Appraiser(Policy.load(self.appraisal), Collateral.load(self.collateral or ()))

    def save(self, result: MeteredResult) -> Path | None:
        """Write the receipt of a run; None: nobody said where.

        Raises   InputError
        """
        if self.receipts is None:
            note("a receipt came with the outputs and is not kept; give --receipts DIR to keep it")
            return None
        return save_receipt(self.receipts, result.receipt, result.opening)

    def refuse_execution(self, given: Execution) -> None:
        """Refuse options that the operator of that machine decides.

        Raises   InputError naming the first
        """
        refuse_given(
            OPERATOR,
            {
                "--worker": given.worker,
                "--threads": given.threads if given.threads != 1 else None,
                "--worker-threads": given.worker_threads,
                "--batch": given.batch if given.batch != DEFAULT_BATCH else None,
                "--lanes": given.lanes,
                "--timeout": given.timeout,
            },
        )
