"""A trained network becomes deeper and stays what it is: the thought experiment of the paper."""

import collections
import dataclasses
import re

import keras

from keras_resnet.errors import unknown_name
from keras_resnet.surgery.graph import Graph, rewrite
from keras_resnet.surgery.identity import Template

_BLOCK_END = re.compile(r"(.+)_block(\d+)_out")
_STAGE_NUMBER = re.compile(r"\d*$")  # also where layers were renamed: "teacher_stage3"


def deepen(model: keras.Model, blocks: int | dict[str, int]) -> keras.Model:
    """Inserts blocks that are the identity into a trained network.

    The new blocks follow the last one of a stage and are of its kind; their names go on counting.
    In a residual net the last gamma of the residual (or its last kernel, where no batch
    normalisation follows) is 0, the rest is drawn anew. In a plain net, whose blocks follow a ReLU,
    the convolutions are deltas, and batch normalisation is set to undo itself.

    At inference the outputs are equal to the bit in float32 and float64: x + 0, x 1, and the
    statistics of an undone batch normalisation are mean 0 and variance 1 - epsilon, so that nothing
    is rounded. In training the new residual blocks are the identity too; the plain ones normalise
    by the statistics of the batch, as every layer of the net does.

    Args:
        model: Functional or built Sequential model, of this package or not, whose blocks end in
            layers called `{stage}_block{number}_out`, e.g. `stage3_block2_out`.
        blocks: How many to insert into each stage, e.g. `{"stage3": 2}`; or one number for all.

    Returns:
        A copy, not compiled. A `ResNet` stays one, with the new `blocks` in its `variant`.

    Raises:
        ValueError: If the model has no graph, no such blocks or those of several networks, as an
            ensemble has; a stage or number is not possible, a stage ends in its down-sampling, or a
            block cannot be the identity, and learn: those that gate or scale their shortcut, change
            the width, or end their residual in a ReLU.

    Reference: He et al. 2015, section 1; Goyal et al. 2017, section 5.1; Chen et al. 2016
    (Net2Net), section 2.2.

    Example:
        resnet38 = keras_resnet.surgery.deepen(keras_resnet.CifarResNet20(), blocks=3)
    """
    graph = Graph(model)
    ends = _last_blocks(model, graph)
    inserted = _checked(blocks, ends)
    _check_down_sampling(graph, inserted)
    calls = {}
    for stage, count in inserted.items():
        if count:
            number, end = ends[stage]
            calls[end.operation] = _followed_by(Template(graph, stage, number, end), count)

    def change(variant):
        counts = enumerate(variant.blocks, 1)
        more = {_STAGE_NUMBER.search(stage)[0]: count for stage, count in inserted.items()}
        blocks = (count + more.get(str(stage), 0) for stage, count in counts)
        return dataclasses.replace(variant, blocks=tuple(blocks))

    return rewrite(model, {}, calls, change)


def _last_blocks(model, graph):
    """From each stage to the number of its last block and the call that ends it."""
    ends = collections.defaultdict(lambda: (0, None))
    for node in graph.nodes:
        if match := _BLOCK_END.fullmatch(node.operation.name):
            ends[match[1]] = max(ends[match[1]], (int(match[2]), node), key=lambda end: end[0])
    if not ends:
        raise ValueError(
            "The model has no blocks. Expected layers called '{stage}_block{number}_out', e.g. "
            f"'stage3_block2_out'. Received: {model.name!r}, which has none."
        )
    names = collections.Counter(node.operation.name for node in graph.nodes)
    twice = [name for name, count in names.items() if count > 1 and _BLOCK_END.fullmatch(name)]
    if twice:
        raise ValueError(
            "The model holds several networks with blocks of the same names. Expected one network. "
            f"Received: {model.name!r}, with {names[twice[0]]} times {twice[0]!r}. Deepen them one "
            "by one, before they are joined."
        )
    return dict(ends)


def _checked(blocks, stages):
    """How many blocks go into which stage."""
    inserted = blocks if isinstance(blocks, dict) else dict.fromkeys(stages, blocks)
    for stage, count in inserted.items():
        if stage not in stages:
            raise unknown_name("stage", stage, stages)
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise ValueError(
                "A number of blocks is not possible. Expected `blocks` to be an integer of at "
                f"least 0, or such integers by stage. Received: blocks={blocks!r}."
            )
    return inserted


def _check_down_sampling(graph, inserted):
    """What follows the last block of a stage must be of the stage's size."""
    for model in graph.models.values():
        variant = getattr(model, "variant", None)
        if variant and variant.stride_in_last_block:
            last = f"stage{len(variant.blocks)}"
            if any(count for stage, count in inserted.items() if stage != last):
                raise ValueError(
                    "The stages end in their down-sampling: new blocks behind it would be of the "
                    f"next stage. Expected blocks for {last} alone, e.g. {{{last!r}: 2}}. "
                    f"Received: {model.name!r} with stride_in_last_block=True, blocks={inserted}."
                )


def _followed_by(template, count):
    """Calls the layer that ends a stage, then as many new blocks."""

    def call(copy, *args, **kwargs):
        x = copy(*args, **kwargs)
        for position in range(1, count + 1):
            x = template.insert(x, position)
        return x

    return call
