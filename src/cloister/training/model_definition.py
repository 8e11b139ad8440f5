"""What a run trains, and how: a model by its name, or what a user's Python file defines.

    build(shape, classes)      the model, required
    loss(scores, targets)      a value per sample, or their mean; or the name of a loss
    optimizer(parameters)      an optimizer
    scheduler(optimizer)       a scheduler, which steps after each epoch
    class_weights              'balanced', or a function of the classes' counts

A public name that is none of these, and that nothing in the file uses, is an error: a misspelt
`optimiser` would else train with the default.
"""

import ast
import difflib
import functools
import hashlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn
from torch.optim import Optimizer

from cloister.base.reading import parsing
from cloister.errors import InputError
from cloister.training.losses import ClassWeights, Loss, check_class_weights, check_loss
from cloister.training.models import MODELS, Builder
from cloister.training.schedule import MakeScheduler
from cloister.training.settings import LossName

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]


@dataclass(frozen=True)
class ModelDefinition:
    """A model, and what its author gives to train it; None: the settings decide.

    build    makes the model from (height, width, channels) and the number of classes
    digest   of the file that it comes from, else empty
    """

    build: Builder
    loss: Loss | LossName | None = None
    optimizer: MakeOptimizer | None = None
    scheduler: MakeScheduler | None = None
    class_weights: ClassWeights | None = None
    name: str = "model"
    digest: str = ""

    def __post_init__(self) -> None:
        check_loss(self.loss)
        check_class_weights(self.class_weights)
        for name in ("optimizer", "scheduler"):
            if not (getattr(self, name) is None or callable(getattr(self, name))):
                raise InputError(f"{self.name}: {name} must be a function")

    def module(self, shape: tuple[int, int, int], *, classes: int) -> nn.Module:
        """The model for samples of a shape.

        Raises   InputError naming the model or its file
        """
        with parsing(f"{self.name}: build(shape, classes) fails"):
            model = self.build(shape, classes)
        if not isinstance(model, nn.Module):
            kind = type(model).__name__
            raise InputError(f"{self.name}: build() returned {kind}, not a torch.nn.Module")
        return model


GIVEN = tuple(one.name for one in fields(ModelDefinition) if one.name not in ("name", "digest"))

OPTIONS = ("early_stopping", "epochs", "batch", "learning_rate", "seed")
"""What `cloister train` decides by an option of the name."""


def define(model: str) -> ModelDefinition:
    """A model by name, or by `FILE.py`.

    The file is the user's own program and runs with all his rights.

    Raises   InputError naming the file
    """
    if model.endswith(".py"):
        return _of_file(Path(model))
    if model not in MODELS:
        raise InputError(f"model {model!r}: choose {', '.join(MODELS)} or give FILE.py")
    return ModelDefinition(MODELS[model], name=model)


def _of_file(path: Path) -> ModelDefinition:
    if not path.is_file():
        raise InputError(f"{path}: no such Python file")
    text = path.read_bytes()
    module = _run(path)
    if not callable(getattr(module, "build", None)):
        raise InputError(f"{path}: defines no function build(shape, classes)")
    _check_names(path, ast.parse(text))
    given = {
        name: _named(path, name, getattr(module, name)) for name in GIVEN if hasattr(module, name)
    }
    try:
        return ModelDefinition(**given, name=str(path), digest=hashlib.sha256(text).hexdigest())
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _named(path: Path, name: str, given: Any) -> Any:  # noqa: ANN401
    """The same function, whose failures name the file; what is no function stays."""
    if not callable(given) or name == "build":
        return given

    @functools.wraps(given)
    def called(*arguments: Any) -> Any:  # noqa: ANN401
        with parsing(f"{path}: {name} fails"):
            return given(*arguments)

    return called


def _run(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"cloister_model_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path}: no such Python file")
    module = importlib.util.module_from_spec(spec)
    with parsing(f"{path}: fails when it is run"):  # the user's program may fail in any way
        spec.loader.exec_module(module)
    return module


def _check_names(path: Path, tree: ast.Module) -> None:
    """Refuse a public name that neither the file nor a run uses.

    Raises   InputError naming it
    """
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and _is_read(node)}
    for name in _defined(tree.body):
        if name in GIVEN or name in used or name.startswith("_"):
            continue
        close = difflib.get_close_matches(name, GIVEN, n=1)
        hint = f"did you mean {close[0]}" if close else f"a model file gives {', '.join(GIVEN)}"
        if name in OPTIONS:
            hint = f"--{name.replace('_', '-')} of `cloister train` decides it"
        raise InputError(
            f"{path}: defines {name}, which nothing uses ({hint}); rename or remove it, or begin "
            "its name with an underscore"
        )


def _is_read(node: ast.Name) -> bool:
    return isinstance(node.ctx, ast.Load)


def _defined(body: list[ast.stmt]) -> Iterator[str]:
    """Names that the statements at the top of a file define, imports aside."""
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield statement.name
        elif isinstance(statement, ast.Assign):
            targets = [node for target in statement.targets for node in ast.walk(target)]
            yield from (
                node.id
                for node in targets
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            )
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            yield statement.target.id
