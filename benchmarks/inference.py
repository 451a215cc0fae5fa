"""How fast a network answers, as each of its exports and as its peers, on this machine.

    python -m training benchmark inference [NETWORK] [--rounds 9] [--steps 4]

Our exports, onnxruntime and OpenVINO on those made for them, PyTorch (channels last), and where
keras.applications has the network, its model as a SavedModel and as TFLite files, made as the
guides teach. Random weights; all use every core. All alternate in one process, with a product of
two large float32 matrices, of whose arithmetic rate each network's is a share. Peers that are not
installed are left out. SavedModels of ours take uint8 images and normalise them; the others get
what goes into the network.
"""

import importlib.util
import os
import pathlib
import tempfile

import keras
import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from rich.console import Console
from rich.table import Table

import keras_resnet
from benchmarks.alternation import PEAK, PEAK_OPERATIONS, matrix_product, spread
from benchmarks.input import alternate
from keras_resnet import export
from keras_resnet.export.staging import quiet_console

BATCH_SIZES = (1, 16)
# These have their strides in the first 1x1 convolution, as the paper, and biases besides.
STOCK = {"resnet50": "ResNet50", "resnet101": "ResNet101", "resnet152": "ResNet152"}
_CALIBRATION_IMAGES = 100

# Which rows are set against each other: the same network in the same precision.
PAIRS = (
    ("SavedModel", "Keras tf.function"),
    ("SavedModel bfloat16", "SavedModel"),
    ("SavedModel", "PyTorch"),
    ("SavedModel", "onnxruntime"),
    ("SavedModel", "OpenVINO"),
    ("SavedModel bfloat16", "OpenVINO bfloat16"),
    ("SavedModel, strides in 1x1", "stock SavedModel"),
    ("TFLite, strides in 1x1", "stock TFLite"),
    ("TFLite int8, strides in 1x1", "stock TFLite int8"),
)


def compare(network: str, *, steps: int, rounds: int) -> None:
    """Prints milliseconds, images per second and ratios, for batches of 1 and 16.

    Args:
        network: Name of the network.
        steps: Calls of each turn.
        rounds: Turns of each candidate.
    """
    model = keras_resnet.build(network)
    size = model.preprocessing.size
    raw = np.random.default_rng(0).integers(0, 256, (_CALIBRATION_IMAGES, *size, 3), "uint8")
    with tempfile.TemporaryDirectory() as folder:
        files = _our_files(model, raw, pathlib.Path(folder))
        if network in STOCK:
            files |= _stock_files(network, raw, pathlib.Path(folder))
        else:
            print(f"keras.applications has no {network}: left out.")
        for batch_size in BATCH_SIZES:
            calls = _calls(model, files, raw[:batch_size])
            turns = {name: _repeated(call, steps) for name, call in calls.items()}
            rates, _ = alternate(turns, images=steps * batch_size, rounds=rounds)
            _print(
                f"{network}, batch {batch_size}", rates, batch_size, keras_resnet.count_macs(model)
            )


def _our_files(model, raw, folder):
    inputs = np.asarray(model.preprocessing(raw))
    files = {"SavedModel": folder / "ours", "SavedModel bfloat16": folder / "ours_bfloat16"}
    export.saved_model(model, files["SavedModel"], examples=raw[:2])
    export.saved_model(model, files["SavedModel bfloat16"], examples=raw[:2], precision="bfloat16")
    if all(map(importlib.util.find_spec, ("onnx", "tf2onnx", "onnxruntime"))):
        files["onnxruntime"] = folder / "ours.onnx"
        export.onnx(model, files["onnxruntime"], examples=inputs[:2])
    else:
        print("onnx, tf2onnx or onnxruntime is not installed: left out.")
    if importlib.util.find_spec("openvino"):
        files["OpenVINO"] = files["OpenVINO bfloat16"] = folder / "ours_openvino"
        export.openvino(model, files["OpenVINO"], examples=inputs[:2])
    else:
        print("openvino is not installed: left out.")
    if model.variant.name not in STOCK:
        files["TFLite"], files["TFLite int8"] = folder / "ours.tflite", folder / "ours_int8.tflite"
        _write_tflite(model, inputs, files["TFLite"], files["TFLite int8"])
        return files
    twin = keras_resnet.build(model.variant.name, stride_in_1x1=True)
    files["SavedModel, strides in 1x1"] = folder / "strides"
    export.saved_model(twin, files["SavedModel, strides in 1x1"], examples=raw[:2])
    paths = folder / "strides.tflite", folder / "strides_int8.tflite"
    _write_tflite(twin, inputs, *paths)
    names = "TFLite, strides in 1x1", "TFLite int8, strides in 1x1"
    return files | dict(zip(names, paths))


