"""Exports a saved Keras model: `python -m keras_resnet.export MODEL.keras --images PATH ...`."""

import argparse
import functools
import hashlib
import json
import pathlib
import sys

import keras
import numpy as np

from keras_resnet.export.formats import DEFAULT_FORMATS, FORMATS, ExportsFailed, export_formats
from keras_resnet.export.inference import check_classifier
from keras_resnet.export.report import format_table
from keras_resnet.export.signatures import decode
from keras_resnet.preprocessing import Preprocessing

SUFFIXES = (".jpg", ".jpeg", ".png")


def main(arguments=None) -> int:
    """Runs the command line.

    Args:
        arguments: Words after the program's name. Default: those it was started with.

    Returns:
        0; 1 if a format failed, the others being in their place; 2 if the request does not fit.
    """
    asked = _parser().parse_args(arguments)
    try:
        model = _read("model", asked.model, _load_model)
        check_classifier(model)
        if asked.preprocessing is not None:
            model.preprocessing = _read("preprocessing", asked.preprocessing, _load_preprocessing)
        names = asked.class_names and asked.class_names.read_text("utf-8-sig").split("\n")
        names = names and [name.strip() for name in names if name.strip()]
        images, labels = read_images(
            asked.images, channels=model.input_shape[-1], class_names=names, limit=asked.limit
        )
        if asked.labels is not None:
            labels = read_labels(asked.labels, asked.images, limit=asked.limit)
        reports = export_formats(
            model,
            asked.output,
            asked.formats.split(","),
            examples=images,
            labels=labels,
            class_names=names,
            include_preprocessing=asked.include_preprocessing,
            about={"model": _about(asked.model, model), "images": str(asked.images)},
        )
    except ExportsFailed as failed:
        if failed.reports:
            print(format_table(failed.reports))
        print(f"Error: {failed}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    print(format_table(reports))
    print(f"Compared on {reports[0].examples:,} images. Written to {asked.output}.")
    return 0


def read_images(path: pathlib.Path, *, channels: int, class_names=None, limit: int):
    """Raw images to compare on, evenly over what there is.

    Args:
        path: `.npy` file of uint8 images `(images, height, width, channels)`, or a folder with JPEG
            and PNG files in it or in folders below.
        channels: How many the images get.
        class_names: One name per class: the folders that files lie in are then their classes.
        limit: How many images, at most.

    Returns:
        Batches, and the labels, `(images,)`, or `None` if they are not known.

    Raises:
        ValueError: If there is no image, or a folder is no class.
    """
    if path.suffix == ".npy":
        images = _spread(np.load(path), limit)
        return [images[start : start + 32] for start in range(0, len(images), 32)], None
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(
            "There is no image. Expected a .npy file, or a folder of JPEG or PNG files. "
            f"Received: '{path}'"
        )
    files = _spread(files, limit)
    images = [_read("image", file, functools.partial(_decoded, channels)) for file in files]
    if class_names is None or any(file.parent == path for file in files):
        return images, None
    unknown = sorted({file.parent.name for file in files} - set(class_names))
    if unknown:
        raise ValueError(
            "There are folders of other classes. Expected folders called as in the file of class "
            f"names. Received: {', '.join(unknown)}"
        )
    return images, np.array([list(class_names).index(file.parent.name) for file in files])


def read_labels(path: pathlib.Path, images: pathlib.Path, *, limit: int) -> np.ndarray:
    """The classes of the images that `read_images` takes of a `.npy` file.

    Raises:
        ValueError: If there is not one for each image of the file.
    """
    labels = np.load(path)
    counts = len(labels), len(np.load(images, mmap_mode="r")) if images.suffix == ".npy" else 0
    if counts[0] != counts[1]:
        raise ValueError(
            "The labels are not those of the images. Expected as many as images in a .npy file: "
            f"{counts[1]}. Received: {counts[0]} in '{path}'"
        )
    return _spread(labels, limit)


def _read(what, path, read):
    """What is in a file; whatever its reader raises becomes an error with the name of the file."""
    try:
        return read(path)
    except OSError:
        raise
    except Exception as error:  # of Keras, TensorFlow and JSON, each its own
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(
            f"The {what} cannot be read. Expected a file as `--help` says. "
            f"Received: '{path}' ({reason})"
        ) from error


def _load_model(path):
    return keras.models.load_model(path, compile=False)


def _load_preprocessing(path):
    return Preprocessing(**json.loads(path.read_text("utf-8")))


def _decoded(channels, path):
    return decode(path.read_bytes(), channels).numpy()[np.newaxis]


def _spread(items, limit):
    return items[:: -(-len(items) // limit)] if len(items) else items


def _count(word):
    if int(word) < 1:
        raise argparse.ArgumentTypeError(f"Expected at least 1. Received: {word}")
    return int(word)


def _about(path, model):
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"file": path.name, "sha256": sha256, "name": model.name}


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m keras_resnet.export",
        description="Exports a saved Keras model, and proves each file against it on images.",
    )
    paths = {"type": pathlib.Path, "metavar": "PATH"}
    parser.add_argument("model", type=pathlib.Path, metavar="MODEL", help="A .keras file.")
    parser.add_argument(
        "--images",
        **paths,
        required=True,
        help="Images to compare on and to calibrate on: a .npy file of uint8 images (images, "
        "height, width, channels), or a folder of JPEG or PNG files.",
    )
    parser.add_argument("--output", **paths, required=True, help="Folder for the exports.")
    parser.add_argument(
        "--formats",
        default=",".join(DEFAULT_FORMATS),
        help=f"Comma-separated, of {', '.join(FORMATS)} (default: %(default)s).",
    )
    parser.add_argument(
        "--limit", type=_count, default=1000, help="Images, at most (default: %(default)s)."
    )
    parser.add_argument("--labels", **paths, help="A .npy file of the classes of a .npy file.")
    parser.add_argument(
        "--class-names",
        **paths,
        help="Text file, one name a line, for the exports; folders of these names are classes.",
    )
    parser.add_argument(
        "--preprocessing",
        **paths,
        help="JSON file with the fields of `keras_resnet.Preprocessing` (default: the model's).",
    )
    parser.add_argument(
        "--include-preprocessing",
        action="store_true",
        help="TFLite and ONNX files take raw images of the model's size.",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
