import pytest

from cloister.cli.images import Preprocessing
from cloister.cli.options import numbers, preprocessing, spread
from cloister.errors import InputError


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("run m.onnx --input a b c", "run m.onnx --input a --input b --input c"),
        ("run --input a b m.onnx --json", "run --input a --input b m.onnx --json"),
        ("run m.onnx --input a --top 3", "run m.onnx --input a --top 3"),
        ("run m.onnx --input=a b", "run m.onnx --input=a --input b"),
        (
            "run m.onnx --calibration a b --input c d",
            "run m.onnx --calibration a --calibration b --input c --input d",
        ),
        ("run m.onnx --input a -- b", "run m.onnx --input a -- b"),
        ("inspect m.onnx --policy open", "inspect m.onnx --policy open"),
        ("run --input", "run --input"),
    ],
)
def test_spread(given, expected):
    assert spread(given.split()) == expected.split()


def test_numbers():
    assert numbers("0.5, 1/4,2e1", option="--mean") == (0.5, 0.25, 20.0)
    for text in ("", "a", "1,,2", "1/0"):
        with pytest.raises(InputError, match="--mean"):
            numbers(text, option="--mean")


def _parse(**changes):
    given = {"mean": "0", "std": "1", "scale": "1/255", "resize": None}
    return preprocessing(**{**given, **changes}, layout=None, channels=None)


def test_preprocessing():
    assert _parse() == Preprocessing()
    assert _parse(resize="4,6").resize == (4, 6)
    for changes in ({"std": "0"}, {"scale": "1,2"}, {"scale": "-1"}, {"resize": "4"}):
        with pytest.raises(InputError, match="--"):
            _parse(**changes)
