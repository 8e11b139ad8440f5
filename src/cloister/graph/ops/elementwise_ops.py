"""Elementwise operators, normalisations and softmax in plain NumPy."""

import math
from collections.abc import Callable

import numpy as np

from cloister.graph.ops.call import Call, NotCovered

Binary = Callable[[np.ndarray, np.ndarray], np.ndarray]


def unary(function: Callable[[np.ndarray], np.ndarray]) -> Callable[[Call], np.ndarray]:
    """A function of one value."""
    return lambda call: np.asarray(function(call.x)).astype(call.x.dtype)


def binary(function: Binary) -> Callable[[Call], np.ndarray]:
    """A function of two values that broadcast."""
    return lambda call: np.asarray(function(call.x, call.required(1)))


def variadic(function: Binary) -> Callable[[Call], np.ndarray]:
    """A function of two values, applied from left to right to any number of them."""

    def evaluate(call: Call) -> np.ndarray:
        result = call.x
        for index in range(1, len(call.inputs)):
            result = function(result, call.required(index))
        return np.asarray(result)

    return evaluate


def relu(x: np.ndarray) -> np.ndarray:
    """max(x, 0)."""
    return np.asarray(np.maximum(x, x.dtype.type(0)))


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), without overflow."""
    small = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1 / (1 + small), small / (1 + small)))


def hard_swish(x: np.ndarray) -> np.ndarray:
    """x clip(x / 6 + 1 / 2, 0, 1)."""
    return np.asarray(x * np.clip(x * x.dtype.type(1 / 6) + x.dtype.type(0.5), 0, 1))


def divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Quotient; of integers, rounded towards zero."""
    if a.dtype.kind == "f":
        return np.asarray(a / b)
    if not np.all(b):
        raise NotCovered("division by zero")
    quotient = np.abs(a) // np.abs(b)
    return np.asarray(np.where((a < 0) != (b < 0), -quotient, quotient), a.dtype)


def leaky_relu(call: Call) -> np.ndarray:
    """X, or alpha x below zero."""
    x = call.x
    return np.where(x < 0, x * x.dtype.type(call.number("alpha", 0.01)), x)


def clip(call: Call) -> np.ndarray:
    """min(max(x, low), high)."""
    x = call.x
    for index, name, limit in ((1, "min", np.maximum), (2, "max", np.minimum)):
        bound = call.optional(index)
        if bound is not None:
            x = limit(x, bound)
        elif name in call.attributes:
            x = limit(x, x.dtype.type(call.number(name, 0.0)))
    return x


def hard_sigmoid(call: Call) -> np.ndarray:
    """clip(alpha x + beta, 0, 1)."""
    alpha, beta = call.number("alpha", 0.2), call.number("beta", 0.5)
    of_type = call.x.dtype.type
    return np.asarray(np.clip(call.x * of_type(alpha) + of_type(beta), 0, 1))


def erf(x: np.ndarray) -> np.ndarray:
    """The error function, in float64."""
    return np.asarray(np.vectorize(math.erf, otypes=[np.float64])(x))


def gelu(call: Call) -> np.ndarray:
    """x Phi(x), exactly or with the tanh approximation."""
    x = call.x.astype(np.float64)
    if call.text("approximate", "none") == "tanh":
        y = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    else:
        y = 0.5 * x * (1 + erf(x / math.sqrt(2)))
    return np.asarray(y, call.x.dtype)


def softmax(call: Call) -> np.ndarray:
    """exp(x) over its sum along an axis; before operator set 13 over all axes from there on."""
    x = call.x
    axis = call.integer("axis", -1 if call.opset >= 13 else 1)
    axes: int | tuple[int, ...] = axis
    if call.opset < 13:
        axes = tuple(range(axis % max(x.ndim, 1), x.ndim))
    y = np.exp(x - x.max(axis=axes, keepdims=True))
    return np.asarray(y / y.sum(axis=axes, keepdims=True))


def batch_normalization(call: Call) -> np.ndarray:
    """(x - mean) / sqrt(variance + epsilon) * scale + shift, per channel, with stored moments."""
    if call.integer("training_mode", 0) or call.outputs > 1:
        raise NotCovered("batch normalisation with stored moments")
    shape = (-1, *(1,) * (call.x.ndim - 2))
    scale, shift, mean, variance = (call.required(i).reshape(shape) for i in range(1, 5))
    epsilon = call.x.dtype.type(call.number("epsilon", 1e-5))
    return np.asarray((call.x - mean) / np.sqrt(variance + epsilon) * scale + shift)


def layer_normalization(call: Call) -> np.ndarray:
    """Normalisation over the last axes, from `axis` on."""
    if call.outputs > 1:
        raise NotCovered("layer normalisation without its moments")
    x, scale, shift = call.x, call.required(1), call.optional(2)
    axis = call.integer("axis", -1)
    axes = tuple(range(axis % x.ndim, x.ndim))
    centred = x - x.mean(axis=axes, keepdims=True)
    variance = np.mean(centred * centred, axis=axes, keepdims=True)
    y = centred / np.sqrt(variance + x.dtype.type(call.number("epsilon", 1e-5))) * scale
    return np.asarray(y if shift is None else y + shift)


def where(call: Call) -> np.ndarray:
    """Second input where the first is true, else the third."""
    return np.where(call.x, call.required(1), call.required(2))
