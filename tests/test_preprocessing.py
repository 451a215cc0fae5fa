"""Preprocessing against float64, and bit for bit against Pillow; the words of its errors."""

import json
import math

import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from keras_resnet import resampling
from keras_resnet.imagenet_classes import imagenet_classes
from keras_resnet.preprocessing import (
    CIFAR10,
    IMAGENET,
    Preprocessing,
    decode_predictions,
    preprocess_input,
)

PIL_FILTERS = {
    "bilinear": PIL.Image.Resampling.BILINEAR,
    "bicubic": PIL.Image.Resampling.BICUBIC,
}


def photo(height, width, channels=3):
    """A picture with smooth areas, edges and fine grain, uint8."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    rng = np.random.default_rng(height * width)
    planes = [
        128 + 90 * np.sin(9 * x + 5 * y + c) * np.cos(7 * y - c) + 30 * (x + y > 0.8)
        for c in range(channels)
    ]
    image = np.stack(planes, axis=-1) + rng.normal(0, 8, (height, width, channels))
    return image.clip(0, 255).astype("uint8")


def pil_resize(image, size, interpolation):
    """Pillow's resize of every channel."""
    height, width = size
    planes = [
        PIL.Image.fromarray(image[..., c]).resize((width, height), PIL_FILTERS[interpolation])
        for c in range(image.shape[-1])
    ]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)


# Normalisation


@pytest.mark.parametrize("channel_order", ["rgb", "bgr"])
@pytest.mark.parametrize("dtype", ["uint8", "int64", "float64"])
def test_normalize_against_float64(channel_order, dtype):
    images = photo(9, 7).astype(dtype)[np.newaxis]
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    record = Preprocessing(mean=mean, std=std, channel_order=channel_order)
    channels = images.astype("float64") / 255
    if channel_order == "bgr":
        channels = channels[..., [2, 1, 0]]
    result = np.asarray(record.normalize(images))
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, (channels - mean) / std, atol=2e-6)


def test_imagenet_black_and_white_are_those_of_torchvision():
    # (0 - 0.485) / 0.229 and (1 - 0.485) / 0.229, and so on for green and blue.
    extremes = np.stack([np.zeros((1, 1, 3)), np.full((1, 1, 3), 255)])
    black, white = np.asarray(IMAGENET.normalize(extremes)).reshape(2, 3)
    np.testing.assert_allclose(black, [-2.1179, -2.0357, -1.8044], atol=1e-4)
    np.testing.assert_allclose(white, [2.2489, 2.4286, 2.6400], atol=1e-4)


def test_caffe_subtracts_the_mean_in_bgr():
    caffe = Preprocessing(
        scale=1.0, mean=(103.939, 116.779, 123.68), std=(1.0, 1.0, 1.0), channel_order="bgr"
    )
    images = photo(5, 6)[np.newaxis]
    expected = keras.applications.imagenet_utils.preprocess_input(
        images.astype("float32"), mode="caffe", data_format="channels_last"
    )
    np.testing.assert_allclose(np.asarray(caffe.normalize(images)), expected, atol=1e-4)


