"""`cloister attest`: evidence that machines show, and the policies that it is compared with."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text
from rich.tree import Tree

from cloister.attest.appraisal import appraise
from cloister.attest.attester import attesters
from cloister.attest.check_tree import Check, CheckState, shown
from cloister.attest.collateral import Collateral
from cloister.attest.policy import Policy, template
from cloister.attest.report_data import REPORT_DATA_BYTES
from cloister.attest.simulated import SimulatedAttester
from cloister.attest.verified_evidence import Format, VerifiedEvidence
from cloister.attest.verify import read_evidence, verify
from cloister.base import files
from cloister.base.reading import parsing
from cloister.base.rng import SystemRandom
from cloister.cli import options
from cloister.cli.console import emit_json, err, out
from cloister.errors import AttestationError, InputError, printable

app = typer.Typer(help="Check what a machine proves of itself.", no_args_is_help=True)
policies = typer.Typer(help="What evidence has to say.", no_args_is_help=True)
app.add_typer(policies, name="policy")

EvidenceFile = Annotated[
    Path, typer.Argument(metavar="EVIDENCE", help="A report, quote or document; any format.")
]
CollateralPaths = Annotated[
    list[Path] | None,
    typer.Option(
        "--collateral",
        metavar="DIR|FILE",
        help="Certificates, lists of revoked ones, vendors' documents, event logs. Repeatable.",
    ),
]
PolicyFile = Annotated[
    Path | None,
    typer.Option("--policy", metavar="policy.toml", help="What the evidence has to say."),
]
ReportData = Annotated[
    str | None,
    typer.Option("--report-data", metavar="HEX", help="What the machine was asked to bind."),
]
Manifest = Annotated[
    Path | None,
    typer.Option(
        "--manifest",
        metavar="FILE",
        help="The runtime's, for the section runtime of a policy; compared with the launch too.",
    ),
]
Now = Annotated[
    str | None,
    typer.Option("--now", metavar="TIME", help="Such as 2026-01-31T12:00Z. Default: the clock."),
]
EvidenceOut = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="Write evidence of this machine.")
]
SimulatedKey = Annotated[
    Path | None,
    typer.Option(
        "--insecure-simulated",
        metavar="KEY.pem",
        help="For tests: evidence of a program that plays a machine, signed by this Ed25519 key.",
    ),
]
TpmPath = Annotated[
    Path | None,
    typer.Option(
        "--tpm", metavar="PATH",
        help="A TPM's device, or the socket of a program that plays one. Default: /dev/tpmrm0.",
    ),
]  # fmt: skip
PolicyOut = Annotated[Path, typer.Argument(metavar="POLICY", help="The file to write.")]

_MARKS = {CheckState.PASSED: "green", CheckState.FAILED: "red", CheckState.NOT_CHECKED: "yellow"}


@app.command(
    name="verify",
    epilog="Example: cloister attest verify quote.bin --collateral intel --policy policy.toml",
)
def verify_evidence(
    evidence: EvidenceFile,
    collateral: CollateralPaths = None,
    policy: PolicyFile = None,
    report_data: ReportData = None,
    manifest: Manifest = None,
    now: Now = None,
    json: options.Json = False,
) -> None:
    """Verify evidence up to its vendor's root, and compare it with a policy.

    Nothing is fetched: what is missing counts as not checked. Without --policy the command says
    what the evidence claims, and not whether that is enough.
    """
    for name, value in (("--report-data", report_data), ("--manifest", manifest)):
        if policy is None and value is not None:
            raise InputError(f"{name}: goes with --policy")
    at = datetime.now(UTC) if now is None else options.read_time("--now", now)
    asked = None if policy is None else Policy.load(policy)
    expected = None if report_data is None else _bytes(report_data)
    shown_manifest = None if manifest is None else read_evidence(manifest, what="manifest")
    data, given = read_evidence(evidence), Collateral.load(collateral or ())
    tree = Check(str(evidence))
    found: VerifiedEvidence | None = None
    result: dict[str, object] = {}
    try:
        found = verify(data, given, now=at, check=tree)
        result = found.to_json()
        if asked is not None:
            result = appraise(found, asked, expected, manifest=shown_manifest).to_json()
    except AttestationError as error:
        _show(tree, found, {**result, "checks": tree.to_json()}, str(error), given, json=json)
        raise
    _show(tree, found, result, None, given, json=json, appraised=asked is not None)


def _show(
    tree: Check,
    found: VerifiedEvidence | None,
    result: dict[str, object],
    refused: str | None,
    given: Collateral,
    *,
    json: bool,
    appraised: bool = False,
) -> None:
    verdict = "refused" if refused else "accepted" if appraised else "genuine, not appraised"
    if json:
        emit_json({**result, "verdict": verdict, "refused": refused, "unused": given.unused})
        return
    console = out()
    console.print(_tree(tree))
    if found is not None:
        console.print()
        for name, value in found.claims.items():
            console.print(Text(f"{name:24} {printable(shown(value))}"))
        console.print(Text(f"{'report_data':24} {found.report_data.hex()}"))
    for name in given.unused:
        err().print(Text(f"collateral {printable(name)}: not recognised, not used"))
    console.print()
    console.print(Text(f"verdict: {verdict}"))


def _tree(check: Check) -> Tree:
    detail = f": {printable(check.detail)}" if check.detail else ""
    text = Text(f"{check.state.value:12} ", style=_MARKS[check.state])
    tree = Tree(text + Text(f"{printable(check.name)}{detail}", style="default"))
    for part in check.parts:
        tree.children.append(_tree(part))
    return tree


def _bytes(text: str) -> bytes:
    with parsing("--report-data: must be hexadecimal"):
        found = bytes.fromhex(text)
    if not 0 < len(found) <= 64:
        raise InputError(f"--report-data: has {len(found)} bytes, of 1 to 64")
    return found


@app.command(
    epilog="Example: cloister attest show --report-data $(openssl rand -hex 64) --out evidence.bin"
)
def show(
    report_data: ReportData = None,
    evidence: EvidenceOut = None,
    tpm: TpmPath = None,
    insecure_simulated: SimulatedKey = None,
    json: options.Json = False,
) -> None:
    """Say what this machine can prove of itself, and write evidence with --out.

    The first interface that is listed writes it. Without --report-data it binds 64 zeros.
    """
    if tpm is not None and not tpm.exists():
        raise InputError(f"--tpm {tpm}: no such device or socket")
    rng = SystemRandom()
    found = attesters(rng=rng, tpm=tpm)
    if insecure_simulated is not None:
        found.append(SimulatedAttester(insecure_simulated))
    if evidence is not None:
        if not found:
            raise AttestationError(
                "this machine has no interface that proves anything; run in a confidential virtual "
                "machine or an enclave (for tests: --insecure-simulated)"
            )
        data = bytes(REPORT_DATA_BYTES) if report_data is None else _bytes(report_data)
        if len(data) != REPORT_DATA_BYTES:
            raise InputError(
                f"--report-data: has {len(data)} bytes, of {REPORT_DATA_BYTES}; machines fill up "
                "what is short, so write the zeros"
            )
        made = found[0].evidence(data)
        files.replace(evidence, made, private=False)
    elif report_data is not None:
        raise InputError("--report-data: goes with --out")
    rows = [{"interface": one.name, "format": one.format.value} for one in found]
    if json:
        emit_json({"attesters": rows, "written": evidence})
        return
    console = out()
    for row in rows:
        console.print(Text(f"{row['format']:20} {row['interface']}"))
    if not rows:
        console.print("nothing: no interface of a confidential virtual machine or an enclave")
    if any(one.format is Format.TPM for one in found):
        console.print("a TPM proves how the machine started, not what reads its memory")
    if evidence is not None:
        console.print(Text(f"{evidence}: {rows[0]['format']} evidence written"))


@policies.command(epilog="Example: cloister attest policy init policy.toml")
def init(path: PolicyOut) -> None:
    """Write a commented policy with strict defaults; it accepts nothing until you name code."""
    if path.exists():
        raise InputError(f"policy {path}: exists already; choose another name")
    files.replace(path, template().encode(), private=False)
    out().print(f"{path}: written; name the code that may run, and delete other sections")
