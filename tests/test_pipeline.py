"""Batches: every example once, the same after a restart, the numbers of `Preprocessing`."""

import collections
import dataclasses
import io
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_resnet.preprocessing import Preprocessing
from training import augment, datasets, pipeline, splits

SMALL = Preprocessing(size=(8, 8), resize_size=9)
RAW = Preprocessing(size=(4, 4), resize_size=None, scale=1.0, mean=(0.0,), std=(1.0,))  # as it is


def numbered(count, in_memory=True, side=4):
    """A dataset whose image i holds the number i in its first two pixels, and i % 10 as label."""
    images = np.zeros((count, side, side, 1), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 1, 0] = np.divmod(np.arange(count), 256)
    split = splits.held_in_memory(images, np.arange(count) % 10)
    if not in_memory:
        split = dataclasses.replace(split, in_memory=False)
    return datasets.Dataset(
        name="numbered",
        class_names=tuple("0123456789"),
        image_shape=(side, side, 1),
        splits={"train": split},
        preprocessing=dataclasses.replace(RAW, size=(side, side)),
    )


def batches(dataset, count, **options):
    defaults = {"batch_size": 8, "augmentation": {}, "preprocessing": RAW, "seed": 0}
    ds = pipeline.training_batches(dataset, **(defaults | options))
    return list(ds.take(count).as_numpy_iterator())


def numbers(batches):
    images = np.concatenate([batch[0] for batch in batches])
    return (images[:, 0, 0, 0] * 256 + images[:, 0, 1, 0]).astype(int)


@pytest.mark.parametrize("in_memory", [True, False])
def test_every_example_once_per_epoch(in_memory):
    """Also where the batches do not divide the epoch: 5 batches of 8 are 4 epochs of 10."""
    seen = numbers(batches(numbered(10, in_memory), 5)).reshape(4, 10)
    assert (np.sort(seen) == np.arange(10)).all()
    assert len({tuple(epoch) for epoch in seen}) == 4  # each in its own order


def test_the_shuffle_is_perfect():
    """The first example of an epoch is any of them, equally often."""
    firsts = numbers(batches(numbered(5), 500, batch_size=5))[::5]
    assert min(np.bincount(firsts, minlength=5)) > 64  # 100 each, four deviations
    epoch = numbers(batches(numbered(3000), 1, batch_size=3000))
    assert abs(np.corrcoef(epoch, np.arange(3000))[0, 1]) < 0.08
    assert abs(np.corrcoef(epoch[1:], epoch[:-1])[0, 1]) < 0.08


def test_batches_have_the_shapes_and_types_that_fit_wants():
    dataset = pipeline.training_batches(
        numbered(3), batch_size=8, augmentation={"shift": {}}, preprocessing=RAW, seed=0
    )
    assert dataset.element_spec == (
        tf.TensorSpec((8, 4, 4, 1), tf.float32),
        tf.TensorSpec((8,), tf.int32),
    )
    images, labels = next(dataset.as_numpy_iterator())  # more than there are images
    assert images.shape[0] == labels.shape[0] == 8
    options = dataset.options()
    assert options.deterministic
    policy = options.experimental_distribute.auto_shard_policy
    assert policy == tf.data.experimental.AutoShardPolicy.DATA


def as_files(count):
    """`numbered` as a folder would be: PNG files and JPEG files of varied sizes, held encoded."""
    rng = np.random.default_rng(0)
    encoded = []
    for number in range(count):
        image = rng.integers(0, 256, (12 + number % 5, 10 + number % 7, 3), np.uint8)
        encode = tf.io.encode_jpeg if number % 2 else tf.io.encode_png
        encoded.append(encode(image).numpy())
    return encoded


def of_split(split):
    """A dataset with ten classes that trains on a split of colour images."""
    return datasets.Dataset(
        name="files",
        class_names=tuple("0123456789"),
        image_shape=(None, None, 3),
        splits={"train": split},
        preprocessing=SMALL,
    )


def in_files(count):
    labels = np.arange(count) % 10
    return of_split(splits.held_encoded(as_files(count), labels))


def in_a_stream(count):
    pairs = tf.data.Dataset.from_tensor_slices((as_files(count), np.arange(count) % 10))
    return of_split(splits.streamed(pairs, count, (None, None, 3)))


