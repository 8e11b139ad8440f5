"""Functional encryption: the server learns values of functions, never the samples themselves."""

from cloister.fe import ddh, lwe, mask, matrix
from cloister.fe.encoding import Encoding
from cloister.fe.keyservice import DatasetInfo, KeyService, Mode, Receiver

__all__ = [
    "DatasetInfo",
    "Encoding",
    "KeyService",
    "Mode",
    "Receiver",
    "ddh",
    "lwe",
    "mask",
    "matrix",
]
