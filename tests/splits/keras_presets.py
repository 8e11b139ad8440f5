"""The presets as Keras models, layer by layer as eNNclave's authors wrote them."""

import numpy as np


def build(keras, name):
    """A preset that is small enough for a test, in inference mode."""
    layers = keras.layers
    models = {
        "mnist": [
            keras.Input((28, 28, 1)),
            layers.Conv2D(32, 3, activation="relu", padding="same"),
            layers.Conv2D(64, 3, activation="relu", padding="same"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dropout(0.4),
            layers.Dense(128, activation="relu"),
            layers.Dropout(0.4),
            layers.Dense(10, activation="softmax"),
        ],
        "imdb": [
            keras.Input((20_000,)),
            layers.Dropout(0.2),
            layers.Dense(64, activation="relu"),
            layers.Dropout(0.2),
            layers.Dense(1, activation="sigmoid"),
        ],
        "rotten": [
            keras.Input((51,), dtype="int32"),
            layers.Embedding(20_000, 200),
            layers.Dropout(0.2),
            *_separable(layers, 64, 2),
            layers.MaxPooling1D(3),
            *_separable(layers, 128, 2),
            layers.GlobalAveragePooling1D(),
            layers.Dropout(0.2),
            layers.Dense(1, activation="sigmoid"),
        ],
        "amazon": [
            keras.Input((500,), dtype="int32"),
            layers.Embedding(20_000, 32),
            *(
                one
                for filters in (64, 128, 256, 256)
                for one in (*_separable(layers, filters, 1), layers.MaxPooling1D(2))
            ),
            layers.Flatten(),
            layers.Dense(600, activation="relu"),
            layers.Dropout(0.3),
            layers.Dense(150, activation="relu"),
            layers.Dropout(0.3),
            layers.Dense(150, activation="relu"),
            layers.Dense(1),
        ],
    }
    return keras.Sequential(models[name], name=name)


def _separable(layers, filters, count):
    return [
        layers.SeparableConv1D(filters, 3, activation="relu", padding="same") for _ in range(count)
    ]


def copy_weights(graph, model):
    """Give a Keras model the constants of a preset's graph, in Keras' order of axes."""
    arrays = list(graph.constants.values())
    wanted = [tuple(weight.shape) for weight in model.weights]
    found = []
    for array, shape in zip(arrays, wanted, strict=True):
        found.append(_as_keras(array, shape, found))
    model.set_weights(found)


def _as_keras(array, shape, before):
    if array.ndim == 4:  # (out, in, h, w) to (h, w, in, out)
        made = array.transpose(2, 3, 1, 0)
    elif array.ndim == 3 and shape[2] == 1:  # depthwise (channels, 1, length)
        made = array.transpose(2, 0, 1)
    elif array.ndim == 3:  # pointwise (out, in, 1)
        made = array.transpose(2, 1, 0)
    elif array.ndim == 2 and (before or shape[0] != 20_000 or array.shape != shape):  # dense
        made = array.T
    else:
        made = array
    last = next((one for one in reversed(before) if one.ndim > 1), None)
    if array.ndim == 2 and last is not None and last.ndim in (3, 4) and made.shape[0] > 200:
        made = _channels_last(made, last.shape[-1])
    assert made.shape == shape
    return made


def _channels_last(rows, channels):
    """Rows of a dense layer behind Flatten: Keras has the channels of its input last."""
    places = rows.shape[0] // channels
    return rows.reshape(channels, places, -1).transpose(1, 0, 2).reshape(rows.shape)


def inputs(graph, count, seed):
    """Random inputs of a preset's graph, and the same for Keras."""
    rng = np.random.default_rng(seed)
    known = graph.types[graph.inputs[0]]
    shape = (count, *known.shape[1:])
    if known.dtype.kind == "i":
        x = rng.integers(0, 20_000, shape).astype(known.dtype)
    else:
        x = rng.random(shape, np.float32)
    return x, x.transpose(0, 2, 3, 1) if x.ndim == 4 else x
