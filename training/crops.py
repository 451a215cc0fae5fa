"""Which views of an image are scored: one, ten crops, or the whole image at several scales.

| mode          | views of each image, their probabilities averaged                             |
| ------------- | ----------------------------------------------------------------------------- |
| `single`      | the one the network is validated on                                           |
| `ten`         | the four corners and the centre, each also mirrored                           |
| `multi_scale` | the whole image at several scales, each also mirrored; the network's global   |
|               | pooling averages over the positions                                           |
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.errors import unknown_name
from keras_resnet.preprocessing import Preprocessing
from training import pipeline
from training.splits import PARALLEL_CALLS, Split
from training.strategy import strategy_of

MODES = ("single", "ten", "multi_scale")
PAPER_SCALES = (224, 256, 384, 480, 640)  # for crops of 224
SMALL_SCALES = (28, 32, 36, 40)  # ours, for images of 32
PADDED_SHARE = 8  # of images without room for crops: 4 pixels for 32, as in training


@dataclasses.dataclass(frozen=True)
class Crops:
    """What a network is shown of each image.

    Args:
        mode: One of `MODES`.
        scales: Lengths in pixels of the resized image's shorter side, for `"multi_scale"` alone.
            Empty: `default_scales`.
        mirror: Whether crops and scales are also shown mirrored. Not for digits, which then mean
            something else.

    Raises:
        ValueError: If the mode is not known, or a scale is no number of pixels.
    """

    mode: str = "single"
    scales: tuple[int, ...] = ()
    mirror: bool = True

    def __post_init__(self):
        if self.mode not in MODES:
            raise unknown_name("crops", self.mode, MODES)
        if self.scales and self.mode != "multi_scale":
            raise ValueError(
                "Only multi_scale crops have scales. Expected no scales. "
                f"Received: {', '.join(map(str, self.scales))} with {self.mode!r}. "
                "Did you mean 'multi_scale'?"
            )
        if not all(str(scale).strip().isdecimal() and int(scale) for scale in self.scales):
            raise ValueError(
                "A scale is the length of the image's shorter side. Expected positive whole "
                f"numbers of pixels. Received: {', '.join(map(str, self.scales))}"
            )
        # Text comes from the command line.
        object.__setattr__(self, "scales", tuple(int(scale) for scale in self.scales))

    def __str__(self):
        words = {"single": "single crop", "ten": "ten crops", "multi_scale": "several scales"}
        if self.mode == "single" or self.mirror:
            return words[self.mode]
        return words[self.mode].replace("ten", "five") + ", not mirrored"

    def passes(self, preprocessing: Preprocessing) -> list[Callable[[tf.Tensor], tf.Tensor]]:
        """Functions from an image to its views; those of one function have the same size.

        Args:
            preprocessing: Size and normalisation of the network's input.

        Returns:
            Functions from values 0..255 of shape `(height, width, channels)` to float32 of shape
            `(views, height, width, channels)`, normalised.
        """
        changes = {"preprocessing": preprocessing, "mirror": self.mirror}
        if self.mode == "ten":
            return [functools.partial(ten_crop, **changes)]
        scales = self.scales or default_scales(preprocessing)
        return [functools.partial(at_scale, scale=scale, **changes) for scale in scales]


SINGLE = Crops()


def default_scales(preprocessing: Preprocessing) -> tuple[int, ...]:
    """The paper's scales, in proportion to the input's size; modest ones for small images.

    The paper's networks are trained on many scales. One that has seen a single scale, as with the
    recipes for CIFAR, is less accurate at others.

    Args:
        preprocessing: Gives `size`, and with `resize_size` whether images have room for crops.

    Reference: He et al. 2015, section 3.4.

    >>> default_scales(Preprocessing())
    (224, 256, 384, 480, 640)
    >>> default_scales(Preprocessing(size=(32, 32), resize_size=None))
    (28, 32, 36, 40)
    """
    scales = SMALL_SCALES if preprocessing.resize_size is None else PAPER_SCALES
    native = 32 if preprocessing.resize_size is None else 224
    return tuple(round(scale * min(preprocessing.size) / native) for scale in scales)


def predict(
    model: keras.Model, split: Split, *, batch_size: int, preprocessing: Preprocessing, crops: Crops
) -> np.ndarray:
    """What a model answers to every image of a split: the mean over the image's views.

    Args:
        model: A classifier that gives probabilities.
        split: One of `Dataset.splits`.
        batch_size: Images, or their views, per step over all replicas; rounded up to what these
            can share evenly. Changes the speed only.
        preprocessing: The `Preprocessing` the model expects.
        crops: Which views of each image are shown.

    Returns:
        Probabilities of shape `(images, classes)`, in the order of the split.

    Raises:
        ValueError: If the split is empty, or a scale is too small for the model.
    """
    replicas = strategy_of(model).num_replicas_in_sync
    batch_size += -batch_size % replicas  # the last batch is filled up anyway
    batches = pipeline.evaluation_batches(  # which refuses an empty split in every mode
        split, batch_size=batch_size, preprocessing=preprocessing
    )
    if crops.mode == "single":
        return model.predict(batches, verbose=0)[: split.num_examples]
    if crops.mode == "multi_scale":
        model = with_size(model, (None, None))
        model.jit_compile = False  # XLA would compile anew for every size of image
        check_scales(model, crops.scales or default_scales(preprocessing), preprocessing)
    passes = []
    for make_views in crops.passes(preprocessing):
        batches, views = view_batches(split, make_views, batch_size=batch_size, replicas=replicas)
        # Without their size, images of all scales share one trace of the model.
        batches = batches.map(
            lambda images: tf.raw_ops.PlaceholderWithDefault(input=images, shape=model.input_shape)
        )
        answers = model.predict(batches, verbose=0)[: split.num_examples * views]
        passes.append(answers.reshape(split.num_examples, views, -1).mean(axis=1))
    return np.mean(passes, axis=0)


def with_size(model: keras.Model, size: tuple[int | None, int | None]) -> keras.Model:
    """The same network with the same weights and preprocessing for images of another size.

    Everything before the global pooling is a convolution, and what is pooled may have any size.

    Args:
        model: A Functional classifier with global pooling before its last layer.
        size: Height and width in pixels, `None` for any.

    Returns:
        A copy whose input shape is `(batch, *size, channels)`.

    Reference: He et al. 2015, section 3.4: "the fully-convolutional form".
    """
    with strategy_of(model).scope():
        inputs = keras.Input((*size, model.input_shape[-1]), name="image")
        network = keras.models.clone_model(model, input_tensors=inputs)
        network.set_weights(model.get_weights())
    network.preprocessing = model.preprocessing
    return network


def check_scales(model: keras.Model, scales: Sequence[int], preprocessing: Preprocessing) -> None:
    """Raises a ValueError if images of a scale would vanish before a model's global pooling.

    Args:
        model: A network for images of any size.
        scales: Lengths of the shorter side in pixels.
        preprocessing: Gives the `size` the model is used at, which is never too small.
    """
    features = keras.Model(model.inputs, model.get_layer("head_pool").input)
    large = 1024  # every stride divides it
    rows = features.compute_output_shape((None, large, large, model.input_shape[-1]))[1]
    smallest = min(large // rows, *preprocessing.size)
    if min(scales) < smallest:
        raise ValueError(
            f"The images are too small for {model.name!r}. Expected scales of at least {smallest} "
            f"pixels. Received: {', '.join(map(str, scales))}"
        )


def ten_crop(image, *, preprocessing: Preprocessing, mirror: bool = True):
    """The four corners and the centre, then the same mirrored.

    They are cut out of the image whose shorter side is resized to `resize_size`, corners of the
    whole image and not of its central square. Images without a `resize_size`, as those of CIFAR,
    have no room for crops: they get a border in the mean colour, 4 pixels for 32, and their centre
    crop is the image itself. The paper scores such images by a single view.

    Args:
        image: Values 0..255 of shape `(height, width, channels)`.
        preprocessing: Size and normalisation of the network's input.
        mirror: Whether the mirrored five follow.

    Returns:
        float32 of shape `(10, *size, channels)`, normalised; `(5, ...)` without mirroring.

    Reference: Krizhevsky et al. 2012, section 4.1; He et al. 2015, section 3.4.
    """
    size = preprocessing.size
    if preprocessing.resize_size is None:
        border = min(size) // PADDED_SHARE
        image = _resized(image, size, preprocessing)
        # Normalised, the mean colour is zero.
        image = tf.pad(image, [(border, border), (border, border), (0, 0)])
    else:
        given = tf.unstack(tf.shape(image)[:2])
        sides = tf.stack(preprocessing.sides_before_crop(*given, tf.maximum))
        image = _resized(image, sides, preprocessing)
    bottom, right = tf.unstack(tf.shape(image)[:2] - size)
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)]
    crops = [tf.image.crop_to_bounding_box(image, *corner, *size) for corner in corners]
    return _and_mirrored(tf.stack(crops), mirror)


def at_scale(image, *, scale: int, preprocessing: Preprocessing, mirror: bool = True):
    """The whole image with its shorter side at `scale` pixels, then the same mirrored.

    Images without a `resize_size` are brought to the proportions of `size`, as for a single view.

    Args:
        image: Values 0..255 of shape `(height, width, channels)`.
        scale: Length of the shorter side in pixels.
        preprocessing: Proportions and normalisation of the network's input.
        mirror: Whether the mirrored image follows.

    Returns:
        float32 of shape `(2, height, width, channels)`, normalised; `(1, ...)` without mirroring.

    Reference: He et al. 2015, section 3.4.
    """
    if preprocessing.resize_size is None:
        shorter = min(preprocessing.size)
        sides = [round(side * scale / shorter) for side in preprocessing.size]
    else:
        sides = _with_shorter(image, scale)
    return _and_mirrored(_resized(image, sides, preprocessing)[None], mirror)


def view_batches(
    split: Split, make_views, *, batch_size: int, replicas: int
) -> tuple[tf.data.Dataset, int]:
    """The views of every image in order, in full batches that replicas can share.

    The last batch is filled up with views of the first images. Where the size varies from image to
    image, a batch is the views of one image, repeated until every replica has as many.

    Args:
        split: The examples.
        make_views: One of `Crops.passes`.
        batch_size: Views per batch over all replicas together, where they all have one size.
        replicas: Number of devices.

    Returns:
        Dataset of float32 of shape `(batch, height, width, channels)`, and the number of views of
        each image.
    """
    views = split.keys.repeat().map(
        lambda key: make_views(split.fetch(key)[0]), num_parallel_calls=PARALLEL_CALLS
    )
    count, *sides, _ = views.element_spec.shape
    if None in sides:
        copies = math.lcm(count, replicas) // count
        views = views.map(lambda views: tf.repeat(views, copies, axis=0))
        count = batch_size = copies * count
    steps = -(-split.num_examples * count // batch_size)
    batches = views.unbatch().batch(batch_size, drop_remainder=True).take(steps)
    batches = batches.apply(tf.data.experimental.assert_cardinality(steps))
    return pipeline.ready(batches), count


def _with_shorter(image, length):
    """Height and width with the shorter of the two at `length`, the longer rounded down."""
    sides = tf.shape(image)[:2]
    return length * sides // tf.reduce_min(sides)


def _resized(image, sides, preprocessing):
    """The whole image at another size, normalised."""
    return preprocessing.normalize(preprocessing.resize_to(image, tf.unstack(sides)))


def _and_mirrored(views, mirror):
    return tf.concat([views, views[:, :, ::-1]], axis=0) if mirror else views
