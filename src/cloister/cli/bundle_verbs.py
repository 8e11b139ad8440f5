"""`cloister bundle`: a plan and its hidden module in one sealed file."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from cloister.base.rng import SystemRandom
from cloister.base.sizes import human_bytes
from cloister.bundle import bundle_keys
from cloister.bundle.bundle_header import SUFFIX, BundleHeader
from cloister.bundle.compiled_module import CompiledModule
from cloister.bundle.sealed_bundle import SealedBundle, hidden_bytes
from cloister.cli import options
from cloister.cli.console import emit_json, out
from cloister.errors import InputError
from cloister.plan.plan import Plan

PUBLIC_PLAN = "public.plan"
"""The outer plan in the folder that `cloister compile` writes."""
POWER = "power-of-two"

app = typer.Typer(
    help="Seal hidden layers into a signed and encrypted file, and verify it.",
    no_args_is_help=True,
)

KeyFolder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the keys.")]
ModuleFolder = Annotated[
    Path, typer.Argument(metavar="DIR", help="Folder that `cloister compile` wrote.")
]
BundleFile = Annotated[Path, typer.Argument(metavar=f"FILE{SUFFIX}", help="The bundle.")]
SealKey = Annotated[
    Path, typer.Option("--key", metavar="FILE", help="The content key, which opens the bundle.")
]
Signer = Annotated[
    Path, typer.Option("--signer", metavar="FILE", help="The vendor's private key, vendor.key.")
]
Out = Annotated[
    Path, typer.Option("--out", metavar=f"FILE{SUFFIX}", help="Where the bundle is written.")
]
Version = Annotated[
    int | None,
    typer.Option(
        "--version",
        min=1,
        help="Version of the bundle. Default: 1, or one more than that of the file it replaces.",
    ),
]
PadTo = Annotated[
    str | None,
    typer.Option(
        "--pad-to",
        metavar=f"{POWER}|BYTES",
        help="Size of the hidden part as others see it. Default: its own.",
    ),
]
PlanOfModule = Annotated[
    Path | None,
    typer.Option(
        "--plan",
        metavar="FILE.plan",
        help=f"The plan that names the module. Default: {PUBLIC_PLAN} in DIR.",
    ),
]
WithSource = Annotated[
    bool, typer.Option("--with-source", help="Seal the module's C source too; no engine reads it.")
]

VendorKey = Annotated[
    Path, typer.Option("--vendor", metavar="FILE", help="The vendor's public key, vendor.pub.")
]
ContentKey = Annotated[
    Path | None, typer.Option("--key", metavar="FILE", help="The content key of the bundle.")
]
AtLeast = Annotated[
    int, typer.Option("--at-least", min=1, help="Refuse bundles of older versions than this.")
]


@app.command(epilog="Example: cloister bundle keys keys")
def keys(folder: KeyFolder, json: options.Json = False) -> None:
    """Make a vendor's key pair and a content key; keys that are there are kept.

    vendor.key signs bundles and stays with the vendor. Customers pin vendor.pub. content.key opens
    bundles: whoever holds it can read the hidden weights.
    """
    made = bundle_keys.create_keys(folder, rng=SystemRandom())
    vendor = bundle_keys.load_vendor(folder / bundle_keys.VENDOR_PUBLIC).public_bytes_raw()
    if json:
        emit_json({"made": made, "vendor": vendor})
        return
    names = ", ".join(path.name for path in made) or "nothing, all keys were there"
    out().print(f"{folder}: made {names}; vendor {vendor.hex()}")


@app.command(
    epilog="Example: cloister bundle seal head --key keys/content.key --signer keys/vendor.key "
    f"--out model{SUFFIX}"
)
def seal(
    folder: ModuleFolder,
    key: SealKey,
    signer: Signer,
    to: Out,
    plan: PlanOfModule = None,
    version: Version = None,
    pad_to: PadTo = None,
    with_source: WithSource = False,
    json: options.Json = False,
) -> None:
    """Seal a compiled module and its plan: signed by the vendor, encrypted under a content key.

    Whoever has the file alone learns the plan and the sizes; --pad-to hides the module's own size.
    """
    if to.suffix != SUFFIX or not to.parent.is_dir():
        raise InputError(f"--out {to}: name a {SUFFIX} file in an existing folder")
    private = bundle_keys.load_signer(signer)
    content_key = bundle_keys.load_content_key(key)
    number = _next_version(to, private.public_key().public_bytes_raw(), version)
    module = CompiledModule.load(folder)
    if not (module.builds or with_source):
        raise InputError(
            f"{folder}: has no build that a customer could run; compile it with --target native, "
            "or seal its source with --with-source"
        )
    if not with_source:
        module = replace(module, source="")
    header = SealedBundle.seal(
        to,
        Plan.load(plan or folder / PUBLIC_PLAN),
        module,
        content_key=content_key,
        signer=private,
        version=number,
        rng=SystemRandom(),
        pad_to=_padding(pad_to, hidden_bytes(module)),
    )
    if json:
        emit_json({"bundle": to, **_fields(header)})
        return
    console = out()
    console.print(f"{to}: {human_bytes(to.stat().st_size)}", soft_wrap=True)
    _show_header(header)


@app.command(
    epilog=f"Example: cloister bundle verify model{SUFFIX} --vendor vendor.pub --at-least 3"
)
def verify(
    bundle: BundleFile,
    vendor: VendorKey,
    key: ContentKey = None,
    at_least: AtLeast = 1,
    json: options.Json = False,
) -> None:
    """Verify a bundle, without the content key or with it, and say exactly what was verified."""
    public = bundle_keys.load_vendor(vendor)
    found = SealedBundle.verify(bundle, vendor=public, at_least=at_least)
    if key is not None:
        content_key = bundle_keys.load_content_key(key)
        SealedBundle.open(bundle, content_key, vendor=public, at_least=at_least)
    if json:
        emit_json({"bundle": bundle, **_fields(found.header), "opened": key is not None})
        return
    console = out()
    _show_header(found.header)
    console.print()
    for line in _verified(found, at_least=at_least, opened=key is not None):
        console.print(line, soft_wrap=True)


@app.command(epilog=f"Example: cloister bundle show model{SUFFIX}")
def show(bundle: BundleFile, json: options.Json = False) -> None:
    """Show what anyone can read in a bundle. Nothing of it is verified."""
    header = SealedBundle.show(bundle)
    if json:
        emit_json({"bundle": bundle, **_fields(header)})
        return
    out().print(f"{bundle}: {human_bytes(bundle.stat().st_size)}, not verified", soft_wrap=True)
    _show_header(header)


def _next_version(path: Path, vendor: bytes, wanted: int | None) -> int:
    """The version of a bundle that may replace what is there.

    Raises   InputError for a version that is not newer, BundleError for a file of another kind
    """
    if not path.exists():
        return wanted or 1
    old = SealedBundle.show(path)
    if old.vendor != vendor:
        raise InputError(f"--out {path}: is a bundle of another vendor; choose another name")
    number = wanted or old.version + 1
    if number <= old.version:
        raise InputError(f"--version {number}: {path} has version {old.version} already")
    return number


def _padding(text: str | None, size: int) -> int | None:
    if text is None:
        return None
    if text == POWER:
        return 1 << (size - 1).bit_length()
    if not (text.isascii() and text.isdecimal()):
        raise InputError(f"--pad-to {text}: give {POWER} or a number of bytes")
    if int(text) < size:
        raise InputError(f"--pad-to {text}: the hidden part has {size} B; give more")
    return int(text)


def _fields(header: BundleHeader) -> dict[str, object]:
    sizes = {"chunks": header.chunks, "sealed_bytes": header.sealed_bytes}
    return vars(header) | sizes


def _show_header(header: BundleHeader) -> None:
    console = out()
    for name, value in (
        ("bundle", header.bundle_id.hex()),
        ("version", header.version),
        ("vendor", header.vendor.hex()),
        ("plan", f"{header.plan_digest.hex()}, {header.plan_bytes} B in the clear"),
        ("module", header.module_digest.hex()),
        ("sealed", f"{header.hidden_bytes} B in chunks of {header.chunk_bytes} B"),
    ):
        console.print(f"{name:8} {value}", soft_wrap=True)


def _verified(bundle: SealedBundle, *, at_least: int, opened: bool) -> list[str]:
    lines = [
        "verified: the vendor signed every byte of the file",
        f"verified: the plan is of policy {bundle.plan.policy} and names this module",
    ]
    if opened:
        lines.append(
            "verified: every chunk opens with the content key; manifest, builds and weights are "
            "those of this module"
        )
    else:
        lines.append("not verified without --key: that the sealed part opens, and is this module")
    if at_least > 1:
        lines.append(f"verified: the version is at least {at_least}")
    else:
        lines.append("not verified without --at-least: that the bundle is not an older one")
    lines.append(
        "not verified by any command: that the vendor has not signed a newer version since"
    )
    return lines
