"""From raw images to the numbers a network was trained on, and from its answers to names.

One record, `Preprocessing`, says everything: to what size an image is brought, how its values are
scaled and in which order its channels stand. A model carries its record (`model.preprocessing`),
and the exports bake it into the files they write, so that nobody has to remember it.
"""

import dataclasses
import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import keras
import numpy as np

from keras_resnet import resampling
from keras_resnet.errors import unknown_name
from keras_resnet.imagenet_classes import imagenet_classes

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Over all pixels of the 50,000 training images. The often copied std (0.2023, 0.1994, 0.2010) is
# the mean of per-image values.
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)
LONGEST_SIDE = 65_535  # of a JPEG


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How raw images become a network's input: `(crop(resize(image)) * scale - mean) / std`.

    Args:
        size: Height and width in pixels of the input, `(height, width)`.
        resize_size: Length in pixels the shorter side is brought to before the centre crop to
            `size`. `None`: the image is resized to `size` directly if it differs, no crop.
        interpolation: `"bilinear"` or `"bicubic"`.
        antialias: Whether a shrinking resize averages over all pixels it covers, as Pillow and so
            the published networks do.
        scale: Factor on the raw values, which range over 0..255; positive.
        mean: One value per channel, in scaled units.
        std: One value per channel, in scaled units, positive.
        channel_order: `"rgb"`, or `"bgr"` for weights that come from Caffe.

    Raises:
        ValueError: If a size is no positive number of whole pixels, `mean` and `std` differ in
            length or are not finite, a `std` or `scale` is not positive, or a name is not known.

    Reference: the defaults are those of torchvision's ImageNet weights.
    """

    size: tuple[int, int] = (224, 224)
    resize_size: int | None = 256
    interpolation: str = "bilinear"
    antialias: bool = True
    scale: float = 1 / 255
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    channel_order: str = "rgb"

    def __post_init__(self):
        for field in ("size", "mean", "std"):  # lists when they come back from JSON
            object.__setattr__(self, field, tuple(getattr(self, field)))
        sides = self.size if self.resize_size is None else (*self.size, self.resize_size)
        whole = all(isinstance(side, Integral) and 0 < side <= LONGEST_SIDE for side in sides)
        if len(self.size) != 2 or not whole:
            raise ValueError(
                "`size` needs a height and a width, `resize_size` a length or None; of "
                f"1 to {LONGEST_SIDE:,} whole pixels each. "
                f"Received: size={self.size}, resize_size={self.resize_size}"
            )
        factors = (*self.std, self.scale)
        possible = min(factors) > 0 and all(map(math.isfinite, self.mean + factors))
        if not possible or not len(self.mean) == len(self.std) > 0:
            raise ValueError(
                "`mean` and `std` need one finite value per channel, and every std and `scale` "
                "must be positive. "
                f"Received: mean={self.mean}, std={self.std}, scale={self.scale}"
            )
        if self.channel_order not in ("rgb", "bgr"):
            raise unknown_name("channel_order", self.channel_order, ("rgb", "bgr"))
        if self.interpolation not in ("bilinear", "bicubic"):
            raise unknown_name("interpolation", self.interpolation, ("bilinear", "bicubic"))

    def normalize(self, images):
        """Scales and centres images that already have the right size.

        Args:
            images: Tensor or array of shape `(..., height, width, channels)`, values 0..255, of
                any backend: only arithmetic is used.

        Returns:
            float32 of the same shape; channels in the order of `channel_order`.
        """
        images = _in_order(_as_float32(images), self.channel_indices)
        mean = np.asarray(self.mean, "float32")
        std = np.asarray(self.std, "float32")
        return (images * np.float32(self.scale) - mean) / std

    @property
    def channel_indices(self) -> tuple[int, ...]:
        """Which channel of an image stands at each place of the input.

        `"bgr"` turns the colours of an image around, of each image where several lie behind one
        another; what is no whole image stays where it is.

        >>> Preprocessing(channel_order="bgr").adapted(channels=4).channel_indices
        (2, 1, 0, 3)
        """
        channels = range(len(self.mean))
        if self.channel_order == "rgb":
            return tuple(channels)
        in_images = len(self.mean) // 3 * 3
        return tuple(i // 3 * 3 + 2 - i % 3 if i < in_images else i for i in channels)

    def resize(self, images, *, keep_fitting: bool = True):
        """Brings images to `size`: shorter side to `resize_size`, then the centre.

        The very pixels of torchvision's and timm's evaluation on Pillow images, but for two cases:
        images that have the right size already are taken for prepared ones, as pipelines and
        exports hand them over, and stay as they are; and those that would be smaller than the crop
        are enlarged, in their proportions, instead of framed in black. Without `antialias` Keras
        resizes.

        Args:
            images: Tensor or array of shape `([batch,] height, width, channels)`, values 0..255.
                TensorFlow's may have unknown sizes, as files have that are decoded in tf.data.
            keep_fitting: Whether images of `size` stay as they are. `False`: they are resized and
                cropped like others, as torchvision and timm do.

        Returns:
            float32 of shape `([batch,] *size, channels)`; unchanged values if the size fits.
        """
        given = tuple(images.shape[-3:-1])
        if None in given:
            return resampling.resize_and_crop(images, self, keep_fitting=keep_fitting)
        if given == self.size and (keep_fitting or self.resize_size is None):
            return _as_float32(images)
        if self.resize_size is None:
            return self.resize_to(images, self.size)
        sides = self.sides_before_crop(*given)
        # Half a pixel of the margin goes to the even side.
        top, left = (round((side - crop) / 2) for side, crop in zip(sides, self.size))
        images = self.resize_to(images, sides)
        return images[..., top : top + self.size[0], left : left + self.size[1], :]

    def sides_before_crop(self, height, width, maximum=max):
        """Height and width in pixels to which an image is resized, in its proportions.

        Its shorter side becomes `resize_size`, or more where `size` would not fit in; the other
        side is rounded down.

        Args:
            height: Of the image; an integer, or a scalar tensor.
            width: Likewise.
            maximum: Of two of them.
        """
        tall, wide = (max(self.resize_size, side) for side in self.size)
        return [maximum(tall * side // height, wide * side // width) for side in (height, width)]

    def __call__(self, images):
        """`normalize(resize(images))`."""
        return self.normalize(self.resize(images))

    def resize_to(self, images, size):
        """Brings whole images to another size than `size`, by `interpolation` and `antialias`.

        Args:
            images: Tensor or array of shape `([batch,] height, width, channels)`, values 0..255.
            size: Height and width in pixels: two integers, or scalar tensors of TensorFlow.

        Returns:
            float32 of shape `([batch,] *size, channels)`.
        """
        if self.antialias:
            return resampling.resize(images, size, self.interpolation)
        images = _as_float32(images)
        # Bicubic overshoots beyond the values an image can have.
        if resampling.is_of_tensorflow(images):
            import tensorflow as tf

            resized = tf.image.resize(images, size, self.interpolation)
            return tf.clip_by_value(resized, 0.0, 255.0)
        resized = keras.ops.image.resize(
            images, size, self.interpolation, data_format="channels_last"
        )
        return keras.ops.clip(resized, 0.0, 255.0)

    def adapted(
        self, *, size: tuple[int, int] | None = None, channels: int | None = None
    ) -> "Preprocessing":
        """The record for another size or number of channels.

        Args:
            size: Height and width in pixels; the part of the image that is seen stays the same.
            channels: Number of channels. Three and more repeat the statistics of the colours,
                fewer have the mean of them.

        >>> CIFAR10.adapted(channels=1).mean
        (0.473367,)
        """
        changes = {}
        if size is not None and tuple(size) != self.size:
            ratio = min(size) / min(self.size)
            changes["size"] = tuple(size)
            resize_size = self.resize_size and max(1, round(self.resize_size * ratio))
            changes["resize_size"] = resize_size
        known = len(self.mean)
        if channels is not None and channels != known:
            for field in ("mean", "std"):
                values = getattr(self, field)
                changes[field] = (
                    tuple(values[channel % known] for channel in range(channels))
                    if channels > known
                    else (round(sum(values) / known, 6),) * channels
                )
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The record as plain JSON types; `Preprocessing(**record.to_dict())` is the way back."""
        return dataclasses.asdict(self)