def _write_tflite(model, inputs, path, int8_path):
    export.tflite(model, path, examples=inputs[:2], batch_size=None)
    export.tflite(
        model,
        int8_path,
        quantization="int8",
        representative_data=inputs,
        examples=inputs[:2],
        batch_size=None,
    )


def _stock_files(network, raw, folder):
    """What a user of keras.applications and the TFLite converter writes."""
    stock = getattr(keras.applications, STOCK[network])(weights=None)
    inputs = np.asarray(keras_resnet.IMAGENET(raw))
    with quiet_console():
        stock.export(folder / "stock", verbose=False)
        for name in ("stock.tflite", "stock_int8.tflite"):
            converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / "stock"))
            if "int8" in name:
                converter.optimizations = [tf.lite.Optimize.DEFAULT]
                converter.representative_dataset = lambda: ([image[None]] for image in inputs)
                converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
                converter.inference_input_type = converter.inference_output_type = tf.int8
            (folder / name).write_bytes(converter.convert())
    return {
        "stock SavedModel": folder / "stock",
        "stock TFLite": folder / "stock.tflite",
        "stock TFLite int8": folder / "stock_int8.tflite",
    }


def _calls(model, files, raw):
    """Functions by name, each of which answers to one batch."""
    inputs = np.asarray(model.preprocessing(raw))
    graph = tf.function(lambda images: model(images, training=False))
    images = tf.constant(inputs)
    calls = {
        PEAK: matrix_product(),
        "Keras tf.function": lambda: graph(images).numpy(),
    }
    for name, path in files.items():
        if path.suffix == ".tflite":
            calls[name] = _tflite(path, inputs)
        elif path.suffix == ".onnx":
            calls[name] = _onnx(path, inputs)
        elif name.startswith("OpenVINO"):
            calls[name] = _openvino(path, inputs, "bf16" if name.endswith("bfloat16") else "f32")
        else:
            calls[name] = _saved_model(path, inputs if name.startswith("stock") else raw)
    if importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed: left out.")
    else:
        calls |= _pytorch(model, inputs)
    return calls


def _saved_model(path, images):
    served = tf.saved_model.load(str(path)).signatures["serving_default"]
    (name,) = served.structured_input_signature[1]
    images = tf.constant(images)
    return lambda: [answer.numpy() for answer in served(**{name: images}).values()]


def _tflite(path, inputs):
    interpreter = Interpreter(str(path), num_threads=os.cpu_count())
    interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], inputs.shape)
    interpreter.allocate_tensors()
    (source,) = interpreter.get_input_details()
    if source["dtype"] == np.int8:
        scale, zero_point = source["quantization"]
        inputs = np.clip(np.round(inputs / scale) + zero_point, -128, 127).astype("int8")
    interpreter.set_tensor(source["index"], inputs)
    return interpreter.invoke


def _onnx(path, inputs):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"images": inputs})


def _openvino(path, inputs, precision):
    import openvino

    compiled = openvino.compile_model(
        path / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": precision}
    )
    return lambda: compiled({"images": inputs})


def _pytorch(model, inputs):
    import torch

    from benchmarks import torch_twins

    if not torch_twins.has_twin(model.variant):
        print(f"{model.variant.name} is not written in PyTorch: left out.")
        return {}
    twin = torch_twins.twin(model.variant, model.output_shape[-1]).eval()
    count = sum(weight.numel() for weight in twin.parameters())
    assert count == sum(np.prod(weight.shape) for weight in model.trainable_weights)
    images = torch.from_numpy(inputs.transpose(0, 3, 1, 2))
    images = images.to(memory_format=torch.channels_last)

    def answer():
        with torch.inference_mode():
            return twin(images).numpy()

    return {"PyTorch": answer}


def _repeated(call, steps):
    def turn():
        for _ in range(steps):
            call()

    return turn


def _print(title, rates, batch_size, macs):
    peaks = [PEAK_OPERATIONS * rate / batch_size for rate in rates.pop(PEAK)]
    table = Table("", "ms", "images/s", "share of the peak", title=title)
    for name, each in rates.items():
        shares = [2 * macs * rate / peak for rate, peak in zip(each, peaks)]
        milliseconds = [1000 * batch_size / rate for rate in each]
        table.add_row(name, spread(milliseconds, 1), spread(each, 1), spread(shares, 2))
    console = Console(width=110)
    console.print(table)
    print(f"peak, measured: {spread([peak / 1e9 for peak in peaks], 0)} GFLOP/s in float32")
    for ours, theirs in PAIRS:
        if ours in rates and theirs in rates:
            ratios = [mine / other for mine, other in zip(rates[ours], rates[theirs])]
            print(f"{ours} is {spread(ratios, 2)} times as fast as {theirs}")
