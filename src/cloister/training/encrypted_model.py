"""A model that was trained on encrypted samples, as it is kept: a folder of four files.

    model.json          what the model is of, its settings, history and claims; names the others
    first-DIGEST.npz    the first layer: the function of a sample that a server may ask for
    rest-DIGEST.onnx    the layers behind it, up to the scores
    state-DIGEST.pt     the parameters for PyTorch, from which training may go on

A file's name is the beginning of its SHA-256, and `model.json` takes its place last. So whenever
the process is killed, the folder holds the old model or the new one, whole. To open a model
executes nothing of it and needs no PyTorch.

Classes have the numbers of the data set file, under which the server sees them. Their names, and
the units of a sample, are no part of the folder: a client's token at the authority tells them
(docs/adr/0021).
"""

import hashlib
import io
import json
import math
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from jaxtyping import Float32
from numpy.typing import ArrayLike
from onnxruntime import InferenceSession

from cloister.base import files
from cloister.base.reading import open_regular, parsing
from cloister.data.array_files import array_header
from cloister.data.dataset import EncryptedDataset
from cloister.data.feature_noise import GaussianNoise
from cloister.data.info import DatasetInfo
from cloister.errors import CloisterError, EncryptionError, InputError, ShapeError
from cloister.graph.graph import Graph
from cloister.graph.onnx.export import model_bytes
from cloister.graph.onnx.read import from_model
from cloister.graph.ort_session import runtime_session
from cloister.plan.claims import Claims
from cloister.training.ciphertexts import CiphertextServer
from cloister.training.predictions import (
    PredictionOptions,
    Predictions,
    predict,
)
from cloister.training.scaled_map import ScaledMap
from cloister.training.settings import Settings
from cloister.training.training_authority import TrainingAuthority

FORMAT = 1
NAME = "model.json"
_PROBE = ".writable"
MAX_DOCUMENT_BYTES = 1 << 24
_SUFFIXES = {"first": "npz", "rest": "onnx", "state": "pt"}
_MEMBER = re.compile(r"first-[0-9a-f]{16}\.npz|rest-[0-9a-f]{16}\.onnx|state-[0-9a-f]{16}\.pt")


