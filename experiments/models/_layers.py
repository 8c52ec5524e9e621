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
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(
            images.shape[1:3], (rows, columns), strides, padding
        )
    padded = jnp.pad(images, ((0, 0), *padding, (0, 0)))
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


def mixed(
    images: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, int],
    padding: Any,
    *,
    feature_group_count: int = 1,
    **options: Any,
) -> jax.Array:
    """Patches where XLA's own convolution is slow on CPUs; elsewhere XLA's own.

    That is in depthwise and 1x1 convolutions, and on maps of 2x2 pixels or less. The
    choice depends on no number of channels, so it survives pruning.
    """
    depthwise = kernel.shape[2] == 1 and feature_group_count > 1
    tiny = images.shape[1] * images.shape[2] <= 4
    pointwise = kernel.shape[:2] == (1, 1)
    slow = depthwise or tiny or pointwise
    implementation = by_patches if slow else jax.lax.conv_general_dilated
    return implementation(
        images,
        kernel,
        strides,
        padding,
        feature_group_count=feature_group_count,
        **options,
    )


CONVOLUTIONS = {
    "xla": jax.lax.conv_general_dilated,
    "patches": by_patches,
    "mixed": mixed,
}
