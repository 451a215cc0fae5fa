"""Augmentation against NumPy, and against what the paper says."""

import numpy as np
import pytest
import tensorflow as tf

from keras_resnet.preprocessing import CIFAR10, IMAGENET, Preprocessing
from training import augment

FILL = (125, 123, 114)


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def crops_in_numpy(image, padding, fill, mirror):
    """Every image that padding, cropping and mirroring can make."""
    height, width, channels = image.shape
    padded = np.empty((height + 2 * padding, width + 2 * padding, channels), np.uint8)
    padded[:] = fill
    padded[padding:-padding, padding:-padding] = image
    crops = {}
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = padded[top : top + height, left : left + width]
            crops[crop.tobytes()] = (top, left, False)
            if mirror:
                crops[crop[:, ::-1].tobytes()] = (top, left, True)
    return crops


def test_pad_crop_flip_makes_every_crop_and_mirror_equally_often():
    image = random_images(6, 7, 3)
    crops = crops_in_numpy(image, 2, FILL, mirror=True)
    batch = np.broadcast_to(image, (5000, *image.shape))
    out = augment.pad_crop_flip(tf.constant(batch), (1, 2), padding=2, fill=FILL).numpy()
    assert out.dtype == np.uint8
    drawn = np.array([crops[crop.tobytes()] for crop in out])  # KeyError: not a crop
    _, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(counts) == 5 * 5 * 2
    assert counts.min() > 60  # 100 each, and four deviations
    assert counts.max() < 140
    assert abs(drawn[:, 2].mean() - 0.5) < 0.03


def test_shift_moves_by_one_over_black_and_never_mirrors():
    image = random_images(8, 8, 1)
    crops = crops_in_numpy(image, 1, 0, mirror=False)
    out = augment.shift(tf.constant(np.broadcast_to(image, (500, 8, 8, 1))), (3, 4)).numpy()
    assert len({crops[crop.tobytes()] for crop in out}) == 9


@pytest.mark.parametrize("name", ["pad_crop_flip", "shift"])
def test_one_image_is_handled_like_a_batch(name):
    chain = augment.chain({name: {}}, CIFAR10)
    image = random_images(32, 32, 3)
    crops = crops_in_numpy(image, 4, FILL, mirror=True) | crops_in_numpy(image, 1, 0, mirror=False)
    out = chain.change(tf.constant(image), tf.constant((5, 6), tf.int64)).numpy()
    assert out.shape == image.shape
    assert out.tobytes() in crops


def test_a_reflected_border_is_that_of_numpy():
    image = random_images(6, 5, 3)
    padded = np.pad(image, [(2, 2), (2, 2), (0, 0)], "reflect")
    places = [padded[top : top + 6, left : left + 5] for top in range(5) for left in range(5)]
    crops = {crop.tobytes() for place in places for crop in (place, place[:, ::-1])}
    batch = tf.constant(np.broadcast_to(image, (1000, *image.shape)))
    options = {"padding": 2, "mode": "reflect"}
    out = augment.chain({"pad_crop_flip": options}, CIFAR10).change(batch, (1, 2)).numpy()
    assert {crop.tobytes() for crop in out} == crops


def test_flip_mirrors_as_many_images_as_it_says():
    image = random_images(4, 5, 3)
    batch = tf.constant(np.broadcast_to(image, (2000, *image.shape)))
    for probability in (0, 0.5, 0.8, 1):
        out = augment.flip(batch, (1, 2), probability=probability).numpy()
        mirrored = (out == image[:, ::-1]).all(axis=(1, 2, 3))
        assert ((out == image).all(axis=(1, 2, 3)) ^ mirrored).all()
        assert abs(mirrored.mean() - probability) < 0.04
    assert augment.flip(image, (1, 3), probability=1).numpy().tolist() == image[:, ::-1].tolist()