def test_greyscale():
    grey = Preprocessing(size=(8, 8), resize_size=None, mean=(0.5,), std=(0.5,))
    result = np.asarray(preprocess_input(photo(8, 8, 1)[np.newaxis], grey))
    assert result.shape == (1, 8, 8, 1)
    np.testing.assert_allclose(result[0], photo(8, 8, 1) / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize("record", [IMAGENET, Preprocessing(channel_order="bgr")])
@pytest.mark.parametrize("size", [(301, 257), (224, 224)])
def test_a_greyscale_image_stands_for_all_colours(record, size):
    grey = photo(*size, 1)
    expected = preprocess_input(np.repeat(grey, 3, axis=-1), record)
    pillow = PIL.Image.fromarray(grey[..., 0])
    for same in (grey, grey[..., 0], pillow, tf.constant(grey)):
        np.testing.assert_array_equal(preprocess_input(same, record), expected)
    np.testing.assert_array_equal(preprocess_input(grey[np.newaxis], record)[0], expected)


def test_pillow_images_and_lists_of_them():
    images = [PIL.Image.fromarray(photo(*size)) for size in ((97, 61), (40, 50))]
    images.append(images[0].convert("RGBA"))
    received = preprocess_input(images, IMAGENET)
    assert received.shape == (3, 224, 224, 3)
    for image, result in zip(images, received):
        expected = preprocess_input(np.asarray(image.convert("RGB")), IMAGENET)
        np.testing.assert_array_equal(result, expected)
    grey = IMAGENET.adapted(channels=1)
    assert preprocess_input(images[0], grey).shape == (224, 224, 1)
    assert preprocess_input([], grey).shape == (0, 224, 224, 1)


@pytest.mark.parametrize("channels", [3, 4, 6, 7])
@pytest.mark.parametrize("kind", [np.asarray, tf.constant, keras.ops.convert_to_tensor])
def test_colours_are_swapped_and_what_lies_behind_them_is_not(channels, kind):
    record = Preprocessing(mean=(1.0, 2.0, 3.0), std=(1.0,) * 3, scale=1.0, channel_order="bgr")
    image = np.arange(10, 10 + channels, dtype="float32").reshape(1, 1, channels)
    result = np.asarray(record.adapted(channels=channels).normalize(kind(image)))[0, 0]
    order = [2, 1, 0, 5, 4, 3, 6] if channels > 5 else [2, 1, 0, 3]
    expected = [10 + source - (1 + place % 3) for place, source in enumerate(order)]
    np.testing.assert_array_equal(result, expected[:channels])


# Resizing


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("given", [(333, 500), (500, 333), (97, 131), (17, 23), (1, 1), (64, 48)])
def test_direct_resize_has_the_bits_of_pillow(interpolation, channels, given):
    record = Preprocessing(size=(64, 48), resize_size=None, interpolation=interpolation)
    image = photo(*given, channels)
    result = np.asarray(record.resize(image[np.newaxis]))[0]
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, pil_resize(image, (64, 48), interpolation))


@pytest.mark.parametrize("given", [(700, 200), (200, 700), (100, 30), (40, 40)])
@pytest.mark.parametrize("size", [(50, 60), (60, 20), (99, 29), (39, 41)])
def test_the_order_of_the_passes_is_that_of_pillow(given, size):
    image = np.random.default_rng(0).integers(0, 256, (*given, 3), dtype="uint8")
    record = Preprocessing(size=size, resize_size=None, interpolation="bicubic")
    np.testing.assert_array_equal(record.resize(image), pil_resize(image, size, "bicubic"))


def test_sizes_that_are_known_late_give_the_same_bits():
    function = tf.function(
        lambda images, height, width: resampling.resize(images, (height, width), "bicubic"),
        input_signature=[
            tf.TensorSpec((None, None, None, 3), tf.uint8),
            tf.TensorSpec((), tf.int32),
            tf.TensorSpec((), tf.int32),
        ],
    )
    images = np.stack([photo(97, 61), photo(97, 61)[::-1]])
    for size in ((40, 50), (40, 61), (120, 99)):
        expected = np.stack([pil_resize(image, size, "bicubic") for image in images])
        np.testing.assert_array_equal(function(images, *size), expected)


@pytest.mark.parametrize("keep_fitting", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"resize_size": None}, {"antialias": False}, {"interpolation": "bicubic"}]
)
def test_files_decoded_in_a_pipeline_become_what_arrays_do(options, keep_fitting):
    record = Preprocessing(**{"size": (20, 24), "resize_size": 28} | options)
    images = [photo(*size) for size in ((97, 61), (20, 24), (15, 90))]
    files = [tf.io.encode_png(image).numpy() for image in images]

    def load(file):
        image = tf.io.decode_png(file, channels=3)  # of unknown size
        return [
            preprocess_input(pixels, record, keep_fitting=keep_fitting)
            for pixels in (image, image[tf.newaxis])
        ]

    dataset = tf.data.Dataset.from_tensor_slices(files).map(lambda file: tuple(load(file)))
    assert [spec.shape for spec in dataset.element_spec] == [(20, 24, 3), (1, 20, 24, 3)]
    for (alone, batch), image in zip(dataset, images, strict=True):
        expected = preprocess_input(image, record, keep_fitting=keep_fitting)
        np.testing.assert_allclose(alone, expected, atol=1e-5)
        np.testing.assert_array_equal(batch[0], alone)


@pytest.mark.parametrize(
    ("given", "resized", "corner"),
    [
        # torchvision rounds the longer side down, and half a pixel of margin to the even side.
        ((333, 500), (256, 384), (16, 80)),
        ((500, 333), (384, 256), (80, 16)),
        ((301, 257), (299, 256), (38, 16)),
        ((257, 303), (256, 301), (16, 38)),
    ],
)
def test_shorter_side_then_centre_crop(given, resized, corner):
    image = photo(*given)
    result = np.asarray(IMAGENET.resize(image[np.newaxis]))[0]
    top, left = corner
    expected = pil_resize(image, resized, "bilinear")[top : top + 224, left : left + 224]
    np.testing.assert_array_equal(result, expected)


