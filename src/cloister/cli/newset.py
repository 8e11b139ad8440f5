"""The agreement of a data set as a client's options have it: made anew, or accepted.

The first client decides; what it decided travels to the others in the notes of the terms. The
others accept only what their own options, or the defaults, would have made.
"""

import json as jsons
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Int64

from cloister.authority.agreement import Agreement, Excess, excesses
from cloister.authority.records import Terms
from cloister.base.reading import open_regular, parsing
from cloister.cli.console import err
from cloister.data.encoding import Encoding
from cloister.data.info import DatasetInfo, Mode
from cloister.data.sources import (
    PIXELS,
    Source,
    TableSource,
    require_fewer_classes_than_samples,
    require_no_outlier,
)
from cloister.errors import EncryptionError, InputError, RangeError

DEFAULT_BITS = 8
READ_AT_ONCE = 1024
MAX_RANGES_BYTES = 1 << 24
REHEARSED_VALUES = 1 << 16
"""Of so many samples, to see what most values are like."""


@dataclass(frozen=True)
class Wishes:
    """The options about a data set; None: not given."""

    bits: int | None
    value_range: tuple[float, ...] | None
    ranges: Mapping[str, tuple[float, float]] | None
    classes: tuple[str, ...] | None
    budget: int | None
    max_bits: int | None
    value_bits: int | None
    many_functions: bool
    labels_to_server: bool
    mode: str
    allow_unbounded_leakage: bool


@dataclass(frozen=True)
class Named:
    """How a field of an agreement is said: what it is, its value, and the option that allows it."""

    what: str
    value: Callable[[float], str]
    option: Callable[[float], str]
    given: Callable[[Wishes], bool] = lambda wishes: False


def _number(value: float) -> str:
    return f"{value:.0f}"


FIELDS = {
    "encoding": Named(
        "bits of an element", _number, lambda n: f"--bits {n:.0f}", lambda w: w.bits is not None
    ),
    "mode": Named("mode", lambda n: "paper" if n else "guarded", lambda _: "--mode paper"),
    "allow_unbounded_leakage": Named(
        "leakage", lambda n: "without bound" if n else "bounded",
        lambda _: "--allow-unbounded-leakage",
    ),
    "labels_to_server": Named(
        "labels", lambda n: "to the server" if n else "to a trusted runtime",
        lambda _: "--labels-to server", lambda w: not w.labels_to_server,
    ),
    "budget_rank": Named(
        "budget", _number, lambda n: f"--budget {n:.0f}", lambda w: w.budget is not None
    ),
    "max_bits": Named(
        "bits of a sample", _number, lambda n: f"--max-bits {n:.0f}",
        lambda w: w.max_bits is not None,
    ),
    "value_bits": Named(
        "bits of a value", _number, lambda n: f"--value-bits {n:.0f}",
        lambda w: w.value_bits is not None,
    ),
    "one_function": Named(
        "functions", lambda n: "many" if n else "one", lambda _: "--many-functions"
    ),
}  # fmt: skip
"""For every field of `agreement.EXPOSURE`."""


def accept(found: Agreement, source: Source, wishes: Wishes) -> Agreement:
    """The agreement that a client's options would have made of a data set that there is.

    Raises   InputError where it is otherwise than an option says
    """
    info, notes = found.info, read_notes(found)
    if info.shape != source.shape:
        raise InputError(
            f"data set {info.name} holds samples {info.shape}, these are {source.shape}; "
            "bring them to one size, or choose another --name"
        )
    if notes["kind"] != source.kind:
        raise InputError(f"data set {info.name} holds {notes['kind']}, this is {source.kind}")
    encoding = PIXELS
    if source.kind != "pixels":
        encoding = replace(info.encoding, bits=wishes.bits or DEFAULT_BITS)
    different = None
    if source.kind == "pixels" and info.encoding != PIXELS:
        different = "encodes pixels otherwise than this program does"
    elif source.kind == "values" and wishes.value_range is not None:
        if info.encoding != _for_range(wishes.value_range, bits=info.encoding.bits):
            different = f"holds {info.encoding.low:g} to {info.encoding.high:g}; drop --range"
    elif wishes.ranges is not None and dict(wishes.ranges) != notes["ranges"]:
        different = "has other ranges; drop --ranges to take those of its first client"
    if wishes.classes is not None and sorted(wishes.classes) != sorted(notes["classes"]):
        different = f"has the classes {', '.join(notes['classes'])}; drop --classes"
    if different is not None:
        raise InputError(f"data set {info.name} {different}, or choose another --name")
    return _agreement(replace(info, encoding=encoding), wishes, notes=found.terms.notes)


def agree(found: Agreement, accepted: Agreement, wishes: Wishes) -> None:
    """Refuse to add to a data set that gives more away than this client has agreed to.

    Raises   InputError naming each term and the option that allows it
    """
    beyond = excesses(found, accepted)
    if beyond:
        # The defaults of other terms follow from the description: what is left once it is agreed.
        info, ours = found.info, accepted.info
        budget = max(info.budget_rank, ours.budget_rank)
        described = replace(ours, budget_rank=budget, encoding=info.encoding)
        left = {x.field for x in excesses(found, Agreement(described, accepted.terms))}
        named = [x for x in beyond if x.field in left | {"budget_rank", "encoding"}]
        listed = ", ".join(_said(excess, wishes) for excess in named)
        raise InputError(
            f"data set {found.info.name} gives away more than you agreed to: {listed}; agree with "
            "these options, or choose another --name"
        )


