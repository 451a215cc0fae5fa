"""What the tensors of a file are for a model: its values, and what does not fit."""

import dataclasses
import os
import re

import keras
import numpy as np

from keras_resnet.weights.naming import SCHEMES, Scheme


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """Which weights of a file went into a model, and which did not.

    Args:
        scheme: Whose names the file has, e.g. `"torchvision"`.
        loaded: Paths of the model's weights that have new values.
        unused: What only the file has, by the names there.
        missing: What only the model has, by the paths of its weights.
        mismatched: What has another shape here than there.
    """

    scheme: str
    loaded: tuple[str, ...]
    unused: tuple[str, ...]
    missing: tuple[str, ...]
    mismatched: tuple[str, ...]

    @property
    def difference(self) -> str:
        """What did not fit, on both sides."""
        return "; ".join(
            (
                _some("only the file has", self.unused),
                _some("only the network has", self.missing),
                _some("of another shape", self.mismatched),
            )
        )

    def __str__(self):
        return f"{len(self.loaded)} weights by the names of {self.scheme}; {self.difference}"


def weights_by_path(model: keras.Model) -> dict:
    """The variables of a model by path, without the states of random generators.

    Raises:
        ValueError: If there are none; if two have the same path, as in an ensemble: one of them
            would be lost; or if some are integers, after `quantize`.
    """
    modes = {layer.name: layer.quantization_mode for layer in model._flatten_layers()}
    quantized = {name: mode for name, mode in modes.items() if mode is not None}
    if quantized:
        raise ValueError(
            "Quantised weights are no longer those of the network. Expected a model in floating "
            f"point. Received: {model.name!r}, quantised in {quantized}. Do it before "
            "`model.quantize`, or save the whole by model.save(path)."
        )
    weights = [weight for weight in model.weights if keras.backend.is_float_dtype(weight.dtype)]
    if not weights:
        raise ValueError(
            "There are no weights. Expected a model that is built, `model.build(shape)`, and has "
            f"layers with weights. Received: {model.name!r}."
        )
    by_path = {weight.path: weight for weight in weights}
    if len(by_path) < len(weights):
        paths = [weight.path for weight in weights]
        twice = [path for path in by_path if paths.count(path) > 1]
        raise ValueError(
            "The weights of the model cannot be told apart. Expected a path of its own for each. "
            f"Received: {model.name!r}, {_some('twice', twice)}. Save its members one by one, or "
            "the whole by model.save(path)."
        )
    return by_path


def match(
    tensors: dict[str, np.ndarray], model: keras.Model, *, head: bool, strict: bool, source
) -> tuple[dict[str, np.ndarray], LoadReport]:
    """The values that a file has for a model's weights.

    The scheme is the one that finds most of the names.

    Args:
        tensors: All tensors of the file, by name.
        model: A built model.
        head: Whether classifiers take part.
        strict: Whether everything must fit.
        source: Path of the file, for errors.

    Returns:
        Values by the path of their weight, and a `LoadReport`.

    Raises:
        ValueError: If something does not fit and `strict` is set (its attribute `report` is the
            whole `LoadReport`), if the file is for another graph, or if values are no numbers.
    """
    weights = weights_by_path(model)
    paths = {*weights, "predictions/bias"}  # which may be all that tells schemes apart
    scheme = max(SCHEMES, key=lambda scheme: sum(scheme.key(path) in tensors for path in paths))
    if not head:
        weights = _without(weights, "predictions")
        tensors = _without(tensors, scheme.layer("predictions"))
    values, report = _convert(scheme, tensors, weights, model)
    if strict and (report.unused or report.missing or report.mismatched):
        remedy = _HEADLESS if _is_of_heads(report, scheme) else ""
        error = ValueError(
            f"The weights of {os.fspath(source)!r} are not those of this network. Expected the "
            f"same names and shapes. Received: {report.difference}.{remedy}"
        )
        error.report = report
        raise error
    check_graph(scheme, model, f"The weights of {os.fspath(source)!r} belong to another graph.")
    values = {path: _cast(value, weights[path]) for path, value in values.items()}
    _check_numbers(values, source)
    return values, report