def test_without_antialias_shrinking_skips_pixels():
    stripes = np.zeros((1, 64, 64, 1), "uint8")
    stripes[:, :, ::4] = 255
    options = {"size": (16, 16), "resize_size": None, "mean": (0.0,), "std": (1.0,)}
    averaged = np.asarray(Preprocessing(**options).resize(stripes))
    sampled = np.asarray(Preprocessing(**options, antialias=False).resize(stripes))
    np.testing.assert_allclose(averaged[:, :, 2:-2], 255 / 4, atol=20)
    assert sampled[:, :, 2:-2].max() == 0


def test_fitting_images_keep_their_values():
    images = photo(32, 32)[np.newaxis]
    np.testing.assert_array_equal(np.asarray(CIFAR10.resize(images)), images)


def test_images_of_the_inputs_size_are_like_others_unless_they_were_prepared():
    image = photo(224, 224)
    resized = pil_resize(image, (256, 256), "bilinear")[16:240, 16:240]
    expected = IMAGENET.normalize(resized)
    np.testing.assert_array_equal(preprocess_input(image, IMAGENET), expected)
    kept = preprocess_input(image, IMAGENET, keep_fitting=True)
    np.testing.assert_array_equal(kept, IMAGENET.normalize(image))
    np.testing.assert_array_equal(kept, IMAGENET(image))


def test_bicubic_stays_within_what_an_image_can_be():
    edge = np.zeros((1, 20, 20, 3), "uint8")
    edge[:, :, 10:] = 255
    record = Preprocessing(size=(33, 33), resize_size=None, interpolation="bicubic")
    result = np.asarray(record.resize(edge))
    assert result.min() == 0
    assert result.max() == 255


@pytest.mark.parametrize(
    ("size", "given", "resized", "corner"),
    [
        ((64, 64), (50, 70), (64, 89), (0, 12)),
        ((40, 64), (60, 60), (64, 64), (12, 0)),
        ((40, 64), (60, 90), (48, 72), (4, 4)),
    ],
)
def test_a_crop_larger_than_the_image_keeps_its_proportions(size, given, resized, corner):
    record, image = Preprocessing(size=size, resize_size=48), photo(*given)
    expected = pil_resize(image, resized, "bilinear")
    expected = expected[corner[0] :, corner[1] :][: size[0], : size[1]]
    np.testing.assert_array_equal(record.resize(image), expected)


def test_single_image_and_batch_agree():
    image = photo(90, 61)
    single, batch = IMAGENET(image), IMAGENET(image[np.newaxis])
    np.testing.assert_allclose(np.asarray(single), np.asarray(batch)[0], atol=1e-6)


def test_inside_a_tf_data_pipeline():
    image = photo(40, 40)
    dataset = tf.data.Dataset.from_tensors(image).map(CIFAR10)
    assert dataset.element_spec.shape == (32, 32, 3)
    np.testing.assert_allclose(next(iter(dataset)), np.asarray(CIFAR10(image)), atol=1e-5)


# The record


@pytest.mark.parametrize("record", [IMAGENET, CIFAR10, Preprocessing(channel_order="bgr")])
def test_the_way_through_json_and_back(record):
    assert Preprocessing(**json.loads(json.dumps(record.to_dict()))) == record


def test_preprocess_input_takes_a_model():
    inputs = keras.Input((32, 32, 3))
    model = keras.Model(inputs, inputs, name="net")
    with pytest.raises(ValueError, match="preprocessed") as error:
        preprocess_input(photo(32, 32), model)
    assert str(error.value) == (
        "The model 'net' does not say how its images are preprocessed. Expected a "
        "`keras_resnet.Preprocessing` in `model.preprocessing`. Received: None. Set the "
        "attribute, or pass `preprocessing=`."
    )
    model.preprocessing = CIFAR10
    expected = CIFAR10.normalize(photo(32, 32))
    np.testing.assert_array_equal(preprocess_input(photo(32, 32), model), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(
            (
                options,
                "`mean` and `std` need one finite value per channel, and every std and `scale` "
                f"must be positive. Received: mean={options['mean']}, "
                f"std={options.get('std', (0.229, 0.224, 0.225))}, "
                f"scale={options.get('scale', 1 / 255)}",
            )
            for options in (
                {"mean": (0.5,)},
                {"mean": (), "std": ()},
                {"mean": (0.5,), "std": (0.0,)},
                {"mean": (0.5,), "std": (-1.0,)},
                {"mean": (math.nan,), "std": (1.0,)},
                {"mean": (0.5,), "std": (math.inf,)},
                {"mean": (0.5,), "std": (1.0,), "scale": 0},
            )
        ),
        *(
            (
                {"size": size, "resize_size": resize_size},
                "`size` needs a height and a width, `resize_size` a length or None; of 1 to 65,535 "
                f"whole pixels each. Received: size={size}, resize_size={resize_size}",
            )
            for size, resize_size in (
                ((8, 0), None),
                ((8, -8), None),
                ((8,), None),
                ((8, 8.0), 8),
                ((8, 8), 0),
                ((8, 8), 2**16),
                ((10**400, 8), 8),
            )
        ),
        (
            {"channel_order": "gbr"},
            "Unknown channel_order. Expected one of rgb, bgr. Received: 'gbr'. Did you mean 'rgb'?",
        ),
    ],
)
def test_impossible_records(options, message):
    with pytest.raises(ValueError, match="Received") as error:
        Preprocessing(**options)
    assert str(error.value) == message