@dataclass(frozen=True, eq=False)
class EncryptedModel:
    """A model that was trained on an encrypted data set.

    name        that of its builder: mlp, lenet5, a file or a class
    run         digest of data set, model and settings, which another run of it has too
    info        the data set's description when the model was trained
    identity    the data set's: it changes with every part
    authority   fingerprint of the data set's authority
    clients     fingerprint of the data set's clients, under whose label key its classes are
    settings    of the run
    history     one mapping for each epoch
    claims      what each party of the run could learn
    first       the first layer
    rest        from the first layer's values to scores, one for each class
    state       PyTorch's state of the whole model, for torch.load(weights_only=True)
    """

    name: str
    run: str
    info: DatasetInfo
    identity: str
    authority: str
    clients: str
    settings: Settings
    history: tuple[Mapping[str, Any], ...]
    claims: Claims
    first: ScaledMap
    rest: Graph
    state: bytes

    def __post_init__(self) -> None:
        shapes = self.first.linear.geometry.in_shape, self.info.shape
        if shapes[0] != shapes[1]:
            raise ShapeError(f"model: its first layer takes {shapes[0]}, a sample is {shapes[1]}")
        taken = [(None, *self.first.shape)], [(None, self.info.classes)]
        found = [
            [self.rest.types[name].shape if name in self.rest.types else None for name in names]
            for names in (self.rest.inputs, self.rest.outputs)
        ]
        if found != list(taken):
            raise ShapeError(
                f"model: its layers behind the first take {found[0]} and give {found[1]}, not "
                f"{taken[0]} and {taken[1]}"
            )

    @classmethod
    def open(cls, folder: Path | str) -> "EncryptedModel":
        """The model that a folder keeps.

        Raises   InputError when the folder keeps none, EncryptionError when it is damaged
        """
        folder = Path(folder)
        path = folder / NAME
        if not path.exists():
            raise InputError(f"{folder}: holds no {NAME}; give the --out of `cloister train`")
        try:
            with parsing("it is damaged"), open_regular(path) as file:
                return _made(folder, json.loads(file.read(MAX_DOCUMENT_BYTES)))
        except CloisterError as error:
            raise EncryptionError(
                f"{folder}: its model is damaged, or another version's ({error}); train again"
            ) from None

    def save(self, folder: Path | str) -> None:
        """Keep the model in a folder, for its owner alone, in the place of one that is there.

        Raises   InputError when the folder cannot be written; an older model is still there then
        """
        folder = Path(folder)
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **self.first.arrays())
        contents = {"first": buffer.getvalue(), "rest": model_bytes(self.rest), "state": self.state}
        digests = {kind: hashlib.sha256(content).hexdigest() for kind, content in contents.items()}
        document = {
            "format": FORMAT, "name": self.name, "run": self.run,
            "info": json.loads(self.info.to_json()), "identity": self.identity,
            "authority": self.authority, "clients": self.clients, "settings": asdict(self.settings),
            "history": self.history, "claims": self.claims.to_dict(),
            "first": self.first.to_fields(), "files": digests,
        }  # fmt: skip
        with _writing(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for kind, content in contents.items():
                files.replace(folder / _file_name(kind, digests[kind]), content, private=True)
            files.replace(folder / NAME, json.dumps(document, indent=1).encode(), private=True)
            _remove_others(folder, {_file_name(kind, digests[kind]) for kind in contents})

    def scores(self, values: Float32[np.ndarray, "n ..."]) -> Float32[np.ndarray, "n classes"]:
        """Scores from the first layer's values, in the order of the data set file's classes.

        Raises   ShapeError; EncryptionError when the layers cannot be run
        """
        if values.shape[1:] != self.first.shape:
            raise ShapeError(f"model: takes values {self.first.shape}, not {values.shape[1:]}")
        (taken,) = self.rest.inputs
        with parsing("model: its layers behind the first cannot be run", kind=EncryptionError):
            return np.asarray(self._session.run(None, {taken: values})[0], np.float32)

    def predict(
        self,
        dataset: EncryptedDataset | Path | str,
        *,
        authority: TrainingAuthority,
        ids: ArrayLike | None = None,
        options: PredictionOptions | None = None,
        host: CiphertextServer | None = None,
        update: Callable[[int, int], None] = lambda done, total: None,
    ) -> Predictions:
        """The answers for encrypted samples; see `predictions.predict`."""
        opened = (
            dataset if isinstance(dataset, EncryptedDataset) else EncryptedDataset.open(dataset)
        )
        return predict(
            self, opened, authority=authority, ids=ids, options=options, host=host, update=update
        )

    @cached_property
    def _session(self) -> InferenceSession:
        return runtime_session(
            model_bytes(self.rest), threads=self.settings.threads, optimised=True
        )


def require_writable(folder: Path) -> None:
    """Make the folder, and see that a file can be written there.

    Raises   InputError
    """
    with _writing(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with files.replacing(folder / _PROBE, private=True):
            pass
        (folder / _PROBE).unlink(missing_ok=True)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{folder}: the model cannot be kept there ({error.strerror or error}); make room or "
            "choose another --out"
        ) from None


_CANONICAL: dict[str, Any] = {"sort_keys": True, "separators": (",", ":")}


def _made(folder: Path, fields: Mapping[str, Any]) -> EncryptedModel:
    """The model that a document describes."""
    if fields["format"] != FORMAT:
        raise EncryptionError(f"{NAME}: of format {fields['format']}, not {FORMAT}")
    members = {kind: _member(folder, kind, fields["files"][kind]) for kind in _SUFFIXES}
    first = ScaledMap.made(fields["first"], _arrays(members["first"]))
    return EncryptedModel(
        name=str(fields["name"]),
        run=str(fields["run"]),
        info=DatasetInfo.from_json(json.dumps(fields["info"], **_CANONICAL).encode()),
        identity=str(fields["identity"]),
        authority=str(fields["authority"]),
        clients=str(fields["clients"]),
        settings=_settings(fields["settings"]),
        history=tuple(dict(epoch) for epoch in fields["history"]),
        claims=Claims.from_dict(fields["claims"]),
        first=first,
        rest=from_model(onnx.load_model_from_string(members["rest"]), name="rest"),
        state=members["state"],
    )


def _arrays(content: bytes) -> dict[str, np.ndarray]:
    """The arrays of a first layer; they take no more memory than the file.

    Raises   EncryptionError, and what NumPy and zipfile raise of another file
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for member in archive.infolist():
            with archive.open(member) as file:
                shape, _, dtype = array_header(file)
            if math.prod(shape) * dtype.itemsize > len(content):
                raise EncryptionError(f"first layer: {member.filename} is larger than its file")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return dict(arrays)


def _settings(fields: Mapping[str, Any]) -> Settings:
    noise = fields["noise"]
    made = Settings(**{**fields, "noise": None})
    return made if noise is None else replace(made, noise=GaussianNoise(**noise))


def _file_name(kind: str, digest: str) -> str:
    return f"{kind}-{digest[:16]}.{_SUFFIXES[kind]}"


def _member(folder: Path, kind: str, digest: str) -> bytes:
    """The content of a file that `model.json` names.

    Raises   EncryptionError
    """
    path = folder / _file_name(kind, digest)
    if not _MEMBER.fullmatch(path.name):
        raise EncryptionError(f"{NAME}: names no file of a model")
    with open_regular(path) as file:
        content = file.read()
    if hashlib.sha256(content).hexdigest() != digest:
        raise EncryptionError(f"{path.name}: was altered")
    return content


def _remove_others(folder: Path, kept: set[str]) -> None:
    """Delete the files of an older model, and those that a killed process left."""
    files.remove_leftovers(folder)
    for path in folder.iterdir():
        if _MEMBER.fullmatch(path.name) and path.name not in kept:
            path.unlink(missing_ok=True)
