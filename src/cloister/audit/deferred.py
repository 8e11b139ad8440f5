"""Names of a package that are loaded when they are first used, as their modules need an extra."""

import importlib
from collections.abc import Callable, Mapping

from cloister.errors import InputError

TITLES = {"scipy": "SciPy", "torch": "PyTorch"}


def deferred(
    package: str, homes: Mapping[str, str], *, needs: tuple[str, ...]
) -> Callable[[str], object]:
    """The `__getattr__` of a package.

    homes   modules of the package, by the names that they define
    needs   libraries of the extra `audit`; without one, a name raises InputError
    """

    def load(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            home = importlib.import_module(f"{package}.{homes[name]}")
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] not in needs:
                raise
            wanted = " and ".join(TITLES[library] for library in needs)
            raise InputError(f"the attacks need {wanted}: pip install 'cloister[audit]'") from error
        return getattr(home, name)

    return load
