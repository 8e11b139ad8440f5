"""The shape annotations of every package are executed."""

import importlib
import pkgutil
from collections import Counter

import numpy as np
import pytest
from jaxtyping import TypeCheckError

import cloister
import shapes
from cloister.errors import ShapeError
from cloister.ring import pads
from cloister.trusted import checks


def functions(holder, module):
    for member in vars(holder).values():
        member = getattr(member, "__func__", getattr(member, "fget", getattr(member, "func", member)))
        if isinstance(member, type) and member.__module__ == module and member is not holder:
            yield from functions(member, module)
        elif getattr(member, "__module__", None) == module:
            yield member


def test_every_package_has_functions_whose_shapes_are_checked():
    found = Counter()
    for info in pkgutil.walk_packages(cloister.__path__, "cloister."):
        if not info.name.endswith("__main__"):
            module = importlib.import_module(info.name)
            names = (getattr(one, "__shapes__", ()) for one in functions(module, info.name))
            found[info.name.split(".")[1]] += sum(map(bool, names))
    print(found)
    missing = {name for name, count in found.items() if not count}
    assert missing == {"errors", "examples"}
