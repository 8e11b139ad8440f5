"""CSV files as people have them: forty patients, written in many ways."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

MAKE = random.Random(0)


@dataclass(frozen=True)
class Patient:
    age: str
    bp: str
    sex: str
    label: int


def _patient() -> Patient:
    age, bp = f"{MAKE.randint(20, 90)}", f"{MAKE.uniform(90, 180):.1f}"
    return Patient(age, bp, MAKE.choice("mf"), MAKE.choice([0, 1]))


PATIENTS = tuple(_patient() for _ in range(40))


def written(
    header: str, row: Callable[[int, Patient], str], *, end: str = "\n", patients=PATIENTS
) -> str:
    """A file with one line for each patient."""
    lines = [header, *(row(i, patient) for i, patient in enumerate(patients))]
    return "".join(line + end for line in lines)


def plain(i: int, p: Patient) -> str:
    return f"{p.age},{p.bp},{p.label}"


def _gaps(text: str) -> str:
    return written("age,bp,label", lambda i, p: f"{p.age},{p.bp if i % 7 else text},{p.label}")


def _first(text: str) -> str:
    return written("age,bp,label", lambda i, p: f"{p.age},{p.bp if i else text},{p.label}")


def comma(text: str) -> str:
    return text.replace(".", ",")


CSV: Mapping[str, str | bytes] = {
    "missing": _gaps(""),
    "na": _gaps("NA"),
    "nan": _gaps("nan"),
    "strings": written("age,sex,bp,label", lambda i, p: f"{p.age},{p.sex},{p.bp},{p.label}"),
    "dates": written(
        "visit,age,bp,label", lambda i, p: f"2024-01-{1 + i % 28:02d},{p.age},{p.bp},{p.label}"
    ),
    "quotes": written(
        '"age","bp, systolic","label"',
        lambda i, p: f'"{p.age}","{p.bp}","{"yes" if p.label else "no"}"',
        end="\r\n",
    ),
    "bom": b"\xef\xbb\xbf"
    + written("label,age,bp", lambda i, p: f"{p.label},{p.age},{p.bp}").encode(),
    "utf16": written("age,bp,label", plain).encode("utf-16"),
    "latin1": written(
        "age,bp,label", lambda i, p: f"{p.age},{p.bp},{'böse' if p.label else 'gut'}"
    ).encode("latin-1"),
    "semicolon": written("age;bp;label", lambda i, p: f"{p.age};{p.bp};{p.label}"),
    "semicomma": written("age;bp;label", lambda i, p: f"{p.age};{comma(p.bp)};{p.label}"),
    "tab": written("age\tbp\tlabel", lambda i, p: f"{p.age}\t{p.bp}\t{p.label}"),
    "deccomma_q": written("age,bp,label", lambda i, p: f'{p.age},"{comma(p.bp)}",{p.label}'),
    "noheader": "".join(plain(i, p) + "\n" for i, p in enumerate(PATIENTS)),
    "onerow": "age,bp,label\n61,120,1\n",
    "headeronly": "age,bp,label\n",
    "empty": "",
    "oneclass": written("age,bp,label", lambda i, p: f"{p.age},{p.bp},1"),
    "imbalance": written(
        "age,bp,label", lambda i, p: f"{p.age},{p.bp},{1 if i == 3 else 0}", patients=PATIENTS * 10
    ),
    "middle": written("age,label,bp", lambda i, p: f"{p.age},{p.label},{p.bp}"),
    "huge": _first("1e300"),
    "inf": _first("inf"),
    "constant": written("age,k,bp,label", lambda i, p: f"{p.age},5,{p.bp},{p.label}"),
    "dups": written("age,bp,label", plain, patients=PATIENTS * 3),
    "id": written("patient_id,age,bp,label", lambda i, p: f"{100000 + i},{p.age},{p.bp},{p.label}"),
    "ragged": written("age,bp,label", lambda i, p: plain(i, p) + (",9" if i == 5 else "")),
    "trailing": written("age,bp,label", plain) + "\n\n",
    "spaces": written("age, bp, label", lambda i, p: f"{p.age}, {p.bp}, {p.label}"),
    "floatlabel": written("age,bp,label", lambda i, p: plain(i, p) + ".0"),
    "missinglabel": written(
        "age,bp,label", lambda i, p: f"{p.age},{p.bp},{p.label if i != 4 else ''}"
    ),
    "regress": written("age,bp,label", lambda i, p: f"{p.age},{p.bp},{MAKE.uniform(0, 5):.3f}"),
    "thousands": written(
        "age,bp,label", lambda i, p: f'{p.age},"1,{int(float(p.bp)):03d}",{p.label}'
    ),
    "bool": written(
        "age,smoker,label", lambda i, p: f"{p.age},{'TRUE' if p.sex == 'm' else 'FALSE'},{p.label}"
    ),
}
"""The files of the issue's kinds, by name."""