def _said(excess: Excess, wishes: Wishes) -> str:
    named = FIELDS[excess.field]
    default = "" if named.given(wishes) else "the default "
    instead = f"{default}{named.value(excess.accepted)}"
    return f"{named.what} {named.value(excess.found)} instead of {instead} " + (
        f"({named.option(excess.found)})"
    )


def plan(name: str, source: Source, wishes: Wishes) -> Agreement:
    """The agreement of a new data set.

    Raises   InputError, RangeError
    """
    notes: dict[str, Any] = {"kind": source.kind}
    bits = wishes.bits or DEFAULT_BITS
    if isinstance(source, TableSource):
        ranges = wishes.ranges
        if ranges is None:
            ranges = source.ranges()
            err().print(
                "note: every column's smallest and largest value of your data becomes known to "
                "the other clients and the authority; give public --ranges to avoid it",
                style="yellow",
            )
        missing = [column for column in source.columns if column not in ranges]
        if missing:
            raise InputError(f"--ranges: column {missing[0]} is missing")
        notes["ranges"] = {column: list(ranges[column]) for column in source.columns}
        encoding = Encoding.for_range(-1.0, 1.0, bits=bits)
    elif source.kind == "pixels":
        encoding = PIXELS
    else:
        encoding = _encoding_of_values(source, wishes, bits=bits)
    if wishes.classes is None:
        require_fewer_classes_than_samples(source)
    names = wishes.classes or tuple(source.names)
    if len(set(names)) != len(names):
        raise InputError(f"--classes {','.join(names)}: give every name once")
    notes["classes"] = list(names)
    info = DatasetInfo(name, source.shape, len(names), encoding, 0, 0)
    return _agreement(info, wishes, notes=jsons.dumps(notes))


def _agreement(info: DatasetInfo, wishes: Wishes, *, notes: str) -> Agreement:
    info = replace(
        info,
        samples=0,
        budget_rank=info.default_budget if wishes.budget is None else wishes.budget,
        mode=cast(Mode, wishes.mode),  # checked by the description
    )
    terms = Terms(
        labels_to_server=wishes.labels_to_server,
        max_bits=wishes.max_bits,
        value_bits=wishes.value_bits,
        one_function=not wishes.many_functions,
        allow_unbounded_leakage=wishes.allow_unbounded_leakage,
        notes=notes,
    )
    return Agreement(info, terms)


def _for_range(value_range: tuple[float, ...], *, bits: int) -> Encoding:
    if len(value_range) != 2:
        raise InputError("--range: give LOW,HIGH")
    return Encoding.for_range(*value_range, bits=bits)


def _encoding_of_values(source: Source, wishes: Wishes, *, bits: int) -> Encoding:
    if wishes.value_range is not None:
        return _for_range(wishes.value_range, bits=bits)
    low, high = np.inf, -np.inf
    some: list[np.ndarray] = []
    for start in range(0, len(source.labels), READ_AT_ONCE):
        stop = min(start + READ_AT_ONCE, len(source.labels))
        piece = source.read(np.arange(start, stop, dtype=np.int64))
        finite = np.isfinite(piece).reshape(len(piece), -1).all(axis=1)
        if not finite.all():
            raise RangeError(
                f"sample {start + int(np.argmin(finite))}: holds NaN or infinity; fill or drop it"
            )
        low, high = min(low, float(piece.min())), max(high, float(piece.max()))
        some.append(piece.reshape(-1)[:: -(-piece.size // REHEARSED_VALUES)].astype(np.float64))
    require_no_outlier(np.concatenate(some), (low, high), what="samples", option="--range")
    err().print(
        f"note: the range of your data, {low:g} to {high:g}, becomes public; give a public --range "
        "to avoid it",
        style="yellow",
    )
    return Encoding.for_range(low, high if high > low else low + 1.0, bits=bits)


def read_notes(agreed: Agreement) -> dict[str, Any]:
    """What the first client noted: kind, classes and, for a table, ranges.

    Raises   EncryptionError
    """
    name = agreed.info.name
    try:
        notes = jsons.loads(agreed.terms.notes)
        kind, classes = str(notes["kind"]), [str(one) for one in notes["classes"]]
        given = notes.get("ranges") or {}
        ranges = {str(column): (float(low), float(high)) for column, (low, high) in given.items()}
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        raise EncryptionError(f"data set {name}: was not made by `cloister encrypt`") from None
    if len(set(classes)) != agreed.info.classes:
        raise EncryptionError(f"data set {name}: names {len(classes)} classes, and has others")
    return {"kind": kind, "classes": classes, "ranges": ranges}


def class_numbers(
    info: DatasetInfo, known: list[str], source: Source
) -> Int64[np.ndarray, " names"]:
    """The data set's numbers of the source's classes.

    Raises   InputError naming a class the data set does not have
    """
    numbers = []
    for name in source.names:
        if name not in known:
            raise InputError(
                f"class {name!r} is not one of data set {info.name} ({', '.join(known)}); "
                "its first client names all of them with --classes"
            )
        numbers.append(known.index(name))
    return np.array(numbers, np.int64)


def read_ranges(path: Path) -> dict[str, tuple[float, float]]:
    """A file of public ranges.

    Raises   InputError
    """
    described = f'{path}: not a file of ranges {{"column": [low, high]}}'
    with parsing(described), open_regular(path) as file:
        fields = jsons.loads(file.read(MAX_RANGES_BYTES))
        return {str(name): (float(low), float(high)) for name, (low, high) in fields.items()}