@pytest.mark.parametrize("name", list(augment.AUGMENTATIONS))
def test_the_seed_alone_decides_eagerly_and_in_tf_data(name):
    images = tf.constant(random_images(6, 24, 18, 3))
    chain = augment.chain({name: {}}, IMAGENET)

    def function(seed):
        if chain.crop:
            return tf.stack(chain.crop(1024, 768, seed, (224, 224)))
        if chain.mix:
            return tf.concat([tf.reshape(x, (6, -1)) for x in chain.mix(floats, labels, seed)], 1)
        return chain.change(images if chain.takes_batches else images[0], seed)

    floats, labels = tf.cast(images, tf.float32) / 3, tf.one_hot(tf.range(6), 6)
    seeds = [(seed, seed + 1) for seed in range(40)]
    eager = [function(tf.constant(seed, tf.int64)).numpy() for seed in seeds]
    tf.random.set_seed(99)
    again = [function(tf.constant(seed, tf.int64)).numpy() for seed in seeds[:5]]
    dataset = tf.data.Dataset.from_tensor_slices(tf.constant(seeds, tf.int64))
    in_graph = dataset.map(function)
    np.testing.assert_array_equal(eager[:5], again)
    np.testing.assert_array_equal(eager, list(in_graph.as_numpy_iterator()))
    assert in_graph.element_spec.shape == eager[0].shape  # static, as normalisation wants it
    assert len({out.tobytes() for out in eager}) > 10
    if not chain.crop and chain.takes_batches and not chain.mix:
        same = tf.broadcast_to(images[:1], (200, 24, 18, 3))
        drawn = {image.tobytes() for image in chain.change(same, (5, 6)).numpy()}
        assert len(drawn) > (1 if name == "flip" else 8)  # every image has its own draw


@pytest.mark.parametrize("name", ["pad_crop_flip", "shift", "flip", "colour_pca", "random_erasing"])
def test_an_image_of_a_batch_knows_nothing_of_the_others(name):
    change = augment.chain({name: {}}, IMAGENET).change
    images = random_images(8, 16, 12, 3)
    together = change(tf.constant(images), (1, 2)).numpy()
    for i in range(8):
        among_others = random_images(8, 16, 12, 3, seed=1)
        among_others[i] = images[i]
        alone = change(tf.constant(among_others), (1, 2)).numpy()
        np.testing.assert_array_equal(alone[i], together[i])
        assert (alone != together).any()


@pytest.mark.parametrize(
    "name", ["flip", "colour_pca", "rand_augment", "trivial_augment", "random_erasing"]
)
def test_images_of_unknown_size_keep_their_size(name):
    chain = augment.chain({name: {}}, IMAGENET)

    def change(image):
        image = tf.raw_ops.PlaceholderWithDefault(input=image, shape=(None, None, 3))
        return chain.change(image, (3, 4))

    dataset = tf.data.Dataset.from_tensors(random_images(21, 34, 3)).map(change)
    assert dataset.element_spec == tf.TensorSpec((None, None, 3), tf.uint8)
    assert next(dataset.as_numpy_iterator()).shape == (21, 34, 3)


def test_the_border_of_the_table_has_the_mean_colour():
    change = augment.chain({"pad_crop_flip": {}}, CIFAR10).change
    out = change(tf.zeros((64, 32, 32, 3), tf.uint8), (0, 0)).numpy()
    assert set(map(tuple, out.reshape(-1, 3))) == {(0, 0, 0), FILL}
    assert np.abs(CIFAR10.normalize(np.array(FILL))).max() < 0.01  # the paper's zeros
    caffe = Preprocessing(mean=(1.0, 2.0, 3.0), std=(1.0,) * 3, scale=1.0, channel_order="bgr")
    change = augment.chain({"pad_crop_flip": {}}, caffe).change
    out = change(tf.zeros((64, 8, 8, 3), tf.uint8), (0, 0)).numpy()
    assert set(map(tuple, out.reshape(-1, 3))) == {(0, 0, 0), (3, 2, 1)}


@pytest.mark.parametrize("name", ["pad_crop_flip", "rand_augment", "random_erasing"])
def test_a_colour_of_other_channels_than_the_images_is_refused(name):
    change = augment.chain({name: {"fill": [1, 2]}}, CIFAR10).change
    with pytest.raises(ValueError, match=r"one value for all channels, or 3.*fill=\[1, 2\]"):
        tf.data.Dataset.from_tensors(random_images(8, 8, 3)).map(lambda x: change(x, (0, 0)))


