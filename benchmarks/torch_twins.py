"""Networks of this package written in PyTorch, as a user of PyTorch writes them."""

import torch
from torch import nn
from torch.nn import functional

from keras_resnet import Variant

# field of a row -> what `twin` can write; of the other axes, what most rows have
_WRITTEN = {
    "block": ("basic", "bottleneck"),
    "stem": ("cifar", "imagenet"),
    "shortcut": ("zero_padding", "projection"),
}
_OF_ANY_ROW = ("name", "blocks", "filters", "classes", "preprocessing", "reference")


class Block(nn.Module):
    """Basic or bottleneck block; the shortcut is a projection, or zeros that are appended."""

    def __init__(self, inputs, filters, stride, expansion, projection):
        super().__init__()
        sizes = [(3, stride), (3, 1)] if expansion == 1 else [(1, 1), (3, stride), (1, 1)]
        widths = [inputs, *[filters] * (len(sizes) - 1), filters * expansion]
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, kernel, step, kernel // 2, bias=False)
            for a, b, (kernel, step) in zip(widths, widths[1:], sizes)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[1:])
        self.stride, self.missing = stride, filters * expansion - inputs
        self.shortcut = None
        if projection and (stride > 1 or self.missing):
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, filters * expansion, 1, stride, bias=False),
                nn.BatchNorm2d(filters * expansion),
            )

    def forward(self, x):
        y = x
        for conv, norm in zip(self.convs, self.norms):
            y = norm(conv(y if y is x else functional.relu(y, inplace=True)))
        if self.shortcut is not None:
            x = self.shortcut(x)
        elif self.stride > 1 or self.missing:
            x = functional.pad(
                x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.missing)
            )
        return functional.relu(x + y, inplace=True)


def has_twin(variant: Variant) -> bool:
    """Whether a row of the table is a residual network of 2015, which `twin` can write.

    Args:
        variant: The row.
    """
    taken = {name: getattr(variant, name) for name in (*_OF_ANY_ROW, *_WRITTEN)}
    written = all(taken[name] in choices for name, choices in _WRITTEN.items())
    return written and variant == Variant(**taken)


def twin(variant: Variant, classes: int) -> nn.Module:
    """The PyTorch network of a row of the table.

    Args:
        variant: One of those that `has_twin`.
        classes: Number of classes.
    """
    expansion = 4 if variant.block == "bottleneck" else 1
    width = variant.filters[0]
    if variant.stem == "cifar":
        stem = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    else:
        stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
        stem.append(nn.MaxPool2d(3, 2, 1))
    blocks, inputs = [], width if variant.stem == "cifar" else 64
    for stage, (count, filters) in enumerate(zip(variant.blocks, variant.filters)):
        for block in range(count):
            stride = 2 if stage and not block else 1
            projection = variant.shortcut == "projection"
            blocks.append(Block(inputs, filters, stride, expansion, projection))
            inputs = filters * expansion
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)]
    return nn.Sequential(*stem, *blocks, *head).to(memory_format=torch.channels_last)


def training_steps(model, images, labels, batch_size, *, bfloat16=False, channels_last=True):
    """A function that makes one pass over the images, a step per batch.

    Args:
        model: A network of `twin`.
        images: float32 array of shape `(images, height, width, channels)`.
        labels: Integers, one per image.
        batch_size: Images per step.
        bfloat16: Whether convolutions are computed in bfloat16 (`torch.autocast`).
        channels_last: Whether features lie so in memory; PyTorch's default is channels first.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = model.to(memory_format=layout)
    images = torch.from_numpy(images.transpose(0, 3, 1, 2)).to(memory_format=layout)
    labels = torch.from_numpy(labels)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
    model.train()

    def steps():
        for start in range(0, len(images), batch_size):
            batch = slice(start, start + batch_size)
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                loss = functional.cross_entropy(model(images[batch]), labels[batch])
            loss.backward()
            optimizer.step()

    return steps
