"""The attacks of an audit, by their names."""

from collections.abc import Mapping

from cloister.audit.input.conditional_gan import ConditionalGan
from cloister.audit.input.feature_decoder import FeatureDecoder
from cloister.audit.input.input_optimisation import InputOptimisation
from cloister.audit.input.ridge_decoder import RidgeDecoder
from cloister.audit.input.split_attack import SplitAttack

_ATTACKS: tuple[SplitAttack, ...] = (
    ConditionalGan(),
    FeatureDecoder(),
    InputOptimisation(),
    RidgeDecoder(),
)
BATTERY: Mapping[str, SplitAttack] = {attack.name: attack for attack in _ATTACKS}
