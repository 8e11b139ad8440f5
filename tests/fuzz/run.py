"""Attack one loader for a number of rounds."""

import shutil
from pathlib import Path

import numpy as np

from cloister.errors import CloisterError
from fuzz.loaders import Loader


class ForeignError(AssertionError):
    """A loader raised what is not the library's; `data` is the file that did it."""

    def __init__(self, error: BaseException, data: bytes, seed: tuple[int, int]) -> None:
        super().__init__(f"{type(error).__name__}: {error} (seed and round {seed})")
        self.data = data


def attack(loader: Loader, folder: Path, *, seed: int, rounds: int) -> int:
    """How many of the damaged files could be read all the same.

    Raises   ForeignError, with the file that was damaged
    """
    good = folder / "good"
    good.mkdir()
    path = loader.make(good)
    data = path.read_bytes()
    read = 0
    for number in range(rounds):
        rng = np.random.default_rng([seed, number])
        mutate = loader.mutators[number % len(loader.mutators)]
        damaged = mutate(data, rng)
        place = folder / "damaged"
        shutil.copytree(good, place)
        target = place / path.name
        target.write_bytes(damaged)
        target.chmod(0o600)
        try:
            loader.load(target)
            read += 1
        except CloisterError as error:
            assert str(error)
        except BaseException as error:
            raise ForeignError(error, damaged, (seed, number)) from error
        shutil.rmtree(place)
    return read
