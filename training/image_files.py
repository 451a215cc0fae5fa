"""Image files in class folders: found, checked and decoded."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tensorflow as tf

SPLITS = ("train", "validation", "test")
_REPORTED = 3  # files or folders that an error names


def decode(encoded):
    """The pixels of a JPEG or PNG file; greyscale becomes RGB, transparency is dropped.

    Args:
        encoded: Scalar string tensor, the bytes of the file.

    Returns:
        uint8 of shape `(height, width, 3)`.

    Raises:
        tf.errors.InvalidArgumentError: If the bytes are no image, or only a part of one.
    """
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    return tf.ensure_shape(image, (None, None, 3))


def find_images(root: Path, skip_corrupt: bool):
    """All images below a directory, each decoded once to be sure that it can be.

    Args:
        root: Directory that holds `CLASS/IMAGE`, or `{train,validation,test}/CLASS/IMAGE`. Hidden
            files and folders are ignored.
        skip_corrupt: Whether files that cannot be read are left out instead of being an error.

    Returns:
        `(parts, class_names, skipped)`. `parts` maps each split that has a folder to two arrays:
        file names relative to `root`, and labels; without such folders everything is "train".
        `skipped` names the files left out.

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
    unreadable = _unreadable([path for files, _ in found.values() for path in files])
    skipped = tuple(path.relative_to(root).as_posix() for path in unreadable)
    if skipped and not skip_corrupt:
        raise ValueError(
            f"Files that are no readable images: {len(skipped)}. Expected JPEG or PNG. "
            f"Received: {_some(skipped)} in {os.fspath(root)!r}. "
            "Repair or remove them, or leave them out with --skip-corrupt."
        )
    parts = {}
    for split, (files, labels) in found.items():
        kept = [i for i, path in enumerate(files) if path not in unreadable]
        names = [files[i].relative_to(root).as_posix() for i in kept]
        parts[split] = np.array(names, dtype=object), np.array(labels, dtype=np.int64)[kept]
    _check_no_class_is_empty(parts["train"][1], class_names, directories["train"])
    return parts, class_names, skipped


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


def _unreadable(paths):
    def is_readable(path):
        try:
            decode(tf.io.read_file(os.fspath(path)))
        except tf.errors.OpError:
            return False
        return True

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return {
            path: None for path, good in zip(paths, threads.map(is_readable, paths)) if not good
        }


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
