"""Executes the shape annotations of the package in every test.

An import hook checks each function of `cloister` that has an array in its signature: types and
axes of arguments and results, and that equal names are equal sizes. All other annotations are
mypy's. A function whose docstring says that it raises ShapeError checks its arguments itself, and
wrong ones must reach its own error: of such a function only the result is checked. The same holds
for the fields of a dataclass.
"""

import importlib.abc
import sys
from functools import cached_property
from types import FunctionType
from typing import get_args

from beartype import beartype
from jaxtyping import AbstractArray, jaxtyped

PACKAGE = "cloister."
OWN_ERROR = "ShapeError"


def install():
    """Check every module of the package that is imported from now on."""
    loaded = sorted(name for name in sys.modules if name.startswith(PACKAGE))
    if loaded:
        raise ImportError(f"{loaded[0]}: is imported already, so that its shapes go unchecked")
    sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if not name.startswith(PACKAGE):
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is not None:
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                _check_members(module, module.__name__)

            spec.loader.exec_module = exec_module
        return spec


def _check_members(holder, module):
    for name, member in list(vars(holder).items()):
        if isinstance(member, type):
            if member.__module__ == module and holder is not member:
                _check_members(member, module)
        elif (checked := _checked(member, holder, module)) is not member:
            setattr(holder, name, checked)


def _checked(member, holder, module):
    if isinstance(member, classmethod | staticmethod):
        return type(member)(_checked(member.__func__, holder, module))
    if isinstance(member, property) and member.fset is None:
        return property(_checked(member.fget, holder, module), doc=member.__doc__)
    if isinstance(member, cached_property):
        member.func = _checked(member.func, holder, module)
        return member
    if not isinstance(member, FunctionType) or hasattr(member, "__wrapped__"):
        return member
    if member.__module__ != module and member.__name__ != "__init__":
        return member
    return _checked_function(member, holder)


def _checked_function(function, holder):
    every = function.__annotations__
    text = (holder if function.__name__ == "__init__" else function).__doc__ or ""
    wanted = {name: hint for name, hint in every.items() if _has_shape(hint)}
    if OWN_ERROR in text:
        wanted = {name: hint for name, hint in wanted.items() if name == "return"}
    if not wanted:
        return function
    function.__annotations__ = wanted
    try:
        checked = jaxtyped(function, typechecker=beartype)
    finally:
        function.__annotations__ = every
    checked.__annotations__, checked.__shapes__ = every, tuple(wanted)
    return checked


def _has_shape(hint):
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(_has_shape(part) for part in get_args(hint))
