"""Image files in class folders: found, checked and decoded."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tensorflow as tf

SPLITS = ("train", "validation", "test")
_REPORTED = 3  # files or folders that an error names


def decode(encoded, box=None, size=None):
    """The pixels of a JPEG or PNG file; greyscale becomes RGB, transparency is dropped.

    Of a JPEG only the box is decoded, and its pixels are those that Pillow and thus PyTorch read:
    TensorFlow's own default is a coarser transform, no faster. A note in the file on how the camera
    was held (EXIF) is not heeded.

    Args:
        encoded: Scalar string tensor, the bytes of the file.
        box: Function from height and width of the image to `(top, left, height, width)` of the part
            that is wanted, in pixels. Defaults to the whole image.
        size: Height and width of the image in pixels, where they are known: to find them in a JPEG
            takes a fifth of the time of decoding it.

    Returns:
        uint8 of shape `(height, width, 3)`.

    Raises:
        tf.errors.InvalidArgumentError: If the bytes are no image, or only a part of one.
    """

    def other():
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        return cut_out(tf.ensure_shape(image, (None, None, 3)), box)

    return tf.cond(tf.io.is_jpeg(encoded), lambda: _decode_jpeg(encoded, box, size), other)


def _decode_jpeg(encoded, box, size):
    if box is None:
        return tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")
    height, width = tf.unstack(tf.io.extract_jpeg_shape(encoded)[:2] if size is None else size)
    top, left, box_height, box_width = box(height, width)
    # Colours are stored at half the size and interpolated: the columns at both sides of the box
    # take part, for the same pixels as in the whole image.
    start = tf.maximum(left - 1, 0)
    end = tf.minimum(left + box_width + 1, width)
    image = tf.io.decode_and_crop_jpeg(
        encoded,
        tf.stack([top, start, box_height, end - start]),
        channels=3,
        dct_method="INTEGER_ACCURATE",
    )
    return image[:, left - start :][:, :box_width]


def cut_out(image, box):
    """A part of an image.

    Args:
        image: Tensor of shape `(height, width, channels)`.
        box: Function from height and width to `(top, left, height, width)` in pixels, or `None` for
            the whole image.
    """
    if box is None:
        return image
    height, width, _ = tf.unstack(tf.shape(image))
    top, left, box_height, box_width = box(height, width)
    return image[top : top + box_height, left : left + box_width]


def find_images(root: Path, skip_corrupt: bool):
    """All images below a directory, each decoded once to be sure that it can be.

    Args:
        root: Directory that holds `CLASS/IMAGE`, or `{train,validation,test}/CLASS/IMAGE`. Hidden
            files and folders are ignored.
        skip_corrupt: Whether files that cannot be read are left out instead of being an error.

    Returns:
        `(parts, class_names, skipped, sizes)`. `parts` maps each split that has a folder to two
        arrays: file names relative to `root`, and labels; without such folders everything is
        "train". `skipped` names the files left out, `sizes` maps the names of the others to height
        and width in pixels.

    Raises:
        ValueError: If the directory or an image is missing, or a file cannot be read.
    """
    if not root.is_dir():
        raise ValueError(
            "The image folder does not exist. Expected a directory that holds one folder per "
            f"class. Received: {os.fspath(root)!r}."
        )
    directories = _split_directories(root)
    class_names = tuple(folder.name for folder in _visible(directories["train"], folders=True))
    if not class_names:
        raise ValueError(
            "The image folder has no classes. Expected one folder per class. "
            f"Received: {os.fspath(directories['train'])!r} without folders."
        )
    found = {
        split: _files_and_labels(directory, class_names) for split, directory in directories.items()
    }
    sizes = _sizes(root, [path for files, _ in found.values() for path in files])
    skipped = tuple(_as_text(name) for name, size in sizes.items() if size is None)
    if skipped and not skip_corrupt:
        raise ValueError(
            f"Files that are no readable images: {len(skipped)}. Expected JPEG or PNG. "
            f"Received: {_some(skipped)} in {os.fspath(root)!r}. "
            "Repair or remove them; `train` and `tune` leave them out with --skip-corrupt."
        )
    parts = {}
    for split, (files, labels) in found.items():
        names = np.array([path.relative_to(root).as_posix() for path in files], dtype=object)
        kept = np.array([sizes[name] is not None for name in names], dtype=bool)
        parts[split] = names[kept], np.array(labels, dtype=np.int64)[kept]
    _check_no_class_is_empty(parts["train"][1], class_names, directories["train"])
    return parts, tuple(map(_as_text, class_names)), skipped, sizes


def _as_text(name):
    """A name that can be written and printed: what is no UTF-8 in it is replaced."""
    return os.fsencode(name).decode("utf-8", errors="replace")


def _visible(directory, folders=False):
    entries = sorted(path for path in directory.iterdir() if not path.name.startswith("."))
    return [path for path in entries if path.is_dir()] if folders else entries


def _split_directories(root):
    """Directory of each split; a folder named "train" that holds images is a class, not a split."""
    directories = {
        split: root / split
        for split in SPLITS
        if (root / split).is_dir() and _visible(root / split, folders=True)
    }
    if not directories:
        return {"train": root}
    others = {folder.name for folder in _visible(root, folders=True)} - set(SPLITS)
    if others or "train" not in directories:
        raise ValueError(
            "The image folder mixes splits and classes. Expected the folders train and, if you "
            f"like, validation and test, each with the class folders. Received: "
            f"{_some([folder.name for folder in _visible(root, folders=True)])} in "
            f"{os.fspath(root)!r}."
        )
    return directories


def _files_and_labels(directory, class_names):
    """Whatever lies in the class folders; that it is an image is checked afterwards."""
    folders = {folder.name: folder for folder in _visible(directory, folders=True)}
    unknown = sorted(set(folders) - set(class_names))
    if unknown:
        raise ValueError(
            f"Classes that the train images do not have. Expected {_some(class_names)}. "
            f"Received: {_some(unknown)} in {os.fspath(directory)!r}."
        )
    pairs = [
        (path, label)
        for label, name in enumerate(class_names)
        if name in folders
        for path in _visible(folders[name])
    ]
    return [path for path, _ in pairs], [label for _, label in pairs]


def _sizes(root, paths):
    """File names relative to `root` -> height and width in pixels, None where it is no image."""

    def size(path):
        try:
            return tuple(decode(path.read_bytes()).shape[:2])
        except (OSError, tf.errors.OpError):
            return None

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        names = [path.relative_to(root).as_posix() for path in paths]
        return dict(zip(names, threads.map(size, paths)))


def _check_no_class_is_empty(labels, class_names, directory):
    counts = np.bincount(labels, minlength=len(class_names))
    empty = [name for name, count in zip(class_names, counts) if not count]
    if empty:
        raise ValueError(
            "A class folder has no images. Expected at least one JPEG or PNG in each. "
            f"Received: {_some(empty)} in {os.fspath(directory)!r}. "
            "Add images or remove the folder."
        )


def _some(names):
    names = list(names)
    rest = f" and {len(names) - _REPORTED} more" if len(names) > _REPORTED else ""
    return ", ".join(repr(name) for name in names[:_REPORTED]) + rest
