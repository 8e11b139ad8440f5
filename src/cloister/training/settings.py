"""The settings of a run, which decide who learns what; checked before the first request is sent."""

from dataclasses import dataclass
from typing import Literal, get_args

from cloister.authority.key_service import Receiver
from cloister.data.feature_noise import GaussianNoise
from cloister.data.info import Mode
from cloister.errors import InputError

FirstLayer = Literal["frozen", "trainable"]
LossName = Literal["cross-entropy", "binary-cross-entropy", "mse", "l1"]
OptimizerName = Literal["adam", "sgd"]


@dataclass(frozen=True)
class Settings:
    """The settings of a run, which decide who learns what.

    first_layer              frozen is the safe choice; trainable needs keys at every step. Default:
                             frozen where the server unblinds within a budget, else trainable
    unblind_to                server: the operator of this process learns the first layer's values;
                             trusted: this process is a trusted runtime. No server receives a value;
                             `sent` lists the requests to a host and to the authority
    allow_unbounded_leakage  the data set is one of mode paper: no budget, and the server can read
                             every sample
    noise                    on gradients, with unblind_to='trusted' and first_layer='trainable'
    offload_gradients        trusted only: the gradient's product runs at the server too, which
                             then sees each sample's output gradient
    rank                     of the frozen projection, default the samples' whole budget
    loss                     default: cross-entropy for classes, binary-cross-entropy for labels,
                             mse for numbers. mse of classes and labels is CryptoNN's: squared
                             errors of sigmoid outputs
    class_weights            balanced: in inverse proportion to a class's training samples
    optimizer                sgd has momentum 0.9. Default: adam
    learning_rate            default: 0.001 for adam, 0.05 for sgd
    seed                     of weights and order
    checkpoint_every         steps; a checkpoint is also written after every epoch
    patience_s               how long an authority or a ciphertext host may be away
    """

    first_layer: FirstLayer | None = None
    unblind_to: Receiver = "server"
    allow_unbounded_leakage: bool = False
    noise: GaussianNoise | None = None
    offload_gradients: bool = False
    batch: int = 64
    loss: LossName | None = None
    class_weights: Literal["balanced"] | None = None
    optimizer: OptimizerName | None = None
    learning_rate: float | None = None
    seed: int = 0
    rank: int | None = None
    weight_bits: int = 16
    evaluate_every: int = 1
    checkpoint_every: int = 200
    patience_s: float = 60.0
    threads: int = 1

    def __post_init__(self) -> None:
        if self.first_layer is None:
            bounded = self.unblind_to == "server" and not self.allow_unbounded_leakage
            object.__setattr__(self, "first_layer", "frozen" if bounded else "trainable")
        if self.first_layer not in ("frozen", "trainable"):
            raise InputError(f"first_layer must be trainable or frozen, got {self.first_layer!r}")
        if self.unblind_to not in ("server", "trusted"):
            raise InputError(f"unblind_to must be server or trusted, got {self.unblind_to!r}")
        if self.loss not in (None, *get_args(LossName)):
            raise InputError(f"loss must be {', '.join(get_args(LossName))}, got {self.loss!r}")
        if self.class_weights not in (None, "balanced"):
            raise InputError(f"class_weights must be balanced, got {self.class_weights!r}")
        if self.optimizer not in (None, "adam", "sgd"):
            raise InputError(f"optimizer must be adam or sgd, got {self.optimizer!r}")
        for name in ("batch", "threads", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.offload_gradients and self.unblind_to != "trusted":
            raise InputError("offload_gradients is only for unblind_to='trusted'")
        noisy = self.noise is not None and self.noise.on == "gradients"
        if noisy and (self.first_layer, self.unblind_to) != ("trainable", "trusted"):
            raise InputError(
                "noise on gradients must be added where they are unblinded, before the server sees "
                "them: use unblind_to='trusted' and first_layer='trainable'"
            )
        if noisy and self.class_weights is not None:
            raise InputError(
                "class_weights: how often classes occur would be told without noise; train "
                "without them, or without noise"
            )
        if self.noise is not None and not noisy:
            raise InputError("noise on ciphertexts is added by clients, before they encrypt")

    @property
    def mode(self) -> Mode:
        """The mode of the data sets that the run may read."""
        return "paper" if self.allow_unbounded_leakage else "budgeted"