RESUMED = {
    "held in memory": (lambda: numbered(50), {"augmentation": {"shift": {}}}),
    "one by one": (lambda: numbered(50, in_memory=False), {"augmentation": {"shift": {}}}),
    "repeats": (lambda: numbered(50), {"augmentation": {"shift": {}}, "repeats": 4}),
    "repeats of files": (
        lambda: in_files(50),
        {"augmentation": {"inception_crop": {}, "flip": {}}, "repeats": 2, "preprocessing": SMALL},
    ),
    "mixed": (lambda: numbered(50), {"augmentation": {"shift": {}, "mixup": {}, "cutmix": {}}}),
    "stream": (
        lambda: in_a_stream(50),
        {"augmentation": {"scale_crop": {}, "flip": {}}, "repeats": 2, "preprocessing": SMALL},
    ),
    "sizes": (
        lambda: in_files(50),
        {
            "augmentation": {"inception_crop": {}, "cutmix": {}},
            "image_sizes": ((0.0, 8), (0.3, 12), (0.7, 9)),
            "steps": 20,
            "preprocessing": SMALL,
        },
    ),
}


@pytest.mark.parametrize("case", RESUMED)
def test_order_and_augmentation_depend_on_seed_and_step_alone(case, monkeypatch):
    monkeypatch.setattr(splits, "SHUFFLE_WINDOW", 20)
    make, options = RESUMED[case]
    options = options | {"seed": 7}
    dataset = make()
    first = batches(dataset, 24, **options)
    tf.random.set_seed(123)
    for start in (13, 21):
        resumed = batches(dataset, 3, start_step=start, **options)
        for (images, labels), (again, labels_again) in zip(first[start:], resumed):
            np.testing.assert_array_equal(images, again)
            np.testing.assert_array_equal(labels, labels_again)
    other = batches(dataset, 1, **options | {"seed": 8})
    assert not np.array_equal(first[0][0], other[0][0])


@pytest.mark.parametrize("in_memory", [True, False])
def test_no_two_images_and_no_two_steps_share_their_augmentation(in_memory):
    dataset = numbered(1, in_memory, side=8)  # always the same image
    grey = dataclasses.replace(dataset.preprocessing, mean=(9.0,))  # the colour of the border
    options = {"augmentation": {"pad_crop_flip": {}}, "preprocessing": grey, "batch_size": 16}
    steps = [images for images, _ in batches(dataset, 8, **options)]
    assert len({image.tobytes() for image in steps[0]}) > 2
    assert len({step.tobytes() for step in steps}) == 8


@pytest.mark.parametrize("in_memory", [True, False])
def test_repeated_images_are_augmented_anew_and_all_get_their_turn(in_memory):
    """Two copies of each image: 5 batches of 8 draw 20 images, which are 2 epochs of 10."""
    options = {"repeats": 2, "augmentation": {}}
    steps = numbers(batches(numbered(10, in_memory), 5, **options)).reshape(5, 2, 4)
    np.testing.assert_array_equal(steps[:, 0], steps[:, 1])  # far apart in the batch
    epochs = steps[:, 0].reshape(2, 10)
    assert (np.sort(epochs) == np.arange(10)).all()
    assert not np.array_equal(*epochs)
    uneven = numbers(batches(numbered(12, in_memory), 4, repeats=3, augmentation={}))
    for step in uneven.reshape(4, 8):  # 3 + 3 + 2
        assert sorted(np.unique(step, return_counts=True)[1]) == [2, 3, 3]
    dataset = numbered(1, in_memory, side=8)
    options = {"repeats": 16, "augmentation": {"pad_crop_flip": {}}, "batch_size": 16}
    grey = dataclasses.replace(dataset.preprocessing, mean=(9.0,))
    images, _ = batches(dataset, 1, preprocessing=grey, **options)[0]
    assert len({image.tobytes() for image in images}) > 4


@pytest.mark.parametrize("source", [in_files, in_a_stream])
def test_every_file_once_per_epoch(source, monkeypatch):
    monkeypatch.setattr(splits, "SHUFFLE_WINDOW", 7)
    options = {"preprocessing": SMALL, "batch_size": 8}
    images = np.concatenate([images for images, _ in batches(source(20), 5, **options)])
    epochs = [{image.tobytes() for image in epoch} for epoch in images.reshape(2, 20, -1)]
    assert len(epochs[0]) == 20
    assert epochs[0] == epochs[1]


def test_image_sizes_follow_the_steps():
    options = {
        "preprocessing": SMALL,
        "image_sizes": ((0.0, 8), (0.5, 12), (0.75, 9)),
        "steps": 8,
        "batch_size": 4,
    }
    for augmentation in ({}, {"inception_crop": {}, "flip": {}}):
        found = batches(in_files(10), 10, augmentation=augmentation, **options)
        assert [images.shape[1:3] for images, _ in found] == (
            [(8, 8)] * 4 + [(12, 12)] * 2 + [(9, 9)] * 4
        )
    for start in (0, 5, 9):  # also when all but the last are over
        spec = pipeline.training_batches(
            in_files(10), augmentation={}, seed=0, start_step=start, **options
        ).element_spec
        assert spec[0] == tf.TensorSpec((4, None, None, 3), tf.float32)