def test_wrong_channels():
    with pytest.raises(ValueError, match="channels") as error:
        preprocess_input(photo(32, 32, 4), CIFAR10)
    assert str(error.value) == (
        "The images have another number of channels than the preprocessing. Expected 3 in the "
        "last axis, or 1 of greyscale images. Received: shape (32, 32, 4)"
    )


@pytest.mark.parametrize("images", [3, None, "photo.jpg"])
def test_what_are_no_images_are_refused(images):
    with pytest.raises(TypeError, match="These are no images") as error:
        preprocess_input(images, CIFAR10)
    assert str(error.value) == (
        "These are no images. Expected an array or tensor, a Pillow image, or a list of them. "
        f"Received: {type(images).__name__}"
    )


# Names


def test_decode_predictions():
    predictions = np.array([[0.1, 0.7, 0.2], [0.5, 0.0, 0.5]])
    assert decode_predictions(predictions, ["ant", "bee", "cat"], top=2) == [
        [("bee", 0.7), ("cat", 0.2)],
        [("ant", 0.5), ("cat", 0.5)],
    ]
    assert len(decode_predictions(predictions, ["ant", "bee", "cat"])[0]) == 3


def test_decode_predictions_agrees_with_tensorflow():
    predictions = np.random.default_rng(0).random((4, 20))
    names = [f"class{index}" for index in range(20)]
    values, indices = tf.math.top_k(predictions, 5)
    for row, row_values, row_indices in zip(
        decode_predictions(predictions, names), values.numpy(), indices.numpy()
    ):
        assert row == [(names[i], v) for i, v in zip(row_indices, row_values)]


def test_names_must_fit():
    with pytest.raises(ValueError, match="names") as error:
        decode_predictions(np.zeros((2, 3)), ["ant", "bee"])
    assert str(error.value) == (
        "The predictions do not fit the names. Expected shape (batch, 2). Received: shape (2, 3). "
        "Pass the names of the network's own classes as `class_names`."
    )


def test_imagenet_needs_no_names():
    predictions = np.zeros((1, 1000))
    predictions[0, [134, 517]] = 0.6, 0.4  # the bird before the machine
    assert decode_predictions(predictions, top=2) == [[("crane bird", 0.6), ("crane", 0.4)]]
    with pytest.raises(ValueError, match=r"Expected shape \(batch, 1000\)"):
        decode_predictions(np.zeros((1, 10)))


def test_imagenet_classes_stand_in_the_order_of_their_ids():
    ids, names = zip(*imagenet_classes())
    assert list(ids) == sorted(set(ids))
    assert len(ids) == len(set(names)) == 1000
    # Of the first, of the middle and of the last: Russakovsky et al. 2015.
    assert (ids[0], names[0]) == ("n01440764", "tench")
    assert (ids[388], names[388]) == ("n02510455", "giant panda")
    assert (ids[999], names[999]) == ("n15075141", "toilet tissue")


# Other sizes and channels


def test_a_record_for_other_channels():
    assert CIFAR10.adapted(channels=1).mean == pytest.approx([np.mean(CIFAR10.mean)], abs=1e-6)
    assert CIFAR10.adapted(channels=5).std == (*CIFAR10.std, *CIFAR10.std[:2])
    assert CIFAR10.adapted(channels=3) == CIFAR10


def test_a_record_for_another_size_sees_the_same_part_of_the_image():
    half = IMAGENET.adapted(size=(112, 112))
    assert (half.size, half.resize_size) == ((112, 112), 128)
    assert CIFAR10.adapted(size=(64, 48)).resize_size is None