def test_a_chain_says_what_it_does():
    empty = augment.chain({}, CIFAR10)
    image = random_images(3, 3, 3)
    assert (empty.crop, empty.mix, empty.takes_batches) == (None, None, True)
    assert empty.change(image, (0, 0)) is image
    chain = augment.chain({"scale_crop": {}, "flip": {}, "cutmix": {}}, IMAGENET)
    assert chain.crop
    assert chain.mix
    assert chain.takes_batches
    assert not augment.chain({"flip": {}, "rand_augment": {}}, CIFAR10).takes_batches


def test_rows_are_done_in_order_with_random_numbers_of_their_own():
    white = np.zeros((2000, 13, 13, 1), np.uint8)
    white[:, 6, 6] = 255
    rows = {"shift": {"padding": 1}, "pad_crop_flip": {"padding": 1, "fill": 0}}
    out = augment.chain(rows, Preprocessing(mean=(0,), std=(1,))).change(white, (1, 2)).numpy()
    places = np.argwhere(out[..., 0] == 255)[:, 1:] - 6
    # Two independent moves by -1, 0 or 1; the same one twice would never be 1 in all.
    _, counts = np.unique(places[:, 0], return_counts=True)
    np.testing.assert_allclose(counts / 2000, np.array([1, 2, 3, 2, 1]) / 9, atol=0.04)


@pytest.mark.parametrize(
    ("augmentation", "message"),
    [
        (
            {"pad_crop": {}},
            "Unknown augmentation. Expected one of scale_crop, inception_crop, pad_crop_flip, "
            "shift, flip, colour_pca, rand_augment, trivial_augment, random_erasing, mixup, "
            "cutmix. Received: 'pad_crop'. Did you mean 'pad_crop_flip'?",
        ),
        (
            {"rand_augment": {"magnitud": 7}},
            "Unknown keyword of 'rand_augment'. Expected one of layers, magnitude, magnitude_std, "
            "probability, fill. Received: 'magnitud'. Did you mean 'magnitude'?",
        ),
        (
            {"pad_crop_flip": {"mode": "reflct"}},
            "Unknown mode of 'pad_crop_flip'. Expected one of constant, reflect. "
            "Received: 'reflct'. Did you mean 'reflect'?",
        ),
        (
            {"flip": {}, "scale_crop": {}},
            "The augmentation is out of order. Expected at most one crop, then changes, then what "
            "mixes batches. Received: flip, scale_crop (change, crop).",
        ),
        (
            {"inception_crop": {}, "scale_crop": {}},
            "The augmentation is out of order. Expected at most one crop, then changes, then what "
            "mixes batches. Received: inception_crop, scale_crop (crop, crop).",
        ),
        (
            {"rand_augment": {"magnitude": 15}},
            "A keyword of 'rand_augment' is out of its range. Expected `magnitude` as a number "
            "from 0 to 10. Received: 15.",
        ),
        (
            {"inception_crop": {"area": (1, 0.35)}},
            "A keyword of 'inception_crop' is out of its range. Expected `area` as a rising pair "
            "from 0 to 1. Received: (1, 0.35).",
        ),
    ],
)
def test_bad_names_and_orders_are_explained(augmentation, message):
    with pytest.raises(ValueError, match="Expected") as error:
        augment.chain(augmentation, IMAGENET)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("name", "keyword", "bad", "good"),
    [
        ("mixup", "alpha", [0, "1", None, float("nan"), (1, 1)], [0.2, 1]),
        ("inception_crop", "area", [0.35, (0.35,), [0, 2], ("0", "1")], [(0.35, 1), [0.35, 1]]),
        ("scale_crop", "shortest", [256, (200, 480)], [(256, 256), [224, 480]]),
        ("rand_augment", "layers", [0, 2.0, True], [1, 3]),
        ("rand_augment", "fill", ["mean", 256, (1, 2.5, 3)], [0, [1, 2, 3]]),
        ("random_erasing", "fill", ["nois", 256, (-1, 0, 0)], ["noise", "mean", 7, [1, 2, 3]]),
        ("random_erasing", "mean", [3], []),
        ("pad_crop_flip", "mode", [0, "mean"], ["constant"]),
    ],
)
def test_values_of_keywords_are_checked(name, keyword, bad, good):
    for value in bad:
        with pytest.raises(ValueError, match=f"of '{name}'.*Expected .*Received: "):
            augment.chain({name: {keyword: value}}, IMAGENET)
    for value in good:
        augment.chain({name: {keyword: value}}, IMAGENET)