def test_a_larger_size_shows_the_same_part_of_the_image():
    """Without a crop: the centre, as `Preprocessing` with a resize_size in proportion."""
    options = {"augmentation": {}, "preprocessing": SMALL, "batch_size": 4, "steps": 1}
    images, labels = batches(in_files(4), 1, image_sizes=((0.0, 16),), **options)[0]
    twice = dataclasses.replace(SMALL, size=(16, 16), resize_size=18)
    source = {int(label): image for image, label in in_files(4).splits["train"].examples()}
    for image, label in zip(images, labels):
        expected = np.asarray(twice(source[label].numpy()))
        np.testing.assert_allclose(image, expected, atol=0.6 / 255 / 0.22)  # uint8 in between


def test_a_crop_is_the_box_resized_as_pillow_does():
    name = {"inception_crop": {"area": (0.3, 0.9)}}
    files = [file for file in as_files(20) if tf.io.is_jpeg(file)]
    dataset = of_split(splits.held_encoded(files, range(10)))
    options = {"augmentation": name, "preprocessing": SMALL, "batch_size": 10, "seed": 3}
    images, labels = batches(dataset, 1, **options)[0]
    crop = augment.chain(name, SMALL).crop
    for number, (image, label) in enumerate(zip(images, labels)):
        whole = Image.open(io.BytesIO(files[label]))
        top, left, height, width = map(
            int, crop(whole.height, whole.width, tf.constant([3, number], tf.int64), (8, 8))
        )
        box = whole.crop((left, top, left + width, top + height))
        expected = np.asarray(box.resize((8, 8), Image.Resampling.BILINEAR)).astype(int)
        pixels = (image * SMALL.std + SMALL.mean) * 255
        np.testing.assert_allclose(pixels, expected, atol=2)


def test_labels_are_vectors_where_they_are_asked_for():
    options = {"batch_size": 10, "augmentation": {"shift": {}}}
    images, labels = batches(numbered(10), 1, **options)[0]
    again, vectors = batches(numbered(10), 1, one_hot=True, **options)[0]
    np.testing.assert_array_equal(images, again)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, np.eye(10)[labels])


def test_mixed_images_are_the_shares_their_labels_say():
    """One image of each class in the batch, so that the labels name the images that were mixed."""
    options = {
        "batch_size": 10,
        "preprocessing": dataclasses.replace(RAW, mean=(50.0,), std=(9.0,)),
    }
    plain, labels = batches(numbered(10), 1, **options)[0]
    spec = pipeline.training_batches(
        numbered(10), augmentation={"mixup": {}}, seed=0, **options
    ).element_spec
    assert spec == (
        tf.TensorSpec((10, 4, 4, 1), tf.float32),
        tf.TensorSpec((10, 10), tf.float32),
    )
    steps = batches(numbered(10), 8, augmentation={"mixup": {"alpha": 0.8}}, **options)
    images, shares = steps[0]
    expected = np.tensordot(shares, plain[np.argsort(labels)], axes=1)
    np.testing.assert_allclose(images, expected, atol=1e-4)
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-6)
    assert (shares.max(axis=1) < 0.95).any()
    assert len({np.sort(shares.max(axis=1)).tobytes() for _, shares in steps}) == 8  # drawn anew


def test_training_images_are_normalized():
    digits = datasets.load("digits")
    preprocessing = digits.preprocessing
    images, labels = batches(digits, 1, batch_size=1293, preprocessing=preprocessing)[0]
    assert images.mean() == pytest.approx(0, abs=1e-3)
    assert images.std() == pytest.approx(1, abs=1e-3)
    source = {
        image.tobytes(): label
        for image, label in digits.splits["train"].examples().as_numpy_iterator()
    }
    raw = np.round((images * preprocessing.std + preprocessing.mean) * 255).astype(np.uint8)
    assert [source[image.tobytes()] for image in raw] == list(labels)


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("batch_size", [1, 5, 7, 10, 32])
def test_evaluation_sees_every_example_once_in_order(in_memory, batch_size):
    split = numbered(10, in_memory).splits["train"]
    dataset = pipeline.evaluation_batches(split, batch_size=batch_size, preprocessing=RAW)
    assert dataset.cardinality() == -(-10 // batch_size)
    found = list(dataset.as_numpy_iterator())
    assert len(found) == dataset.cardinality()
    assert {batch[0].shape for batch in found} == {(batch_size, 4, 4, 1)}
    weights = np.concatenate([batch[2] for batch in found])
    assert weights.dtype == np.float32
    assert weights.sum() == 10
    assert set(weights) <= {0, 1}
    np.testing.assert_array_equal(numbers(found)[weights == 1], np.arange(10))
    labels = np.concatenate([batch[1] for batch in found])
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels[weights == 1], np.arange(10))


