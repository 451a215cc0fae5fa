"""A named source of images becomes examples: `digits`, any TFDS name, or `folder:PATH`.

Every dataset has the splits train, validation and test, and they are fixed: neither a seed nor the
order of the files moves an image from one to another. The test split is the official one where
there is one, with labels. What a source does not split itself is carved from train: the same share
of every class, chosen by a hash of the image or of its file name.

| source         | train            | validation       | test                             |
| -------------- | ---------------- | ---------------- | -------------------------------- |
| `digits`       | 1,293            | 144              | 360 of scikit-learn's 1,797      |
| `cifar10`      | 45,000           | 5,000 of train   | official 10,000                  |
| `imagenet2012` | 1,271,167        | 10,000 of train  | official validation, 50,000      |
| other TFDS     | the rest         | its own, or 10%  | its own, its validation, or 10%  |
| `folder:PATH`  | the rest         | its own, or 10%  | its own, or 10%                  |

A folder's class of two images gives one to test, of three also one to validation; a class with a
single image is trained on alone. Where that leaves a split without images, it is empty.
"""

import contextlib
import dataclasses
import difflib
import math
import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import sklearn.datasets
import tensorflow as tf
import tensorflow_datasets as tfds

from keras_resnet.preprocessing import CIFAR10, IMAGENET, Preprocessing
from training import image_files, splits

DIGITS_TEST_EXAMPLES = 360
IN_MEMORY_BYTES = 2**30  # images that take at most this much decoded are held so,
ENCODED_BYTES = 2**31  # others as the bytes of their files if those are not more than this

