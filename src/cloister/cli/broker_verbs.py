"""`cloister broker`: the vendor's service that releases keys to runtimes that proved themselves."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from cloister.attest.clock import SYSTEM_CLOCK
from cloister.attest.verified_evidence import Format
from cloister.base.reading import parsing
from cloister.base.rng import SystemRandom
from cloister.broker import broker_folder, broker_service, release_ledger
from cloister.broker.broker import Broker
from cloister.broker.broker_folder import BrokerFolder, NewBundle
from cloister.broker.ledger_entry import DIGEST_BYTES, EntryKind, LedgerEntry
from cloister.broker.ledger_verification import LedgerContents, read_ledger
from cloister.broker.release_ledger import LicenseTerms, changing, record_terms
from cloister.cli import options
from cloister.cli.attest_verbs import CollateralPaths
from cloister.cli.console import emit_json, err, note, out, table
from cloister.cli.serving import serve_until_interrupted
from cloister.errors import InputError, VerificationError, printable
from cloister.trusted.engines.sandbox import hide_memory

ANY = "any"

app = typer.Typer(
    help="Release the keys of bundles to runtimes that prove themselves, and keep a ledger of it.",
    no_args_is_help=True,
)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The broker's folder.")]
Bundles = Annotated[
    list[Path], typer.Option("--bundle", metavar="FILE.bundle", help="A bundle. Repeatable.")
]
Keys = Annotated[
    list[Path],
    typer.Option("--key", metavar="FILE", help="Its content key: one for all, or one for each."),
]
Vendor = Annotated[
    Path, typer.Option("--vendor", metavar="FILE", help="The vendor's public key, vendor.pub.")
]
PolicyFile = Annotated[
    Path, typer.Option("--policy", metavar="policy.toml", help="What evidence has to say.")
]
Chips = Annotated[
    str | None,
    typer.Option("--chips", metavar=f"N|{ANY}", help="How many processors one licence may run on."),
]
Meters = Annotated[
    int | None,
    typer.Option("--meters", min=1, help="How many meters may share one ticket's quota."),
]
License = Annotated[
    str, typer.Argument(metavar="LICENSE", help="The licence's name, as in its tickets.")
]
Entry = Annotated[
    str | None,
    typer.Option(
        "--entry", metavar="DIGEST", help="Refuse a ledger without the entry of this digest."
    ),
]


@app.command(
    epilog="Example: cloister broker init broker --bundle model.bundle --key vendor/content.key "
    "--vendor vendor/vendor.pub --policy policy.toml"
)
def init(
    folder: Folder,
    bundle: Bundles,
    key: Keys,
    vendor: Vendor,
    policy: PolicyFile,
    collateral: CollateralPaths = None,
    chips: Chips = None,
    meters: Meters = None,
) -> None:
    """Make a broker: its certificate, the keys of its bundles, an empty ledger.

    Of each content key only the part for its bundle is kept. Limits hold for every licence without
    its own; by default any number of processors, and one meter.
    """
    digest = broker_folder.create(
        folder,
        vendor=vendor,
        policy=policy,
        bundles=_pairs(bundle, key),
        collateral=collateral or (),
        terms=_changed(LicenseTerms(), chips, meters),
        now=SYSTEM_CLOCK.now(),
        rng=SystemRandom(),
    )
    console = out()
    console.print(f"certificate {digest.hex()}", soft_wrap=True)
    console.print("tickets name it: cloister license issue --broker SHA256")
    console.print(f"next: cloister broker serve {folder} --listen HOST:PORT", soft_wrap=True)
    err().print(
        "note: keep the folder to yourself and never put back an old copy of it: its ledger would "
        "forget releases, and its counters what was spent",
        style="yellow",
    )


@app.command(
    epilog="Example: cloister broker add broker --bundle newer.bundle --key vendor/content.key"
)
def add(folder: Folder, bundle: Bundles, key: Keys) -> None:
    """Add bundles, also while the broker serves."""
    found = BrokerFolder.open(folder)
    added = [NewBundle.read(*pair, vendor=found.vendor) for pair in _pairs(bundle, key)]
    with changing(found.ledger) as change:
        for one in added:
            one.record(change, time=_time())
    for path, one in zip(bundle, added, strict=True):
        out().print(f"{path}: bundle {one.header.bundle_id.hex()}, version {one.header.version}")


@app.command(epilog="Example: cloister broker serve broker --listen 0.0.0.0:8444")
def serve(folder: Folder, listen: options.Listen) -> None:
    """Appraise runtimes, and release keys to those with a ticket, until interrupted.

    Policy and collateral are read at the start. After a change, start the broker again: all
    sessions end then, and every runtime is appraised anew.
    """
    hide_memory()
    broker = Broker(folder, clock=SYSTEM_CLOCK)
    try:
        if Format.SIMULATED in broker.folder.policy.sections:
            err().print(
                f"note: the policy accepts {Format.SIMULATED.value} evidence: keys leave for "
                "programs that play a machine",
                style="yellow",
            )
        start = partial(broker_service.serve, broker, listen=listen, rng=SystemRandom())
        certificate = f"certificate {broker.folder.certificate.hex()}"
        serve_until_interrupted(start, "broker", certificate)
    finally:
        broker.close()


@app.command(epilog="Example: cloister broker limit broker clinic-7 --chips 4")
def limit(folder: Folder, license_id: License, chips: Chips = None, meters: Meters = None) -> None:
    """Set the limits of one licence, at once, also while the broker serves."""
    if chips is None and meters is None:
        raise InputError(f"licence {license_id}: give --chips N or --meters N")
    _show_terms(license_id, _set_terms(folder, license_id, chips, meters))


@app.command(epilog="Example: cloister broker revoke broker clinic-7")
def revoke(
    folder: Folder,
    license_id: License,
    undo: Annotated[bool, typer.Option("--undo", help="Accept the licence again.")] = False,
) -> None:
    """Revoke a licence: no key is released for it any more, and its counters stand still.

    A runtime that has the key already stops when it needs its leased counter next.
    """
    _show_terms(license_id, _set_terms(folder, license_id, None, None, revoked=not undo))


@app.command(epilog="Example: cloister broker ledger broker")
def ledger(folder: Folder, entry: Entry = None, json: options.Json = False) -> None:
    """Verify the ledger, and show which key went to which chip and code under which licence.

    Also while the broker serves. Who keeps the digest of an entry, such as the runtime that got a
    key, can have it looked for by --entry.
    """
    found = read_ledger(folder / release_ledger.FILE)
    if json:
        emit_json(_plain(found))
    else:
        _show(found)
    if entry is not None:
        _require_entry(found, entry, folder)


def _pairs(bundles: Sequence[Path], keys: Sequence[Path]) -> list[tuple[Path, Path]]:
    if len(keys) not in (1, len(bundles)):
        raise InputError(f"--key: {len(keys)} keys for {len(bundles)} bundles; give one, or each")
    return list(zip(bundles, keys if len(keys) > 1 else [*keys] * len(bundles), strict=True))


def _time() -> int:
    return int(SYSTEM_CLOCK.now().timestamp())


def _changed(terms: LicenseTerms, chips: str | None, meters: int | None) -> LicenseTerms:
    if chips is not None:
        if chips != ANY and not (chips.isdecimal() and 0 < int(chips) < 1 << 31):
            raise InputError(f"--chips {chips}: give a number from 1, or {ANY}")
        terms = replace(terms, chips=None if chips == ANY else int(chips))
    return terms if meters is None else replace(terms, meters=meters)


def _set_terms(
    folder: Path, license_id: str, chips: str | None, meters: int | None, **more: bool
) -> LicenseTerms:
    with changing(folder / release_ledger.FILE) as change:
        terms = replace(_changed(change.terms(license_id), chips, meters), **more)
        record_terms(change, license_id, terms, time=_time())
        released = change.chips(license_id) > 0
    if not released:
        note(f"no key was released for licence {license_id} so far; is its name spelt right?")
    return terms


def _show_terms(license_id: str, terms: LicenseTerms) -> None:
    chips = ANY if terms.chips is None else terms.chips
    state = "revoked" if terms.revoked else "accepted"
    out().print(f"licence {license_id}: {state}, chips {chips}, meters {terms.meters}; at once")


def _plain(found: LedgerContents) -> dict[str, object]:
    return {
        "entries": [entry.to_json() for entry in found.entries],
        "counters": [
            {"ticket": ticket, "meter": meter, "count": count}
            for (ticket, meter), count in found.counters.items()
        ],
        "refusals": dict(found.refusals),
        "last_refusals": [asdict(one) for one in found.last_refusals],
        "head": found.head.digest.hex(),
    }


def _show(found: LedgerContents) -> None:
    console = out()
    titles = ("entry", "time", "what", "licence", "bundle", "format", "code", "chip", "terms")
    console.print(table(titles, [_row(entry) for entry in found.entries]))
    for (ticket, meter), count in found.counters.items():
        console.print(Text(f"ticket {ticket[:16]}: meter {meter[:16]} stands at {count}"))
    for kind, count in found.refusals.items():
        last = [one for one in found.last_refusals if one.kind == kind][-1:]
        told = "".join(f"; the last: {one.message}" for one in last)
        console.print(Text(printable(f"refused for {kind}: {count}{told}")), soft_wrap=True)
    head = found.head
    console.print(
        f"the chain holds: {head.number} entries, the last one {head.digest.hex()}", soft_wrap=True
    )


def _row(entry: LedgerEntry) -> tuple[object, ...]:
    fields = entry.fields
    at = datetime.fromtimestamp(entry.time, UTC).strftime("%Y-%m-%d %H:%M:%S")
    names = ("license", "bundle", "format", "measurement", "chip")
    cells = [str(fields.get(name, ""))[: None if name == "format" else 16] for name in names]
    told = ""
    match entry.kind:
        case EntryKind.RELEASE:
            told = "rooted in hardware" if fields["hardware_rooted"] else "rooted in software"
        case EntryKind.TERMS:
            cells[0] = cells[0] or "every"
            chips = ANY if fields["chips"] is None else fields["chips"]
            told = f"chips {chips}, meters {fields['meters']}"
            told += ", revoked" if fields["revoked"] else ""
    return (entry.number, at, entry.kind.value, *cells, told)


def _require_entry(found: LedgerContents, digest: str, folder: Path) -> None:
    with parsing(f"--entry {digest}: must be hexadecimal"):
        wanted = bytes.fromhex(digest)
    if len(wanted) != DIGEST_BYTES:
        raise InputError(f"--entry {digest}: a digest has {2 * DIGEST_BYTES} hexadecimal digits")
    if wanted not in (entry.digest for entry in found.entries):
        raise VerificationError(
            f"{folder}: has no entry of digest {digest}: the ledger was put back, or is another "
            "broker's"
        )
