from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Annotated

import pytest
import typer

from cloister.cli.options import ModelInputs, grouped, numbers, rate
from cloister.data.preprocessing import Preprocessing
from cloister.errors import InputError
from cloister.trusted.pads.factory import Rate


def test_numbers():
    assert numbers("0.5, 1/4,2e1", option="--mean") == (0.5, 0.25, 20.0)
    assert numbers("1/127.5,-1.5/2, 1e2 / 0.5", option="--mean") == (1 / 127.5, -0.75, 200.0)
    for text in ("", "a", "1,,2", "1/0", "1/", "/2", "1/2/4", "1e999", "nan"):
        with pytest.raises(InputError, match="--mean"):
            numbers(text, option="--mean")


def test_preprocessing():
    assert ModelInputs().preprocessing() == Preprocessing()
    assert ModelInputs(resize="4,6").preprocessing().resize == (4, 6)
    assert ModelInputs(scale="1/127.5").preprocessing().scale == 1 / 127.5
    for changes in ({"std": "0"}, {"scale": "1,2"}, {"scale": "-1"}, {"resize": "4"}):
        with pytest.raises(InputError, match="--"):
            ModelInputs(**changes).preprocessing()


def test_rate():
    assert rate("25%") == Rate(share=0.25)
    assert rate("1.5/h") == Rate(per_hour=1.5)
    for text in ("25", "0%", "%", "10/m"):
        with pytest.raises(InputError, match="rate"):
            rate(text)


@dataclass(frozen=True)
class Size:
    height: Annotated[int, typer.Option("--height")]
    width: Annotated[int, typer.Option("--width")] = 3


def test_a_group_is_one_option_for_each_field():
    seen = []

    @grouped
    def verb(name: str, size: Size, last: bool = False) -> None:
        """Shown."""
        seen.append((name, size, last))

    parameters = signature(verb).parameters
    assert list(parameters) == ["name", "height", "width", "last"]
    assert parameters["width"].default == 3
    assert parameters["height"].default is Parameter.empty
    assert parameters["height"].annotation is Size.__annotations__["height"]
    assert verb.__doc__ == "Shown."
    verb(name="a", height=1, width=2, last=True)
    assert seen == [("a", Size(1, 2), True)]