# Over the pixels of each one's training images, as `Preprocessing` wants them: in 0..1.
DIGITS = Preprocessing(size=(8, 8), resize_size=None, mean=(0.3051,), std=(0.3753,))
CIFAR100 = dataclasses.replace(CIFAR10, mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762))


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A source of labelled images, split for training, choosing and testing.

    Args:
        name: The name it was loaded by.
        class_names: One per label.
        image_shape: `(height, width, channels)`; height and width are None where they vary.
        splits: "train", "validation" and "test". The last two are empty where no class has images
            to spare.
        preprocessing: What a network that learns from these images should do with them.
        skipped: Files that were left out because they could not be read.
    """

    name: str
    class_names: tuple[str, ...]
    image_shape: tuple[int | None, int | None, int]
    splits: Mapping[str, splits.Split]
    preprocessing: Preprocessing
    skipped: tuple[str, ...] = ()


def load(
    name: str,
    *,
    data_dir: str | os.PathLike | None = None,
    validation_examples: int | None = None,
    skip_corrupt: bool = False,
) -> Dataset:
    """The dataset of a name. Nothing is downloaded.

    Args:
        name: `"digits"`, `"folder:PATH"`, or a TFDS name such as `"cifar10"`. A folder holds
            `PATH/CLASS/IMAGE`, or `PATH/{train,validation,test}/CLASS/IMAGE`.
        data_dir: Directory of the prepared TFDS datasets. Defaults to the environment variable
            TFDS_DATA_DIR, then to TFDS' own default.
        validation_examples: How many images of train to hold out for validation; 0 trains on all
            of them. Defaults to a tenth, 10,000 at most.
        skip_corrupt: Whether files of a folder that cannot be read are left out, and listed in
            `skipped`, instead of being an error.

    Returns:
        The dataset. Images are held in memory, decoded up to 1 GiB in all (a TFDS dataset only if
        all have one size), or else as files of 2 GiB in all; others are read when they are needed.

    Raises:
        ValueError: If the name is not known, data is missing, or a file cannot be read.
    """
    if name == "digits":
        return _load_digits(validation_examples)
    if name.startswith("folder:"):
        return _load_folder(name, validation_examples, skip_corrupt)
    return _load_tfds(name, data_dir, validation_examples)


def _load_digits(validation_examples):
    digits = sklearn.datasets.load_digits()
    images = np.round(digits.images[..., None] * (255 / 16)).astype("uint8")
    train, test = splits.hold_out(images, digits.target, DIGITS_TEST_EXAMPLES)
    parts = splits.carve({"train": train, "test": test}, validation_examples)
    return Dataset(
        name="digits",
        class_names=tuple("0123456789"),
        image_shape=images.shape[1:],
        splits={split: splits.held_in_memory(*part) for split, part in parts.items()},
        preprocessing=DIGITS,
    )


def _load_folder(name, validation_examples, skip_corrupt):
    root = Path(name.removeprefix("folder:")).expanduser()
    parts, class_names, skipped, sizes = image_files.find_images(root, skip_corrupt)
    parts = splits.carve(parts, validation_examples)
    return Dataset(
        name=name,
        class_names=class_names,
        image_shape=(None, None, 3),
        splits=_folder_splits(root, parts, sizes),
        preprocessing=IMAGENET,
        skipped=skipped,
    )


def _folder_splits(root, parts, sizes):
    """In memory if they fit, decoded or as files."""
    names = [name for names, _ in parts.values() for name in names]
    if sum(3 * math.prod(sizes[name]) for name in names) <= IN_MEMORY_BYTES:
        hold = splits.held_decoded
    elif sum(os.path.getsize(root / name) for name in names) <= ENCODED_BYTES:
        hold = splits.held_encoded
    else:
        hold = None
    found = {}
    for split, (names, labels) in parts.items():
        of_split = labels, [sizes[name] for name in names]
        if hold is None:
            found[split] = splits.read_from_files(root, names, *of_split)
        else:
            with ThreadPoolExecutor(os.cpu_count()) as threads:
                encoded = threads.map(lambda name: (root / name).read_bytes(), names)
                found[split] = hold(list(encoded), *of_split)
    return found


def _load_tfds(name, data_dir, validation_examples):
    builder = _prepared_builder(name, data_dir)
    try:
        return _load_prepared(name, builder, validation_examples)
    except tf.errors.OpError as error:
        raise ValueError(
            f"The files of the dataset {name!r} cannot be read. Expected them as TFDS has prepared "
            f"them in {os.fspath(builder.data_dir)!r}. Received: "
            f"{error.message.rpartition('}} ')[2]}. Copy them anew, or prepare them again."
        ) from error


def _load_prepared(name, builder, validation_examples):
    info = builder.info
    keys = info.supervised_keys or ()
    features = [info.features[key] for key in keys if isinstance(key, str)]
    if [type(feature) for feature in features] != [tfds.features.Image, tfds.features.ClassLabel]:
        raise ValueError(
            f"The dataset {name!r} does not classify images. Expected an image and a class label "
            f"as its supervised keys. Received: supervised_keys={info.supervised_keys}."
        )
    image, label = features
    if image.np_dtype != np.uint8:
        raise ValueError(
            f"The images of {name!r} have other values than those of files. Expected uint8, 0 to "
            f"255. Received: {np.dtype(image.np_dtype).name}. Prepare the dataset with such images."
        )
    height, width, _ = image.shape
    preprocessing = {"cifar10": CIFAR10, "cifar100": CIFAR100}.get(builder.name, IMAGENET)
    if preprocessing is IMAGENET and None not in (height, width):
        preprocessing = dataclasses.replace(IMAGENET, size=(height, width), resize_size=None)
    return Dataset(
        name=name,
        class_names=tuple(label.names),
        image_shape=(height, width, 3),
        splits=_tfds_splits(builder, image.shape, validation_examples),
        preprocessing=preprocessing,
    )


def _tfds_splits(builder, image_shape, validation_examples):
    """In memory if they fit, decoded or as files, otherwise streamed."""
    sources = _official_splits(builder)
    num_images = sum(builder.info.splits[source].num_examples for source in sources.values())
    height, width, _ = image_shape
    if height and width and num_images * height * width * 3 <= IN_MEMORY_BYTES:
        parts = {split: _decoded(builder, source) for split, source in sources.items()}
        parts = splits.carve(parts, validation_examples)
        return {split: splits.held_in_memory(*part) for split, part in parts.items()}
    held = sum(builder.info.splits[source].num_bytes for source in sources.values())
    sources = splits.carve_slices(builder, sources, validation_examples)
    return {
        split: _encoded(builder, source, image_shape, held <= ENCODED_BYTES)
        for split, source in sources.items()
    }


def _encoded(builder, source, image_shape, in_memory):
    """One split of images that are decoded when they are needed."""
    num_examples = builder.info.splits[source].num_examples
    if not num_examples:  # TFDS does not read empty slices
        return splits.held_encoded([], [])
    image_key, _ = builder.info.supervised_keys
    pairs = builder.as_dataset(
        split=source,
        as_supervised=True,
        decoders={image_key: tfds.decode.SkipDecoding()},
        read_config=tfds.ReadConfig(try_autocache=False),
    )
    if in_memory:
        return splits.held_encoded(*zip(*pairs.as_numpy_iterator()), image_shape=image_shape)
    return splits.streamed(pairs, num_examples, image_shape)


def _prepared_builder(name, data_dir):
    base = re.split("[/:]", name)[0]
    environment = os.environ.get("TFDS_DATA_DIR")
    root = Path(data_dir or environment or "~/tensorflow_datasets").expanduser()
    if not (root / base).is_dir() and base not in tfds.list_builders():
        raise _unknown_dataset(name, base)
    # Looked for by hand first: a builder without data asks the network what it should look like.
    builder = None
    if (root / base).is_dir():
        with contextlib.suppress(AssertionError, ValueError):  # a version or config there is not
            builder = tfds.builder(name, data_dir=root)
    if builder is None or not builder.is_prepared():
        raise ValueError(
            f"The dataset {name!r} is not prepared. Expected it in {os.fspath(root / base)!r}. "
            f"Received: data_dir={data_dir!r}, TFDS_DATA_DIR={environment!r}. Set --data-dir or "
            f"TFDS_DATA_DIR to the directory that holds {base!r}, or download it once with: "
            f'python -c "import tensorflow_datasets as tfds; tfds.builder({name!r}, '
            f'data_dir={os.fspath(root)!r}).download_and_prepare()"'
        )
    return builder


def _unknown_dataset(name, base):
    message = (
        "Unknown dataset. Expected 'digits', 'folder:PATH' or a name of "
        f"https://www.tensorflow.org/datasets/catalog/overview. Received: {name!r}."
    )
    nearest = difflib.get_close_matches(base.lower(), ["digits", *tfds.list_builders()], n=1)
    return ValueError(f"{message} Did you mean {nearest[0]!r}?" if nearest else message)


def _official_splits(builder):
    """Our names of the splits -> those of TFDS, as far as it has them."""
    official = [split for split in image_files.SPLITS if split in builder.info.splits]
    official = [split for split in official if _has_labels(builder, split)]
    if "train" not in official:
        raise ValueError(
            f"The dataset {builder.name!r} cannot be trained on. Expected a split 'train' with "
            f"labels. Received: {', '.join(builder.info.splits)}."
        )
    if official == ["train", "validation"]:
        return {"train": "train", "test": "validation"}
    return {split: split for split in official}


def _has_labels(builder, split):
    """TFDS gives -1 to what has none, such as ImageNet's test images, and that to a whole split."""
    image_key, _ = builder.info.supervised_keys
    first = builder.as_dataset(
        split=f"{split}[:1]",
        as_supervised=True,
        decoders={image_key: tfds.decode.SkipDecoding()},
    )
    return all(label >= 0 for _, label in first.as_numpy_iterator())


def _decoded(builder, source):
    dataset = builder.as_dataset(split=source, batch_size=-1, as_supervised=True)
    images, labels = tfds.as_numpy(dataset)
    images = images[..., :3]  # without transparency
    return np.broadcast_to(images, (*images.shape[:3], 3)), labels  # grey becomes RGB
