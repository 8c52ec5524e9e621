"""Data sets: images as bytes, split once, and how a training step prepares them."""

import dataclasses
import logging
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from experiments.config import Data

Examples: TypeAlias = tuple[np.ndarray, np.ndarray]


class DatasetMissingError(Exception):
    """The data set is not in the folder of the config."""


class Split(NamedTuple):
    """Images, uint8 ``[N, height, width, channels]``, and labels, int32 ``[N]``."""

    images: jax.Array
    labels: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dataset:
    """Three splits; mean and deviation of the training images, [1, 1, 1, channels]."""

    train: Split
    validation: Split
    test: Split
    mean: jax.Array
    std: jax.Array
    classes: int = dataclasses.field(metadata={"static": True})

    @property
    def image_shape(self) -> tuple[int, ...]:
        return self.train.images.shape[1:]

    @property
    def sizes(self) -> dict[str, int]:
        """The number of images in each split."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: len(split.labels) for name, split in splits.items()}

    def standardize(self, images: jax.Array) -> jax.Array:
        """Makes images ``[N, ...]`` float32 of mean 0 and deviation 1."""
        return (images.astype(jnp.float32) - self.mean) / self.std


def load(config: Data) -> Dataset:
    """Loads a data set onto the device; otherwise like `read`."""
    return jax.tree.map(jnp.asarray, read(config))


def read(config: Data) -> Dataset:
    """Reads a data set as NumPy arrays; validation images are held out of training."""
    wanted = None
    if config.train_size is not None:
        wanted = config.train_size + config.validation_size
    loader = _digits if config.name == "digits" else _tfds
    images, labels = loader(config, "train", wanted)
    test = loader(config, config.test_split, config.test_size)
    train, validation = _stratified(images, labels, config.validation_size, config.seed)
    channels = {"axis": (0, 1, 2), "keepdims": True}
    return Dataset(
        train=_split(*train),
        validation=_split(*validation),
        test=_split(*test),
        mean=train[0].mean(**channels).astype(np.float32),
        std=train[0].std(**channels).astype(np.float32),
        classes=int(test[1].max()) + 1,
    )


def balanced(split: Split, per_class: int, key: jax.Array) -> Split:
    """Draws ``per_class`` examples of each class, or all if there are fewer."""
    order = np.asarray(jax.random.permutation(key, len(split.labels)))
    labels = np.asarray(split.labels)[order]
    chosen = [order[labels == c][:per_class] for c in np.unique(labels)]
    return jax.tree.map(lambda x: x[np.concatenate(chosen)], split)


def augment(key: jax.Array, images: jax.Array, padding: int = 4) -> jax.Array:
    """Crops a padded image at random and mirrors half of them, image by image."""
    crop_key, flip_key = jax.random.split(key)
    corners = jax.random.randint(crop_key, (len(images), 2), 0, 2 * padding + 1)
    flips = jax.random.bernoulli(flip_key, shape=(len(images),))
    sides = ((0, 0), (padding, padding), (padding, padding), (0, 0))

    def one(image: jax.Array, corner: jax.Array, flip: jax.Array) -> jax.Array:
        crop = jax.lax.dynamic_slice(image, (*corner, 0), images.shape[1:])
        return jnp.where(flip, crop[:, ::-1], crop)

    return jax.vmap(one)(jnp.pad(images, sides), corners, flips)


def _digits(config: Data, split: str, size: int | None) -> Examples:
    """1,797 digits of 8x8 pixels in 17 grays; a stratified fifth is the test set."""
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype(np.uint8)
    train, test = _stratified(images, labels, 0.2, config.seed)
    images, labels = train if split == "train" else test
    return images[:size], labels[:size]


def _tfds(config: Data, split: str, size: int | None) -> Examples:
    """Reads the first ``size`` examples of a TFDS data set in bulk."""
    import tensorflow_datasets as tfds  # Only here: it takes a second to import.
    from tensorflow_datasets.core.constants import DATA_DIR

    logging.getLogger("absl").setLevel(logging.ERROR)  # Hides a warning on cv2.
    try:
        source: Any = tfds.data_source(
            config.name, split=split, data_dir=config.dir, download=False
        )
    except (ValueError, KeyError, NotImplementedError):
        folder = config.dir or DATA_DIR
        build = f"--file_format=array_record --data_dir={folder}"
        way = f"download it with\n  tfds build {config.name} {build}"
        if config.name in _NOT_IN_TFDS:
            way = (
                "prepare it yourself, as TFDS has no builder for it: run\n"
                f"  tfds new {config.name}\nwrite the code that reads its images and "
                f"labels, and run in its folder\n  tfds build {build}"
            )
        raise DatasetMissingError(
            f"{folder} has no data set {config.name!r} with a {split!r} split in "
            f"array_record format. Pass --data.dir=<TFDS folder>, or {way}"
        ) from None
    examples = source.__getitems__(range(len(source))[:size])
    images = np.stack([example["image"] for example in examples])
    return images, np.array([example["label"] for example in examples])


_NOT_IN_TFDS = ("tiny_imagenet",)


def _stratified(
    images: np.ndarray, labels: np.ndarray, size: float, seed: int
) -> tuple[Examples, Examples]:
    """Splits off ``size`` examples, a number or a fraction, stratified by class."""
    parts: Any = train_test_split(
        images, labels, test_size=size, stratify=labels, random_state=seed
    )
    return (parts[0], parts[2]), (parts[1], parts[3])


def _split(images: np.ndarray, labels: np.ndarray) -> Any:
    return Split(images.astype(np.uint8), labels.astype(np.int32))  # type: ignore
