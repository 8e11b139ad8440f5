"""The shape annotations of every package are executed."""

import importlib
import pkgutil
from collections import Counter

import numpy as np
import pytest
from jaxtyping import TypeCheckError

import cloister
import shapes
from cloister.data.encoding import Encoding
from cloister.errors import ShapeError
from cloister.ring import pads
from cloister.ring.rounding import dequantise, quantise

WITHOUT_SHAPES = {"attest", "broker", "bundle", "planner", "tickets", "wire"}
"""Packages that carry bytes, whose arrays are as their messages say, or that have no arrays."""


def functions(holder, module):
    for member in vars(holder).values():
        for inner in ("__func__", "fget", "func"):
            member = getattr(member, inner, member)
        if isinstance(member, type) and member.__module__ == module and member is not holder:
            yield from functions(member, module)
        elif getattr(member, "__module__", None) == module:
            yield member


def test_every_package_has_functions_whose_shapes_are_checked():
    found = Counter()
    packages = {info.name for info in pkgutil.iter_modules(cloister.__path__) if info.ispkg}
    for info in pkgutil.walk_packages(cloister.__path__, "cloister."):
        if info.name.split(".")[1] in packages and not info.name.endswith("__main__"):
            module = importlib.import_module(info.name)
            checked = (hasattr(one, "__shapes__") for one in functions(module, info.name))
            found[info.name.split(".")[1]] += sum(checked)
    assert {name for name, count in found.items() if not count} == WITHOUT_SHAPES
    assert found.total() > 300


def test_wrong_shapes_and_types_are_found():
    with pytest.raises(TypeCheckError, match="parameter 'x'"):
        quantise(np.zeros(3), 1.0, 7)
    with pytest.raises(TypeCheckError, match="parameter 'x'"):
        Encoding(1.0, 0.0, 8).encode([1.0])
    scale = np.ones(4, np.float32)
    with pytest.raises(TypeCheckError, match="parameter 'scale'"):
        dequantise(np.zeros((2, 3), np.uint32), scale, scale)


def test_a_function_with_an_error_of_its_own_raises_that():
    with pytest.raises(ShapeError):
        pads.blind(bytes(32), np.zeros((3, 2)), np.arange(3), domain=1)
    assert pads.blind.__shapes__ == ("return",)


def test_the_hook_comes_before_the_package():
    with pytest.raises(ImportError, match="is imported already"):
        shapes.install()
