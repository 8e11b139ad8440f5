"""Options about other parties that make the pads."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from cloister.cli.options import WORKING, refuse_given
from cloister.errors import InputError
from cloister.trusted.pads.makers import MakerAddress

MakerAddresses = Annotated[
    list[str] | None,
    typer.Option(
        "--maker",
        metavar="HOST:PORT",
        help="Who makes the pads: another party than any worker. Repeatable. Default: made here.",
        rich_help_panel=WORKING,
    ),
]
MakerCertificates = Annotated[
    list[Path] | None,
    typer.Option(
        "--maker-certificate",
        metavar="FILE",
        help="The certificate.pem that `worker serve --tls` made. One for each --maker, in order.",
        rich_help_panel=WORKING,
    ),
]
InsecurePlaintext = Annotated[
    bool,
    typer.Option(
        "--insecure-plaintext",
        help="For tests: reach makers without encryption. A listener then knows the pads.",
        rich_help_panel=WORKING,
    ),
]
InsecureOneParty = Annotated[
    bool,
    typer.Option(
        "--insecure-one-party",
        help="For tests: allow a maker on the machine of a worker. Its owner can read the inputs.",
        rich_help_panel=WORKING,
    ),
]


@dataclass(frozen=True)
class PadMakers:
    """Who makes the pads of a run."""

    maker: MakerAddresses = None
    maker_certificate: MakerCertificates = None
    insecure_plaintext: InsecurePlaintext = False
    insecure_one_party: InsecureOneParty = False

    def addresses(self, *, stored: bool) -> list[MakerAddress]:
        """Where the makers are; none where no maker is given.

        stored   whether the pads are from a store, which makers may have filled

        Raises   InputError naming the option
        """
        found = maker_addresses(self.maker, self.maker_certificate, self.insecure_plaintext)
        if stored:
            refuse_given("--pads has pads; leave it out", {"--maker": self.maker})
        elif not found:
            one_party = self.insecure_one_party or None
            refuse_given("goes with --maker or --pads", {"--insecure-one-party": one_party})
        return found


def maker_addresses(
    makers: list[str] | None, certificates: list[Path] | None, insecure_plaintext: bool
) -> list[MakerAddress]:
    """Each --maker with its --maker-certificate.

    Raises   InputError naming the option
    """
    if not makers:
        given = {
            "--maker-certificate": certificates or None,
            "--insecure-plaintext": insecure_plaintext or None,
        }
        refuse_given("goes with --maker", given)
        return []
    if not certificates and insecure_plaintext:
        return [MakerAddress(maker) for maker in makers]
    if len(certificates or ()) != len(makers):
        raise InputError(
            f"--maker-certificate: {len(certificates or ())} for {len(makers)} --maker; give one "
            "for each: DIR/certificate.pem of its `cloister worker serve --tls DIR` "
            "(--insecure-plaintext: for tests)"
        )
    return list(map(MakerAddress, makers, certificates or ()))
