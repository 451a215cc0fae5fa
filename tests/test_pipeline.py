"""Batches: every example once, the same after a restart, the numbers of `Preprocessing`."""

import collections
import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from keras_resnet.preprocessing import IMAGENET, Preprocessing
from training import datasets, pipeline, splits

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


def batches(dataset, steps, **options):
    defaults = {"batch_size": 8, "augmentation": {}, "preprocessing": RAW, "seed": 0}
    ds = pipeline.training_batches(dataset, **(defaults | options))
    return list(ds.take(steps).as_numpy_iterator())


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


@pytest.mark.parametrize("in_memory", [True, False])
def test_order_and_augmentation_depend_on_seed_and_step_alone(in_memory):
    dataset = numbered(50, in_memory)
    options = {"augmentation": {"shift": {}}, "seed": 7}
    first = batches(dataset, 20, **options)
    tf.random.set_seed(123)
    resumed = batches(dataset, 7, start_step=13, **options)
    for (images, labels), (again, labels_again) in zip(first[13:], resumed, strict=True):
        np.testing.assert_array_equal(images, again)
        np.testing.assert_array_equal(labels, labels_again)
    other = batches(dataset, 20, augmentation={"shift": {}}, seed=8)
    assert not np.array_equal(first[0][0], other[0][0])


@pytest.mark.parametrize("in_memory", [True, False])
def test_no_two_images_and_no_two_steps_share_their_augmentation(in_memory):
    dataset = numbered(1, in_memory, side=8)  # always the same image
    grey = dataclasses.replace(dataset.preprocessing, mean=(9.0,))  # the colour of the border
    options = {"augmentation": {"pad_crop_flip": {}}, "preprocessing": grey, "batch_size": 16}
    steps = [images for images, _ in batches(dataset, 8, **options)]
    assert len({image.tobytes() for image in steps[0]}) > 2
    assert len({step.tobytes() for step in steps}) == 8


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


@pytest.mark.parametrize(
    "preprocessing",
    [
        IMAGENET,
        Preprocessing(size=(40, 40), resize_size=40, interpolation="bicubic"),
        Preprocessing(size=(32, 48), resize_size=64, antialias=False),
        Preprocessing(size=(20, 30), resize_size=None),
    ],
)
@pytest.mark.parametrize("shape", [(50, 70), (71, 50), (40, 40), (30, 300), (224, 224)])
def test_resize_gives_the_numbers_of_preprocessing(preprocessing, shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    unknown = tf.TensorSpec((None, None, 3), tf.uint8)
    resize = tf.function(lambda x: pipeline.resize(x, preprocessing), input_signature=[unknown])
    expected = np.asarray(preprocessing.resize(image))
    np.testing.assert_allclose(resize(image), expected, atol=1e-3)
    batch = pipeline.resize(tf.constant(image[None]), preprocessing)
    np.testing.assert_allclose(batch[0], expected, atol=1e-3)


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
    for augmentation in ({}, {"scale_crop": {}}):
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
    with pytest.raises(ValueError, match="Did you mean 'shift'"):
        batches(numbered(3), 1, augmentation={"shfit": {}})


def test_the_pipeline_runs_beside_a_jax_network():
    pytest.importorskip("jax")
    program = """
from training import datasets, pipeline
import keras, numpy as np
assert keras.backend.backend() == "jax"
digits = datasets.load("digits")
batch = dict(batch_size=4, preprocessing=digits.preprocessing)
x, y = next(iter(pipeline.training_batches(digits, augmentation={"shift": {}}, seed=0, **batch)))
x, y, w = next(iter(pipeline.evaluation_batches(digits.splits["test"], **batch)))
batch["preprocessing"] = pipeline.Preprocessing(size=(16, 16), mean=(0.5,), std=(0.5,))
x, y, w = next(iter(pipeline.evaluation_batches(digits.splits["test"], **batch)))
assert x.shape == (4, 16, 16, 1)
"""
    environment = os.environ | {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