_HEADLESS = (
    " Leave the classifier out: of constructors by include_top=False, or with `classes` for a new "
    "one; else by head=False."
)


def _is_of_heads(report, scheme):
    """Whether nothing but classifiers does not fit."""
    theirs = scheme.layer("predictions")
    ours = (*report.missing, *report.mismatched)
    return all(path.startswith("predictions/") for path in ours) and all(
        name.startswith((f"{theirs}.", f"{theirs}/")) for name in report.unused
    )


def _without(entries, layer):
    return {
        name: entry
        for name, entry in entries.items()
        if not name.startswith((f"{layer}.", f"{layer}/"))
    }


def _convert(scheme: Scheme, tensors, weights, model):
    keys = {path: scheme.key(path) for path in weights if scheme.key(path) in tensors}
    found = {path: scheme.read(path, tensors[key]) for path, key in keys.items()}
    shapes = {path: tuple(weight.shape) for path, weight in weights.items()}
    values = {path: value for path, value in found.items() if value.shape == shapes[path]}
    used = {*keys.values(), *_absorb_biases(scheme, tensors, values, weights)}
    _absorb_epsilons(scheme, values, model)
    for path in weights:
        if path not in found and re.fullmatch(scheme.unbiased, path):
            values[path] = np.zeros(shapes[path], "float32")
    return values, LoadReport(
        scheme=scheme.name,
        loaded=tuple(values),
        unused=tuple(name for name in tensors if name not in used),
        missing=tuple(
            path if scheme.key(path) in (path, None) else f"{path} ({scheme.key(path)})"
            for path in weights
            if path not in values and path not in found
        ),
        mismatched=tuple(
            f"{path} {value.shape} for {shapes[path]}"
            for path, value in found.items()
            if path not in values
        ),
    )


def _absorb_biases(scheme, tensors, values, weights):
    """Takes biases that convolutions here have not into the mean that follows; returns their keys.

    BN(x + b) with mean m is BN(x) with mean m - b.
    """
    absorbed = set()
    for path in [path for path in values if path.endswith("/moving_mean")]:
        bias = path.replace("bn", "conv").replace("moving_mean", "bias")
        key = scheme.key(bias)
        fits = key in tensors and tensors[key].shape == values[path].shape
        if scheme.absorbs_biases and fits and bias not in weights:
            values[path] = values[path] - tensors[key]
            absorbed.add(key)
    return absorbed


def _absorb_epsilons(scheme, values, model):
    """Brings variance + epsilon to what it is in the source."""
    for layer in model.layers:
        path = f"{layer.name}/moving_variance"
        if path in values and scheme.epsilon is not None:
            values[path] = values[path] + np.float32(scheme.epsilon - layer.epsilon)


def check_graph(scheme: Scheme, model: keras.Model, problem: str) -> None:
    """What no weight shows: where the strides are, how the stem pools.

    Args:
        scheme: Whose graph is meant.
        model: Any model; one without a `variant` says nothing of its graph.
        problem: What is wrong if the model has another, a sentence.

    Raises:
        ValueError: If it has.
    """
    variant = getattr(model, "variant", None)
    options = scheme.wrong_options(variant) if variant is not None else {}
    if options:
        received = ", ".join(f"{field}={getattr(variant, field)!r}" for field in options)
        expected = ", ".join(f"{field}={value!r}" for field, value in options.items())
        raise ValueError(
            f"{problem} Expected the one of {scheme.name}. Received: {received}. Build the network "
            f"with {expected}."
        )


def _cast(value, weight):
    """A value in the precision of the model, where a finite number may become infinite."""
    with np.errstate(over="ignore"):
        return value.astype(keras.backend.standardize_dtype(weight.dtype))


def _check_numbers(values, source):
    wrong = [
        path
        for path, value in values.items()
        if not np.isfinite(value).all() or (path.endswith("/moving_variance") and value.min() < 0)
    ]
    if wrong:
        raise ValueError(
            f"The weights of {os.fspath(source)!r} are damaged. Expected finite numbers in the "
            f"precision of the model, and variances from 0. Received: {_some('others in', wrong)}."
        )


def _some(what, names, most=5):
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{what}: {', '.join(names[:most]) or 'nothing'}{more}"
