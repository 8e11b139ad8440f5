"""The attacks of an audit, by their names."""

from collections.abc import Mapping

from cloister.audit.input.ridge_decoder import RidgeDecoder
from cloister.audit.input.split_attack import SplitAttack

BATTERY: Mapping[str, SplitAttack] = {attack.name: attack for attack in (RidgeDecoder(),)}
