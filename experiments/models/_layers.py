"""The convolutions that all networks are built of."""

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

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


class ConvNorm(nnx.Module):
    """A convolution without bias (3x3 unless said otherwise), and BatchNorm."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        strides: int,
        convolution: str,
        rngs: nnx.Rngs,
        *,
        size: int = 3,
        groups: int = 1,
    ):
        self.conv = conv(
            inputs, outputs, size, convolution, rngs, strides=strides, groups=groups
        )
        self.norm = nnx.BatchNorm(outputs, momentum=0.9, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.conv(x))


def by_patches(
    images: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, int],
    padding: Any,
    *,
    feature_group_count: int = 1,
    **options: Any,
) -> jax.Array:
    """A convolution without dilation as one matrix product over gathered patches.

    On CPUs XLA runs a convolution twenty times slower inside ``lax.scan`` than outside,
    where training has it, and as much slower on maps of 2x2; a matrix product is fast
    everywhere. A depthwise convolution has nothing to contract: its shifted images are
    weighed and summed. Other grouped convolutions fall back to XLA's own.
    """
    rows, columns, per_group, outputs = kernel.shape
    depthwise = per_group == 1 and outputs == feature_group_count > 1
    if feature_group_count > 1 and not depthwise:
        return jax.lax.conv_general_dilated(
            images,
            kernel,
            strides,
            padding,
            feature_group_count=feature_group_count,
            **options,
        )
    padded = _padded(images, kernel, strides, padding)
    end_y, end_x = padded.shape[1] - rows + 1, padded.shape[2] - columns + 1
    patches, taps = [], []
    for y in range(rows):
        for x in range(columns):
            patches.append(
                padded[:, y : y + end_y : strides[0], x : x + end_x : strides[1]]
            )
            taps.append(kernel[y : y + 1, x : x + 1])
    if depthwise:
        weighed = map(operator.mul, patches, taps)
        return functools.reduce(operator.add, weighed)
    # Tap by tap: a reshape that merges axes would hide the channels among the pixels.
    matrix = jnp.concatenate([tap.reshape(per_group, outputs) for tap in taps])
    return jnp.concatenate(patches, axis=-1) @ matrix


def by_rows(
    images: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Any
) -> jax.Array:
    """A convolution whose patches are one pixel high; the rows' products are summed.

    A third as much is copied for 3x3 as by whole patches. On CPUs XLA's own takes as
    long for 4 channels as for 16; this as long for 16, and a fifth for 4.
    """
    rows, columns, inputs, outputs = kernel.shape
    padded = _padded(images, kernel, strides, padding)
    end_y, end_x = padded.shape[1] - rows + 1, padded.shape[2] - columns + 1
    patches = [padded[:, :, x : x + end_x : strides[1]] for x in range(columns)]
    taps = [
        [kernel[y : y + 1, x : x + 1].reshape(inputs, outputs) for x in range(columns)]
        for y in range(rows)
    ]
    matrix = jnp.concatenate([jnp.concatenate(row) for row in taps], axis=1)
    products = jnp.split(jnp.concatenate(patches, axis=-1) @ matrix, rows, axis=-1)
    shifted = [
        product[:, y : y + end_y : strides[0]] for y, product in enumerate(products)
    ]
    return functools.reduce(operator.add, shifted)


def mixed(
    images: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, int],
    padding: Any,
    *,
    feature_group_count: int = 1,
    **options: Any,
) -> jax.Array:
    """What is fast on CPUs: patches, rows of patches, or XLA's own convolution.

    Patches for depthwise and 1x1 convolutions and on maps of 2x2 pixels or less, rows
    where there are at most 16 channels. A network that is shrunk keeps the choice that
    was made for it before.
    """
    rows, columns, per_group, outputs = kernel.shape
    depthwise = per_group == 1 and feature_group_count > 1
    tiny = images.shape[1] * images.shape[2] <= 4
    if depthwise or tiny or rows * columns == 1:
        implementation = by_patches
    elif feature_group_count == 1 and max(per_group, outputs) <= 16:
        return by_rows(images, kernel, strides, padding)
    else:
        implementation = jax.lax.conv_general_dilated
    return implementation(
        images,
        kernel,
        strides,
        padding,
        feature_group_count=feature_group_count,
        **options,
    )


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
