"""Weights that are folded into each other, in float64: what the exact rewrites do to kernels and biases."""

import keras
import numpy as np

Product = tuple[np.ndarray, np.ndarray]
"""Kernel, `(in, out)`, and bias, `(out,)`, of a dense layer."""


def weights_of(layer: keras.layers.Layer) -> list[np.ndarray]:
    """The weights of a layer."""
    return [np.asarray(value, "float64") for value in layer.get_weights()]


def product_of(dense: keras.layers.Dense) -> Product:
    """A dense layer's product; without a bias it has one of zeros."""
    kernel, *bias = weights_of(dense)
    return kernel, bias[0] if bias else np.zeros(kernel.shape[-1])


def after_affine(product: Product, gamma: np.ndarray, beta: np.ndarray) -> Product:
    """The product that takes `x` and computes what `product` does of `x * gamma + beta`."""
    kernel, bias = product
    return gamma[:, None] * kernel, bias + beta @ kernel


def scaled(product: Product, factor: np.ndarray) -> Product:
    """The product whose result is multiplied by `factor`."""
    return product[0] * factor, product[1] * factor


def without_biases(qkv: Product, out: Product) -> tuple[Product, Product]:
    """Products of queries, keys and values without the biases of keys and values, and the output's to match.

    A bias of the keys adds the same to all scores of a query, which the softmax cancels. Attention weights sum to one,
    so that a bias of the values passes through them unchanged.
    """
    dim = len(out[1])
    bias = qkv[1].copy()
    out = out[0], out[1] + bias[2 * dim :] @ out[0]
    bias[dim:] = 0
    return (qkv[0], bias), out


def centred(values: np.ndarray) -> np.ndarray:
    """`values` without their mean over the last axis."""
    return values - values.mean(axis=-1, keepdims=True)
