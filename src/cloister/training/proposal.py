"""The agreement that an owner's options propose: of a new data set, or to join one that there is.

The first owner decides, and the notes of the terms carry its decisions to later owners. A later
owner accepts only terms that its own options, or the defaults, would have proposed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from cloister.authority.agreement import Agreement, Excess, excesses
from cloister.authority.records import Terms
from cloister.data.columns import Column, PublicRange, public_column
from cloister.data.csv_source import TableSource
from cloister.data.encoding import PIXELS, Encoding
from cloister.data.info import DatasetInfo
from cloister.data.owner import NewDataset, Notes, Privacy
from cloister.data.sources import (
    Source,
    require_fewer_classes_than_samples,
    value_range,
)
from cloister.data.target_encoding import Ranges, check_target_ranges
from cloister.errors import InputError

DEFAULT_BITS = 8
_SAMPLES = {
    "pixels": "pixels of 0 to 255",
    "values": "values that are no pixels",
    "table": "rows of a table (.csv)",
}
FEWEST_ELEMENTS = 3
"""A row of fewer weights names an element, or packs two into a value: the authority refuses it."""


@dataclass(frozen=True)
class AgreementField:
    """How messages say a field of an agreement: name, value, and the option that allows it."""

    name: str
    value: Callable[[float], str]
    option: Callable[[float], str]
    is_given: Callable[[NewDataset, Privacy], bool] = lambda new, privacy: False


def _number(value: float) -> str:
    return f"{value:.0f}"


FIELDS = {
    "encoding": AgreementField(
        "bits of an element", _number, lambda n: f"--bits {n:.0f}",
        lambda new, _: new.bits is not None,
    ),
    "mode": AgreementField(
        "mode", lambda n: "paper" if n else "budgeted",
        lambda _: "--privacy paper --allow-unbounded-leakage",
    ),
    "labels_to_server": AgreementField(
        "labels", lambda n: "to the server" if n else "to a trusted runtime",
        lambda _: "--labels-to server", lambda _, privacy: privacy.labels_to != "server",
    ),
    "budget_rank": AgreementField(
        "budget", _number, lambda n: f"--privacy budget={n:.0f}",
        lambda _, privacy: privacy.budget_rank is not None,
    ),
    "max_bits": AgreementField(
        "bits of a sample", _number, lambda n: f"--max-bits {n:.0f}",
        lambda _, privacy: privacy.max_bits is not None,
    ),
    "value_bits": AgreementField(
        "bits of a value", _number, lambda n: f"--value-bits {n:.0f}",
        lambda _, privacy: privacy.value_bits is not None,
    ),
    "one_function": AgreementField(
        "functions", lambda n: "many" if n else "one", lambda _: "--many-functions"
    ),
    "evaluations": AgreementField(
        "sums over labels", _number, lambda n: f"--labels-to trusted --evaluations {n:.0f}",
        lambda _, privacy: privacy.labels_to != "server",
    ),
}  # fmt: skip
"""For every field of `agreement.EXPOSURE`."""


def propose(
    name: str, source: Source, new: NewDataset, privacy: Privacy, *, note: Callable[[str], None]
) -> Agreement:
    """The agreement of a new data set; `note` receives which facts about the samples become public.

    Raises   InputError, RangeError
    """
    columns = _columns(source, new, note) if isinstance(source, TableSource) else ()
    if new.classes is None:
        require_fewer_classes_than_samples(source)
    classes = tuple(new.classes or source.names)
    if len(set(classes)) != len(classes):
        raise InputError(f"--classes {','.join(classes)}: give every name once")
    target_ranges = _target_ranges(source, classes, new, note)
    encoding = _encoding(source, new, note)
    shape = (1, 1, sum(column.elements for column in columns)) if columns else source.shape
    info = DatasetInfo(name, shape, len(classes), encoding, 0, 0, targets=source.targets)
    notes = Notes(source.kind, classes, columns, target_ranges)
    proposed = _agreement(info, privacy, notes=notes.to_json())
    _require_a_function(proposed)
    return proposed


def accept(found: Agreement, source: Source, new: NewDataset, privacy: Privacy) -> Agreement:
    """The agreement that an owner's options would have proposed of a data set that there is.

    Raises   InputError where the data set is not as an option says, or gives away more than the
             options allow, naming each term and the option that allows it
    """
    info, notes = found.info, Notes.read(found.terms.notes, found.info)
    if notes.kind != source.kind:
        raise InputError(
            f"data set {info.name} holds {_SAMPLES[notes.kind]}, these are "
            f"{_SAMPLES[source.kind]}; give samples as its first client did"
        )
    # The shape of a table is that of its columns, which the data set decides.
    if not isinstance(source, TableSource) and info.shape != source.shape:
        raise InputError(
            f"data set {info.name} holds samples {info.shape}, these are {source.shape}; "
            "bring them to one size, or choose another --name"
        )
    if source.labels is not None and info.targets != source.targets:
        raise InputError(
            f"data set {info.name} has {info.targets} to learn, these samples have "
            f"{source.targets}: read them with --targets {info.targets}, or choose another --name"
        )
    different = _difference(info, notes, new)
    if different is not None:
        raise InputError(f"data set {info.name} {different}, or choose another --name")
    encoding = PIXELS
    if source.kind != "pixels":
        encoding = replace(info.encoding, bits=new.bits or DEFAULT_BITS)
    accepted = _agreement(replace(info, encoding=encoding), privacy, notes=found.terms.notes)
    _require_no_excess(found, accepted, new, privacy)
    return accepted


def _require_a_function(proposed: Agreement) -> None:
    """Refuse a budget of which a training server could never spend anything.

    Raises   InputError; not for a budget of 0, which says so itself
    """
    info, limits = proposed.info, proposed.terms.limits(proposed.info)
    if info.mode == "paper" or info.budget_rank == 0:
        return
    trusted = "or let a trusted runtime alone train (--privacy budget=0)"
    if info.dim < FEWEST_ELEMENTS:
        raise InputError(
            f"data set {info.name}: samples of {info.dim} elements have no function that does not "
            f"give an element away, and no key would be issued to a training server; add columns, "
            f"{trusted}"
        )
    # An exact value mixes elements, and so has more bits than one of them.
    value_bits = min(limits.value_bits, info.encoding.bits)
    if limits.max_bits is not None and limits.max_bits < value_bits:
        raise InputError(
            f"data set {info.name}: {limits.max_bits} bits of a sample are less than the "
            f"{value_bits} of one value; raise --max-bits, lower --value-bits, {trusted}"
        )


def _difference(info: DatasetInfo, notes: Notes, new: NewDataset) -> str | None:
    if new.classes is not None and sorted(new.classes) != sorted(notes.classes):
        return f"has the classes {', '.join(notes.classes)}; drop --classes"
    if new.target_ranges is not None and dict(new.target_ranges) != notes.target_ranges:
        return "has other ranges of its numbers; drop --target-ranges"
    if notes.kind == "pixels" and info.encoding != PIXELS:
        return "encodes pixels otherwise than this program does"
    if notes.kind == "values" and new.value_range is not None:
        if info.encoding != Encoding.for_range(*new.value_range, bits=info.encoding.bits):
            return f"holds {info.encoding.low:g} to {info.encoding.high:g}; drop --range"
    elif new.ranges is not None and not _same_ranges(new.ranges, notes.columns):
        return "has other ranges; drop --ranges to take those of its first client"
    return None


def _same_ranges(given: Mapping[str, PublicRange], columns: Sequence[Column]) -> bool:
    public = {name: public_column(name, ends) for name, ends in given.items()}
    return public == {column.name: replace(column, fill=None) for column in columns}


def _require_no_excess(
    found: Agreement, accepted: Agreement, new: NewDataset, privacy: Privacy
) -> None:
    beyond = excesses(found, accepted)
    if not beyond:
        return
    # The defaults of other terms follow from the description: what is left once it is agreed.
    info, ours = found.info, accepted.info
    budget = max(info.budget_rank, ours.budget_rank)
    described = replace(ours, budget_rank=budget, encoding=info.encoding)
    left = {x.field for x in excesses(found, Agreement(described, accepted.terms))}
    named = [x for x in beyond if x.field in left | {"budget_rank", "encoding"}]
    listed = ", ".join(_said(excess, new, privacy) for excess in named)
    raise InputError(
        f"data set {found.info.name} gives away more than you agreed to: {listed}; agree with "
        "these options, or choose another --name"
    )


def _said(excess: Excess, new: NewDataset, privacy: Privacy) -> str:
    described = FIELDS[excess.field]
    default = "" if described.is_given(new, privacy) else "the default "
    instead = f"{default}{described.value(excess.accepted)}"
    return f"{described.name} {described.value(excess.found)} instead of {instead} " + (
        f"({described.option(excess.found)})"
    )


def _agreement(info: DatasetInfo, privacy: Privacy, *, notes: str) -> Agreement:
    rank = privacy.budget_rank
    info = replace(
        info,
        samples=0,
        budget_rank=info.default_budget if rank is None else rank,
        mode=privacy.mode,
    )
    terms = Terms(
        labels_to_server=privacy.labels_to == "server",
        max_bits=privacy.max_bits,
        value_bits=privacy.value_bits,
        one_function=not privacy.many_functions,
        evaluations=privacy.evaluations,
        notes=notes,
    )
    return Agreement(info, terms)


def _columns(
    source: TableSource, new: NewDataset, note: Callable[[str], None]
) -> tuple[Column, ...]:
    columns = source.columns(new.ranges)
    kinds = {column.kind for column in columns} if new.ranges is None else set()
    told = [
        *(["every column's smallest and largest value"] if kinds - {"category"} else []),
        *(["every value of a category"] if "category" in kinds else []),
        *(["every fill of missing cells"] if any(c.fill is not None for c in columns) else []),
    ]
    if told:
        option = "public --ranges" if kinds else "values to --fill"
        note(
            f"{', '.join(told)} of your data becomes known to the other clients and the "
            f"authority; give {option} to avoid it"
        )
    return columns


def _target_ranges(
    source: Source, names: Sequence[str], new: NewDataset, note: Callable[[str], None]
) -> Ranges:
    """Public ranges of the numbers to be predicted."""
    if source.targets != "numbers":
        if new.target_ranges is not None:
            raise InputError(
                f"--target-ranges: is for numbers, these samples have {source.targets}"
            )
        return {}
    ranges = new.target_ranges
    if ranges is None and source.labels is not None:
        lows, highs = source.labels.min(axis=0), source.labels.max(axis=0)
        ends = zip(lows.tolist(), highs.tolist(), strict=True)
        ranges = dict(zip(source.names, ends, strict=True))
        note(
            "the smallest and largest value of every number that is to be predicted becomes known "
            "to the other clients and the authority; give public --target-ranges to avoid it"
        )
    check_target_ranges(tuple(names), ranges or {})
    return ranges or {}


def _encoding(source: Source, new: NewDataset, note: Callable[[str], None]) -> Encoding:
    if source.kind == "pixels":
        return PIXELS
    low, high = -1.0, 1.0
    if source.kind == "values" and new.value_range is not None:
        low, high = new.value_range
    elif source.kind == "values":
        low, high = value_range(source)
        note(
            f"the range of your data, {low:g} to {high:g}, becomes public; give a public --range "
            "to avoid it"
        )
        high = high if high > low else low + 1.0
    return Encoding.for_range(low, high, bits=new.bits or DEFAULT_BITS)