IMAGENET = Preprocessing()
CIFAR10 = Preprocessing(size=(32, 32), resize_size=None, mean=CIFAR10_MEAN, std=CIFAR10_STD)


def preprocess_input(images, model, *, keep_fitting: bool = False):
    """Turns raw images into the input `model` expects, as the evaluation of its weights does.

    Args:
        images: Array or tensor of shape `([batch,] height, width, channels)`, values 0..255; one
            channel, or an image without that axis, is greyscale and stands for all. Or a Pillow
            image of any mode. Or a list of such images, also of different sizes.
        model: A model of this package, or a `Preprocessing`.
        keep_fitting: Whether images of the input's very size stay as they are, because they were
            resized and cropped before. Otherwise they are like others: of 224x224 pixels, timm
            shows the network the middle 213. `Preprocessing.resize`, pipelines and exports keep
            them.

    Returns:
        float32 of shape `([batch,] *size, channels)`.

    Raises:
        ValueError: If the model carries no preprocessing, or the channels do not fit it.
        TypeError: If the images are something else.
    """
    preprocessing = model if isinstance(model, Preprocessing) else model_preprocessing(model)
    if isinstance(images, (list, tuple)):
        each = [
            preprocess_input(image, preprocessing, keep_fitting=keep_fitting) for image in images
        ]
        if not each:
            return np.zeros((0, *preprocessing.size, len(preprocessing.mean)), "float32")
        return keras.ops.stack(each) if keras.ops.is_tensor(each[0]) else np.stack(each)
    channels = len(preprocessing.mean)
    if hasattr(images, "convert"):  # of Pillow, which this package does not need
        images = np.asarray(images.convert({1: "L", 3: "RGB", 4: "RGBA"}.get(channels)))
    shape = getattr(images, "shape", None)
    if shape is None:
        raise TypeError(
            "These are no images. Expected an array or tensor, a Pillow image, or a list of them. "
            f"Received: {type(images).__name__}"
        )
    if len(shape) == 2:
        images = images[..., None]
    elif shape[-1] not in (1, channels) or len(shape) not in (3, 4):
        raise ValueError(
            "The images have another number of channels than the preprocessing. "
            f"Expected {channels} in the last axis, or 1 of greyscale images. "
            f"Received: shape {tuple(shape)}"
        )
    return preprocessing.normalize(preprocessing.resize(images, keep_fitting=keep_fitting))


