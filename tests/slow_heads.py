# SPDX-License-Identifier: Apache-2.0
"""The parts of the attribute papers' heads once more, in numpy and one place at a time: what tests compare with."""

import math

import numpy as np


def array(tensor):
    """A tensor or parameter in double precision."""
    return tensor.detach().double().numpy()


def slow_softmax(scores):
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()


def sigmoid(values):
    return 1 / (1 + np.exp(-values))


def linear(layer, values):
    """A linear layer, or a 1x1 convolution of one place."""
    weight = array(layer.weight).reshape(layer.weight.shape[0], -1)
    return weight @ values + (0 if layer.bias is None else array(layer.bias))


def project(layer, feature_map):
    """A 1x1 convolution place by place."""
    found = np.empty((len(feature_map), layer.weight.shape[0], *feature_map.shape[2:]))
    for n, row, column in np.ndindex(len(feature_map), *feature_map.shape[2:]):
        found[n, :, row, column] = linear(layer, feature_map[n, :, row, column])
    return found


def normalise(layer, feature_map):
    """One group over the channels and places of an image."""
    found = np.empty_like(feature_map)
    for n, image in enumerate(feature_map):
        plain = (image - image.mean()) / math.sqrt(image.var() + 1e-5)
        found[n] = plain * array(layer.weight)[:, None, None] + array(layer.bias)[:, None, None]
    return found


def slow_places(layer, projected, queries):
    """softmax over places of <query, tanh(norm(map))> / sqrt(D)."""
    keys = np.tanh(normalise(layer.norm, projected))
    attention = np.empty((len(projected), len(queries), *projected.shape[2:]))
    for n, a in np.ndindex(attention.shape[:2]):
        scores = sum(queries[a, d] * keys[n, d] for d in range(projected.shape[1])) / math.sqrt(projected.shape[1])
        attention[n, a] = slow_softmax(scores)
    return attention


def slow_sum(feature_map, weights):
    found = np.zeros((*weights.shape[:2], feature_map.shape[1]))
    for n, a, row, column in np.ndindex(weights.shape):
        found[n, a] += weights[n, a, row, column] * feature_map[n, :, row, column]
    return found


def slow_channels(layer, attended, prompts):
    """sigmoid(F2 relu(F1 [attended; prompt]))."""
    gates = np.empty_like(attended)
    for n, a in np.ndindex(attended.shape[:2]):
        hidden = np.maximum(linear(layer.reduce, np.concatenate([attended[n, a], prompts[a]])), 0)
        gates[n, a] = sigmoid(linear(layer.expand, hidden))
    return gates


def slow_gate(layer, projected, weights):
    """Sigmoid of a 7x7 convolution of the mean and the maximum over the channels of weight * map."""
    kernel = array(layer.convolution.weight)[0]
    gates = np.empty_like(weights)
    for n, a in np.ndindex(weights.shape[:2]):
        weighted = projected[n] * weights[n, a]
        planes = np.pad(np.stack([weighted.mean(0), weighted.max(0)]), ((0, 0), (3, 3), (3, 3)))
        for row, column in np.ndindex(weighted.shape[1:]):
            gates[n, a, row, column] = sigmoid((kernel * planes[:, row : row + 7, column : column + 7]).sum())
    return gates


def slow_low_level(layer, low, high):
    """Maximum over 3x3 places at every second place, projected, added."""
    padded = np.pad(low, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    pooled = np.empty((*low.shape[:2], *high.shape[2:]))
    for row, column in np.ndindex(high.shape[2:]):
        window = padded[:, :, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
        pooled[:, :, row, column] = window.max(axis=(2, 3))
    return high + project(layer.projection, pooled)


def rows(layer, vectors):
    return np.stack([linear(layer, vector) for vector in vectors])