def test_files_of_varied_sizes_are_trained_and_evaluated(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(12):
        path = tmp_path / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        tf.io.write_file(
            str(path), tf.io.encode_png(rng.integers(0, 256, (20 + i, 30, 3), np.uint8))
        )
    folder = datasets.load(f"folder:{tmp_path}")
    small = Preprocessing(size=(16, 16), resize_size=18)
    for augmentation in ({}, {"scale_crop": {}}, {"colour_pca": {}}):
        options = {"augmentation": augmentation, "preprocessing": small, "batch_size": 4}
        for images, labels in batches(folder, 3, **options):
            assert images.shape == (4, 16, 16, 3)
            assert set(labels) <= {0, 1}
    split = folder.splits["test"]
    found = pipeline.evaluation_batches(split, batch_size=4, preprocessing=small)
    images, labels, weights = next(found.as_numpy_iterator())
    for i, (image, label) in enumerate(split.examples().as_numpy_iterator()):
        np.testing.assert_allclose(images[i], np.asarray(small(image)), atol=1e-4)
        assert (labels[i], weights[i]) == (label, 1)


def test_a_strategy_takes_the_batches_without_a_warning(capfd):
    strategy = tf.distribute.MirroredStrategy(
        ["CPU:0"], cross_device_ops=tf.distribute.ReductionToOneDevice()
    )
    dataset = pipeline.training_batches(
        numbered(10), batch_size=4, augmentation={}, preprocessing=RAW, seed=0
    )
    distributed = iter(strategy.experimental_distribute_dataset(dataset))
    seen = numbers([[part.numpy() for part in next(distributed)] for _ in range(5)])
    assert collections.Counter(seen) == dict.fromkeys(range(10), 2)
    assert "shard" not in capfd.readouterr().err.lower()


def test_bad_input_is_explained():
    empty = splits.held_in_memory(np.zeros((0, 4, 4, 1), np.uint8), np.zeros(0, int))
    with pytest.raises(ValueError, match="empty") as error:
        pipeline.evaluation_batches(empty, batch_size=8, preprocessing=RAW)
    assert str(error.value) == (
        "The split to be evaluated is empty. Expected at least one example. Received: 0. "
        "Give the dataset more images per class, or folders of its own for this split."
    )
    with pytest.raises(ValueError, match="batch") as error:
        batches(numbered(3), 1, batch_size=0)
    assert str(error.value) == "A batch needs an image. Expected batch_size >= 1. Received: 0."
    with pytest.raises(ValueError, match="steps") as error:
        batches(numbered(3), 1, image_sizes=((0.0, 8),))
    assert str(error.value) == (
        "The image sizes change at shares of a run of unknown length. Expected the number of its "
        "`steps`. Received: steps=None, image_sizes=((0.0, 8),)."
    )
    with pytest.raises(ValueError, match="Did you mean 'shift'"):
        batches(numbered(3), 1, augmentation={"shfit": {}})


@pytest.mark.parity
def test_the_pipeline_runs_beside_a_jax_network():
    pytest.importorskip("jax", reason="needs JAX: make parity")
    program = """
from training import datasets, pipeline, pixels
import keras, numpy as np, tensorflow as tf
assert keras.backend.backend() == "jax"
digits = datasets.load("digits")
batch = dict(batch_size=4, preprocessing=digits.preprocessing)
x, y = next(iter(pipeline.training_batches(digits, augmentation={"shift": {}}, seed=0, **batch)))
x, y, w = next(iter(pipeline.evaluation_batches(digits.splits["test"], **batch)))
batch["preprocessing"] = pipeline.Preprocessing(size=(16, 16), mean=(0.5,), std=(0.5,))
x, y, w = next(iter(pipeline.evaluation_batches(digits.splits["test"], **batch)))
assert x.shape == (4, 16, 16, 1)
photos = np.random.default_rng(0).integers(0, 256, (2, 40, 31, 3), dtype="uint8")
for antialias in (True, False):
    photo = pipeline.Preprocessing(size=(16, 16), resize_size=20, antialias=antialias)
    for shape in (photos.shape, (None, None, None, 3)):
        signature = tf.TensorSpec(shape, "uint8")
        made = tf.data.Dataset.from_generator(lambda: [photos], output_signature=signature)
        found = next(iter(made.map(lambda images: pixels.fit(images, photo))))
        np.testing.assert_allclose(found, photo.resize(photos), atol=0 if antialias else 1e-4)
"""
    environment = os.environ | {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
