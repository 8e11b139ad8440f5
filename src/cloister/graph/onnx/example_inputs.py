"""Example inputs of a module: tensors, which may lie in lists, tuples and mappings, by name."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

Leaf = tuple[str, Any]


@dataclass(frozen=True)
class ExampleInputs:
    """Arguments of a call, and the name of everything in them that is no list, tuple or mapping."""

    places: tuple[object, ...]
    keywords: Mapping[str, object]
    leaves: tuple[Leaf, ...]

    @classmethod
    def of(cls, example: object) -> Self:
        """One argument, a tuple of them, or a mapping of keyword arguments."""
        if isinstance(example, Mapping):
            return cls((), example, tuple(_named(example, "")))
        places = example if isinstance(example, tuple) else (example,)
        return cls(places, {}, tuple(_named(places if len(places) > 1 else places[0], "input")))

    def call(self, function: Callable[..., object], other: Mapping[str, object]) -> object:
        """Call with other leaves in the place of those of the same names."""
        leaves = iter([other.get(name, value) for name, value in self.leaves])
        places, keywords = with_leaves([[*self.places], self.keywords], leaves)
        return function(*places, **keywords)


def with_leaves(like: object, leaves: Iterator[object]) -> Any:  # noqa: ANN401  (as it was)
    """The same lists, tuples and mappings around other leaves."""
    if isinstance(like, Mapping):
        return {key: with_leaves(entry, leaves) for key, entry in like.items()}
    if isinstance(like, list):
        return [with_leaves(entry, leaves) for entry in like]
    if isinstance(like, tuple):
        return tuple(with_leaves(entry, leaves) for entry in like)
    return next(leaves)


def leaves_of(value: object) -> list[Any]:
    """What is no list, tuple or mapping, in order."""
    return [leaf for _, leaf in _named(value, "")]


def _named(value: object, name: str) -> Iterator[Leaf]:
    """Leaves, each with its key or number behind the name of what holds it."""
    if isinstance(value, Mapping | list | tuple):
        entries = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, entry in entries:
            yield from _named(entry, f"{name}_{key}" if name else str(key))
    else:
        yield name, value
