"""TFLite files of every kind: quantised, of any batch, for raw images; and what is said of them."""

import dataclasses
import importlib
import json

import exported
import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from exported import IMAGES, LABELS, PREPROCESSING, RAW, make_model
from families import SMALL
from integer_graph import assert_integer_throughout, count_operations
from trained import look_trained

import keras_resnet
from keras_resnet import export
from keras_resnet.export import ExportMismatch, ExportReport, Tolerance, ranges
from keras_resnet.export.conversion import as_convolution

pytestmark = pytest.mark.parity  # of LiteRT; the fast tests have `test_export.py`

# The function of this module hides the module itself behind its name.
tflite_module = importlib.import_module("keras_resnet.export.tflite")

SIXTEEN = ("int16", "int8", "int32", "int64")  # activations, weights, shapes and biases


@pytest.fixture(scope="module")
def model():
    return exported.trained_model()


@pytest.fixture(scope="module")
def write(model, tmp_path_factory):
    """Exports the network; the same request is written once."""
    folder, made = tmp_path_factory.mktemp("tflite"), {}

    def write(**options):
        request = repr(options)
        if request not in made:
            images = RAW if options.get("include_preprocessing") else IMAGES
            calibration = RAW.clip(40, 200) if images is RAW else IMAGES  # no black, no white
            made[request] = export.tflite(
                model,
                folder / f"{len(made)}.tflite",
                representative_data=calibration,
                examples=images,
                labels=LABELS,
                **options,
            )
        return made[request]

    return write


def details(path):
    """What the runtime says of the input and the output."""
    interpreter = Interpreter(str(path))
    return interpreter.get_input_details()[0], interpreter.get_output_details()[0]


# Formats


@pytest.mark.parametrize("quantization", ["dynamic", "int16x8"])
def test_each_quantization_computes_what_keras_computes(model, write, quantization):
    report = write(quantization=quantization)
    answers = export.load_tflite(report.path)(IMAGES)
    np.testing.assert_allclose(answers, model.predict(IMAGES, verbose=0), atol=0.1)
    assert report.format == f"tflite_{quantization}"
    assert report.bytes < 0.5 * write().bytes


def test_integers_of_16_bits_are_integers_throughout_and_nearer(write):
    eight, sixteen = write(quantization="int8"), write(quantization="int16x8")
    assert_integer_throughout(eight.path)
    assert_integer_throughout(sixteen.path, "int16", "int16", dtypes=SIXTEEN)
    assert sixteen.mean_probability_difference < eight.mean_probability_difference
    assert sixteen.worst_layers(1)[0][1] < eight.worst_layers(1)[0][1]


@pytest.mark.parametrize("io_dtype", ["uint8", "float32"])
def test_int8_files_may_have_other_ends(write, io_dtype):
    plain, other = write(quantization="int8"), write(quantization="int8", io_dtype=io_dtype)
    assert_integer_throughout(other.path, io_dtype, io_dtype)
    answers, expected = (export.load_tflite(file.path)(IMAGES) for file in (other, plain))
    np.testing.assert_allclose(answers, expected, atol=1.5 / 256)  # a step of the output


@pytest.mark.parametrize("quantization", [None, "int8"])
@pytest.mark.parametrize("batch_size", [None, 3])
def test_files_of_any_batch_size_answer_alike(write, quantization, batch_size):
    report = write(quantization=quantization, batch_size=batch_size)
    source, target = details(report.path)
    assert source["shape_signature"].tolist() == [batch_size or -1, 16, 16, 3]
    assert target["shape_signature"].tolist() == [batch_size or -1, 3]
    classify = export.load_tflite(report.path)
    expected = export.load_tflite(write(quantization=quantization).path)(IMAGES)
    for count in (40, 7, 1, 0):  # pieces that are full, and that are not
        answers = classify(IMAGES[:count])
        assert answers.shape == (count, 3)
        np.testing.assert_allclose(answers, expected[:count], atol=1e-6)


def test_any_batch_size_goes_straight_into_the_runtime(write):
    """As an application does it, without `load_tflite`."""
    report = write(batch_size=None)
    interpreter = Interpreter(report.path)
    interpreter.resize_tensor_input(0, [5, 16, 16, 3])
    interpreter.allocate_tensors()
    interpreter.set_tensor(0, IMAGES[:5])
    interpreter.invoke()
    answers = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_allclose(answers, export.load_tflite(report.path)(IMAGES[:5]), atol=1e-6)


# The preprocessing inside


@pytest.mark.parametrize("quantization", [None, "dynamic", "int8", "int16x8"])
def test_raw_images_go_in(model, write, quantization):
    report = write(quantization=quantization, include_preprocessing=True)
    expected = model.predict(IMAGES, verbose=0)
    answers = export.load_tflite(report.path)(RAW)
    np.testing.assert_allclose(answers, expected, atol=0.2 if quantization else 1e-5)
    assert report.accuracy == pytest.approx(np.mean(expected.argmax(axis=1) == LABELS), abs=0.02)


