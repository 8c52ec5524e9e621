"""Convolutions, and the ways to compute them."""

import functools
import operator
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx

Shape: TypeAlias = tuple[int, ...]
HE = nnx.initializers.he_normal()


def conv(
    inputs: int,
    outputs: int,
    size: int,
    convolution: str,
    rngs: nnx.Rngs,
    *,
    strides: int = 1,
    groups: int = 1,
    padding: str = "SAME",
    use_bias: bool = False,
) -> nnx.Conv:
    """A square convolution, computed by the implementation called ``convolution``."""
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        strides=strides,
        padding=padding,
        feature_group_count=groups,
        use_bias=use_bias,
        kernel_init=HE,
        conv_general_dilated=CONVOLUTIONS[convolution],
        rngs=rngs,
    )


def batch_norm(width: int, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(width, momentum=0.9, rngs=rngs)


class ConvNorm(nnx.Module):
    """A convolution without bias, 3x3 by default, and BatchNorm."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        strides: int,
        how: str,
        rngs: nnx.Rngs,
        size: int = 3,
        groups: int = 1,
    ):
        options: Any = {"strides": strides, "groups": groups}
        self.conv = conv(inputs, outputs, size, how, rngs, **options)
        self.norm = batch_norm(outputs, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.conv(x))


def by_patches(
    images: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, int],
    padding: Any,
    **options: Any,
) -> jax.Array:
    """A convolution without dilation as one matrix product over gathered patches.

    On CPUs XLA runs a convolution twenty times slower inside ``lax.scan``, where
    training runs, than outside, and just as slowly on 2x2 maps; a matrix product is
    fast everywhere. A depthwise convolution has nothing to contract: its shifted images
    are weighted and summed. Other grouped convolutions fall back to XLA's own.
    """
    rows, columns, per_group, outputs = kernel.shape
    groups = options.get("feature_group_count", 1)
    depthwise = per_group == 1 and outputs == groups > 1
    if groups > 1 and not depthwise:
        return jax.lax.conv_general_dilated(images, kernel, strides, padding, **options)
    padded = _padded(images, kernel, strides, padding)
    end_y, end_x = padded.shape[1] - rows + 1, padded.shape[2] - columns + 1
    taps = [
        padded[:, y : y + end_y : strides[0], x : x + end_x : strides[1]]
        for y in range(rows)
        for x in range(columns)
    ]
    if depthwise:
        weights = kernel.reshape(rows * columns, 1, 1, 1, outputs)
        return functools.reduce(operator.add, map(operator.mul, taps, weights))
    # Merged into one axis, the channels would be hidden among the pixels.
    patches = jnp.stack(taps, axis=3).reshape(*taps[0].shape[:3], *kernel.shape[:3])
    return jnp.tensordot(patches, kernel, axes=3)


def by_rows(
    images: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Any
) -> jax.Array:
    """A convolution with patches one pixel high, whose products are summed.

    For 3x3 it copies a third as much as whole patches. On CPUs XLA's own takes as long
    for 4 channels as for 16; this is as fast for 16, and five times faster for 4.
    """
    rows, columns, *_ = kernel.shape
    padded = _padded(images, kernel, strides, padding)
    end_y, end_x = padded.shape[1] - rows + 1, padded.shape[2] - columns + 1
    patches = [padded[:, :, x : x + end_x : strides[1]] for x in range(columns)]
    products = jnp.einsum("bhwxi,yxio->bhwyo", jnp.stack(patches, axis=3), kernel)
    shifted = [products[:, y : y + end_y : strides[0], :, y] for y in range(rows)]
    return functools.reduce(operator.add, shifted)


def mixed(
    images: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, int],
    padding: Any,
    **options: Any,
) -> jax.Array:
    """Picks the fastest on CPUs.

    Patches for depthwise and 1x1 convolutions and for maps of 2x2 pixels or less, rows
    of patches for at most 16 channels, and XLA's own for the rest. A shrunk network
    keeps the choice made for the full one.
    """
    rows, columns, per_group, outputs = kernel.shape
    groups = options.get("feature_group_count", 1)
    tiny = images.shape[1] * images.shape[2] <= 4
    if tiny or rows * columns == 1 or per_group == 1 < groups:
        return by_patches(images, kernel, strides, padding, **options)
    if groups == 1 and max(per_group, outputs) <= 16:
        return by_rows(images, kernel, strides, padding)
    return jax.lax.conv_general_dilated(images, kernel, strides, padding, **options)


def _padded(
    images: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Any
) -> jax.Array:
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(
            images.shape[1:3], kernel.shape[:2], strides, padding
        )
    return jnp.pad(images, ((0, 0), *padding, (0, 0)))


CONVOLUTIONS = {
    "xla": jax.lax.conv_general_dilated,
    "patches": by_patches,
    "mixed": mixed,
}