def model_preprocessing(model) -> Preprocessing:
    """The record a model carries, or an error that says how to give it one."""
    preprocessing = getattr(model, "preprocessing", None)
    if not isinstance(preprocessing, Preprocessing):
        raise ValueError(
            f"The model {model.name!r} does not say how its images are preprocessed. "
            "Expected a `keras_resnet.Preprocessing` in `model.preprocessing`. "
            f"Received: {preprocessing!r}. Set the attribute, or pass `preprocessing=`."
        )
    return preprocessing


def decode_predictions(
    predictions, class_names: Sequence[str] | None = None, top: int = 5
) -> list[list[tuple[str, float]]]:
    """Names the most probable classes.

    Args:
        predictions: Array of shape `(batch, classes)`.
        class_names: One name per class. Default: those of ImageNet, for 1,000 classes.
        top: How many to name, at most the number of classes.

    Returns:
        For each image a list of `(name, probability)`, most probable first.

    Raises:
        ValueError: If the number of names differs from the number of classes.
    """
    predictions = np.asarray(predictions)
    if class_names is None:
        class_names = [name for _, name in imagenet_classes()]
    if predictions.ndim != 2 or predictions.shape[1] != len(class_names):
        raise ValueError(
            f"The predictions do not fit the names. Expected shape (batch, {len(class_names)}). "
            f"Received: shape {predictions.shape}. Pass the names of the network's own classes as "
            "`class_names`."
        )
    order = np.argsort(-predictions, axis=1, kind="stable")[:, :top]
    return [
        [(class_names[i], float(row[i])) for i in indices]
        for row, indices in zip(predictions, order)
    ]


def _in_order(images, indices):
    """The channels in another order; a single one is in any."""
    if images.shape[-1] == 1 or indices == tuple(range(len(indices))):
        return images
    if len(indices) == 3 and keras.backend.backend() != "torch":  # which knows no negative step
        return images[..., ::-1]
    if resampling.is_of_tensorflow(images):
        import tensorflow as tf

        return tf.gather(images, indices, axis=-1)
    return images[..., np.asarray(indices)]


def _as_float32(images):
    if isinstance(images, np.ndarray):
        return images.astype("float32", copy=False)
    if resampling.is_of_tensorflow(images):
        import tensorflow as tf

        return tf.cast(images, "float32")
    return keras.ops.cast(images, "float32")