def test_bytes_of_a_camera_go_unchanged_into_an_integer_file(write):
    report = write(quantization="int8", include_preprocessing=True)
    source, target = details(report.path)
    assert (source["dtype"], source["quantization"]) == (np.uint8, (1.0, 0))
    assert_integer_throughout(report.path, "uint8", "int8")
    interpreter = Interpreter(report.path)
    interpreter.allocate_tensors()
    for image, expected in zip(RAW[:20], export.load_tflite(report.path)(RAW[:20])):
        interpreter.set_tensor(source["index"], image[np.newaxis])
        interpreter.invoke()
        scale, zero_point = target["quantization"]
        answer = (interpreter.get_tensor(target["index"])[0].astype("float32") - zero_point) * scale
        np.testing.assert_array_equal(answer, expected)


def test_integers_of_16_bits_take_the_whole_range_of_bytes(write):
    report = write(quantization="int16x8", include_preprocessing=True)
    source, _ = details(report.path)
    assert source["dtype"] == np.int16
    assert source["quantization"][0] == pytest.approx(255 / 32767)
    assert_integer_throughout(report.path, "int16", "int16", dtypes=SIXTEEN)


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_bgr_is_swapped_inside(model, tmp_path, quantization):
    """Weights from Caffe: the network sees BGR, the camera gives RGB."""
    bgr = dataclasses.replace(
        PREPROCESSING, channel_order="bgr", scale=1.0, mean=(140.0, 128, 115), std=(51.0, 64, 76)
    )
    path = tmp_path / "m.tflite"
    options = {"include_preprocessing": True, "preprocessing": bgr, "quantization": quantization}
    export.tflite(model, path, representative_data=RAW, **options)
    pixels = (RAW[..., ::-1].astype("float64") - bgr.mean) / bgr.std
    expected = model.predict(pixels, verbose=0)
    swapped = model.predict(pixels[..., ::-1], verbose=0)
    answers = export.load_tflite(path)(RAW)
    assert np.abs(answers - expected).max() < (0.2 if quantization else 1e-5)
    assert np.abs(answers - swapped).max() > 0.5


def test_normalised_images_are_refused_where_raw_ones_are_expected(model, write, tmp_path):
    report = write(include_preprocessing=True)
    with pytest.raises(ValueError, match="normalises by itself") as error:
        export.load_tflite(report.path)(IMAGES)
    assert str(error.value) == (
        "The file normalises by itself. Expected raw images, uint8 values 0..255. Received: float32"
    )
    for argument in ("examples", "representative_data"):
        with pytest.raises(ValueError, match="takes raw images") as error:
            export.tflite(
                model, tmp_path / "m.tflite", include_preprocessing=True, **{argument: IMAGES}
            )
        assert str(error.value) == (
            "A file with the preprocessing inside takes raw images. Expected uint8 values 0..255 "
            f"in `{argument}`. Received: float32"
        )


# What the report explains


def test_the_report_counts_what_the_runtime_runs(write):
    for options in ({}, {"quantization": "int8"}, {"include_preprocessing": True}):
        report = write(**options)
        assert report.operations == count_operations(report.path)
    assert write().operations["CONV_2D"] == 7
    assert write(include_preprocessing=True).operations["CONV_2D"] == 8


def test_a_report_survives_json(write):
    report = write(quantization="int8")
    assert ExportReport(**json.loads(json.dumps(report.to_dict()))) == report


def test_the_last_layers_error_is_that_of_the_probabilities(model, write):
    report = write(quantization="int8")
    expected = model.predict(IMAGES[:32], verbose=0)
    noise = export.load_tflite(report.path)(IMAGES[:32]) - expected
    error = np.sqrt(np.mean(noise**2) / np.mean(expected**2))
    # Delegates round a little differently.
    assert report.layer_errors["predictions"] == pytest.approx(error, rel=0.3, abs=1e-3)


def test_the_worst_layers_come_first(write):
    report = write(quantization="int8")
    worst = report.worst_layers()
    assert "layer_errors" not in repr(report)  # hundreds of them would bury the rest
    assert len(worst) == 10
    assert [error for _, error in worst] == sorted(report.layer_errors.values())[-1:-11:-1]
    assert dict(worst).items() <= report.layer_errors.items()
    assert write().layer_errors == {}


def test_a_damaged_layer_is_found_and_named(model, tmp_path, monkeypatch):
    damaged = make_model()
    damaged.set_weights(model.get_weights())
    kernel = damaged.get_layer("stage2_block1_conv2").kernel
    kernel.assign(keras.random.shuffle(kernel, axis=2, seed=0))
    convert = tflite_module.convert

    def convert_damaged(_, **options):
        return convert(keras_resnet.surgery.fold_batch_norm(damaged), **options)

    monkeypatch.setattr(tflite_module, "convert", convert_damaged)
    request = {"quantization": "int8", "representative_data": IMAGES}
    report = export.tflite(model, tmp_path / "m.tflite", tolerance=Tolerance(), **request)
    before = ("stem_relu", "stage1_block1_relu1", "stage1_block1_out", "stage2_block1_relu1")
    assert max(report.layer_errors[name] for name in before) < 0.1
    assert report.worst_layers(1)[0][0] == "stage2_block1_conv2"
    for how in (request, {"examples": IMAGES}):  # in integers, and in float32
        with pytest.raises(
            ExportMismatch,
            match=r" images\. The layer 'stage2_block1_conv2' is furthest from its float32 "
            "outputs: by ",
        ):
            export.tflite(
                model, tmp_path / "m.tflite", tolerance=Tolerance(clear_disagreements=-1.0), **how
            )


