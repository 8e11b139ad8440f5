"""How a run trains, and who learns what: checked before anything is asked of anyone."""

from dataclasses import dataclass
from typing import Literal, TypedDict

from cloister.authority.key_service import Receiver
from cloister.data.feature_noise import GaussianNoise
from cloister.data.info import Mode
from cloister.errors import InputError

FirstLayer = Literal["trainable", "frozen"]
Guard = Literal["ledger"]


class Running(TypedDict, total=False):
    """The settings that a trainer hands on as they are."""

    offload_gradients: bool
    batch: int
    seed: int
    rank: int | None
    weight_bits: int
    evaluate_every: int
    checkpoint_every: int
    patience_s: float
    threads: int


@dataclass(frozen=True)
class Settings:
    """How a run trains, and who learns what.

    first_layer              frozen is the safe default; trainable needs keys at every step
    unmask_to                server: whoever runs this learns the first layer's values;
                             trusted: this process is a trusted runtime. No server receives a value;
                             what a host and the authority are asked is in `sent`
    guard                    ledger: the authority counts what every key gives away; no other
    mode                     paper: no budget; needs allow_unbounded_leakage
    offload_gradients        trusted only: the gradient's product runs at the server too, which
                             then sees each sample's output gradient
    noise                    on gradients, with unmask_to='trusted' and first_layer='trainable'
    rank                     of the frozen projection, default the samples' whole budget
    """

    first_layer: FirstLayer = "frozen"
    unmask_to: Receiver = "server"
    guard: Guard = "ledger"
    mode: Mode = "guarded"
    allow_unbounded_leakage: bool = False
    noise: GaussianNoise | None = None
    offload_gradients: bool = False
    batch: int = 64
    seed: int = 0
    rank: int | None = None
    weight_bits: int = 16
    evaluate_every: int = 1
    checkpoint_every: int = 200
    patience_s: float = 60.0
    threads: int = 1

    def __post_init__(self) -> None:
        if self.first_layer not in ("trainable", "frozen"):
            raise InputError(f"first_layer must be trainable or frozen, got {self.first_layer!r}")
        if self.unmask_to not in ("server", "trusted"):
            raise InputError(f"unmask_to must be server or trusted, got {self.unmask_to!r}")
        if self.guard != "ledger":
            raise InputError(f"guard must be ledger, got {self.guard!r}: there is no other")
        for name in ("batch", "threads", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if (self.mode == "paper") != self.allow_unbounded_leakage:
            raise InputError(
                "mode='paper' lets the server read every sample; it needs, and only it takes, "
                "allow_unbounded_leakage=True (--allow-unbounded-leakage)"
            )
        if self.offload_gradients and self.unmask_to != "trusted":
            raise InputError("offload_gradients is only for unmask_to='trusted'")
        noisy = self.noise is not None and self.noise.on == "gradients"
        if noisy and (self.first_layer, self.unmask_to) != ("trainable", "trusted"):
            raise InputError(
                "noise on gradients must be added where they are unmasked, before the server sees "
                "them: use unmask_to='trusted' and first_layer='trainable'"
            )
        if self.noise is not None and not noisy:
            raise InputError("noise on ciphertexts is added by clients, before they encrypt")