def test_batch_normalisation_that_stays_is_a_convolution_in_integers(tmp_path):
    """A multiplication has one scale for all channels; here they differ by a factor of 1000."""
    variant = dataclasses.replace(SMALL["pre_activation_cifar"], blocks=(1, 1))
    network = look_trained(keras_resnet.build(variant, input_shape=(16, 16, 3)))
    norm = network.get_layer("stage2_block1_bn1")
    norm.gamma.assign(np.geomspace(0.01, 10, norm.gamma.shape[0]))
    images = np.random.default_rng(0).normal(size=(2, 3, 3, norm.gamma.shape[0])).astype("float32")
    gamma, beta, mean, variance = (np.float64(weight) for weight in norm.get_weights())
    expected = (images - mean) / np.sqrt(variance + norm.epsilon) * gamma + beta
    np.testing.assert_allclose(as_convolution(norm)(images), expected, rtol=1e-5, atol=1e-5)

    report = export.tflite(
        network,
        tmp_path / "m.tflite",
        quantization="int8",
        representative_data=IMAGES,
        tolerance=Tolerance(),
    )
    assert_integer_throughout(report.path)
    assert "MUL" not in report.operations
    assert report.layer_errors["stage2_block1_relu1"] < 0.05


def test_an_outlier_among_the_calibration_images_does_not_coarsen_the_steps(
    model, tmp_path, monkeypatch
):
    calibration = IMAGES.copy()
    calibration[0] *= 2.5  # one image in 160 reaches further than all others
    request = {
        "quantization": "int8",
        "representative_data": calibration,
        "examples": IMAGES,
        "tolerance": Tolerance(),
    }
    narrow = export.tflite(model, tmp_path / "narrow.tflite", **request)
    monkeypatch.setattr(ranges, "narrowed_ranges", lambda content, images: [content])
    wide = export.tflite(model, tmp_path / "wide.tflite", **request)
    assert sum(narrow.layer_errors.values()) < 0.9 * sum(wide.layer_errors.values())


def test_a_few_glaring_calibration_images_do_not_coarsen_the_steps_of_the_others(tmp_path):
    images = keras.Input((8, 8, 3))
    gain = keras.layers.GlobalAveragePooling2D(keepdims=True)(images)
    gain = keras.layers.Conv2D(8, 1, activation="relu", name="gain")(gain)
    features = keras.layers.Conv2D(8, 3, name="features")(images)
    features = keras.layers.Multiply(name="loud")([features, gain])
    features = keras.layers.GlobalAveragePooling2D()(features)
    model = keras.Model(images, keras.layers.Dense(4, activation="softmax")(features))
    model.get_layer("gain").set_weights([np.full((1, 1, 3, 8), 20.0), np.full(8, -19.0)])

    calibration = np.random.default_rng(0).normal(size=(200, 8, 8, 3)).astype("float32")
    calibration += 1 / 3 - calibration.mean(axis=(1, 2, 3), keepdims=True)  # a gain of 1
    quiet = calibration.copy()
    calibration[::20] += 2 / 3  # of 41
    errors = {
        name: export.tflite(
            model,
            tmp_path / f"{name}.tflite",
            quantization="int8",
            representative_data=images,
            examples=quiet,
            tolerance=Tolerance(),
        ).layer_errors["loud"]
        for name, images in {"quiet": quiet, "glaring": calibration}.items()
    }
    assert errors["glaring"] < 3 * errors["quiet"]


def test_of_the_ways_to_narrow_ranges_the_one_nearest_to_float32_is_written(
    model, tmp_path, monkeypatch
):
    calibration = IMAGES * np.linspace(0.2, 2, len(IMAGES))[:, None, None, None].astype("float32")
    expected = model.predict(calibration[: ranges.IMAGES], verbose=0)

    def distance(name):
        path = tmp_path / f"{name}.tflite"
        export.tflite(
            model,
            path,
            quantization="int8",
            representative_data=calibration,
            tolerance=Tolerance(),
        )
        answers = export.load_tflite(path)(calibration[: ranges.IMAGES])
        return np.mean((answers - expected) ** 2)

    chosen, single = distance("chosen"), {}
    for exponent in ranges.EXPONENTS:
        monkeypatch.setattr(ranges, "EXPONENTS", (exponent,))
        single[exponent] = distance(f"exponent{exponent:.0f}")
    assert chosen == min(single.values())
    assert len(set(single.values())) > 1
