"""Files with other libraries' names: every tensor finds its place, and the source's numbers."""

import dataclasses
import re

import h5py
import keras
import numpy as np
import pytest
import reference
import safetensors.numpy
from families import SMALL, small
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from keras.src.applications import resnet as keras_applications
from keras.src.legacy.saving import legacy_h5_format

import keras_resnet
from keras_resnet.weights.files import load_weights, read_metadata, save_torch, save_weights
from keras_resnet.weights.naming import SCHEMES
from keras_resnet.weights.verify import verify

SHAPE = (32, 32, 3)
NETWORKS = {
    "torchvision": small("resnet50"),
    "torchvision_basic": small("resnet18"),
    "timm_d": SMALL["resnet_d"],
    "timm_se": SMALL["se"],
    "timm_v2": SMALL["pre_activation"],
    "densenet": SMALL["dense_bottleneck"],
    "cifar": small("cifar_resnet20"),
}
# As the libraries' own state dicts have them: all of a first and an ordinary block.
TORCH_NAMES = {
    "torchvision": """conv1 bn1 layer1.0.conv1 layer1.0.bn1 layer1.0.conv2 layer1.0.bn2
        layer1.0.conv3 layer1.0.bn3 layer1.0.downsample.0 layer1.0.downsample.1 layer2.1.conv1
        layer2.1.bn1 layer2.1.conv2 layer2.1.bn2 layer2.1.conv3 layer2.1.bn3 fc""",
    "torchvision_basic": """conv1 bn1 layer1.1.conv1 layer1.1.bn1 layer1.1.conv2 layer1.1.bn2
        layer2.0.downsample.0 layer2.0.downsample.1 fc""",
    "timm_d": """conv1.0 conv1.1 conv1.3 conv1.4 conv1.6 bn1 layer1.0.conv1 layer1.0.bn3
        layer2.0.downsample.1 layer2.0.downsample.2 fc""",
    "timm_se": "conv1 layer1.0.conv3 layer1.0.bn3 layer1.0.se.fc1 layer1.0.se.fc2 fc",
    "timm_v2": """stem.conv stages.0.blocks.0.norm1 stages.0.blocks.0.conv1
        stages.0.blocks.0.norm2 stages.0.blocks.0.conv2 stages.0.blocks.0.norm3
        stages.0.blocks.0.conv3 stages.0.blocks.0.downsample.conv stages.1.blocks.1.conv3 norm
        head.fc""",
    "densenet": """features.conv0 features.norm0 features.denseblock1.denselayer1.norm1
        features.denseblock1.denselayer1.conv1 features.denseblock1.denselayer1.norm2
        features.denseblock1.denselayer1.conv2 features.transition1.norm features.transition1.conv
        features.denseblock2.denselayer2.conv2 features.norm5 classifier""",
    "cifar": "conv1 bn1 layer1.0.conv1 layer1.0.bn2 layer2.1.conv2 linear",
}


def build(variant, **options):
    return keras_resnet.build(variant, input_shape=SHAPE, **options)


def randomized(model, seed=0):
    reference.randomize(model, seed)
    return model


def outputs(model):
    images = np.random.default_rng(3).normal(size=(2, *SHAPE)).astype("float32")
    return np.asarray(model(images, training=False))


def equal(first, second):
    pairs = zip(first.get_weights(), second.get_weights(), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def torch_tensors(path):
    return safetensors.numpy.load_file(path)


@pytest.mark.parametrize("family", NETWORKS)
def test_pytorch_names_go_out_and_come_in(family, tmp_path):
    path = tmp_path / "torch.safetensors"
    model = randomized(build(NETWORKS[family]))
    save_torch(model, path)
    tensors = torch_tensors(path)
    for layer in TORCH_NAMES[family].split():
        assert f"{layer}.weight" in tensors
        is_norm = f"{layer}.running_var" in tensors
        assert is_norm == ("bn" in layer or "norm" in layer or tensors[f"{layer}.weight"].ndim == 1)
    again = randomized(build(NETWORKS[family]), seed=1)
    report = load_weights(again, path)
    assert equal(again, model)
    assert len(report.loaded) == len(tensors)
    assert not report.unused + report.missing + report.mismatched


def test_the_axes_of_kernels_are_those_of_pytorch(tmp_path):
    model = randomized(build(NETWORKS["torchvision"]))
    save_torch(model, tmp_path / "torch.safetensors")
    tensors = torch_tensors(tmp_path / "torch.safetensors")
    kernel = model.get_layer("stage2_block1_conv2").kernel.numpy()
    for output, into, row, column in ((0, 1, 2, 0), (23, 5, 1, 2)):
        received = tensors["layer2.0.conv2.weight"][output, into, row, column]
        assert received == kernel[row, column, into, output]
    assert tensors["fc.weight"].shape == (3, 96)
    np.testing.assert_array_equal(
        tensors["bn1.running_var"], model.get_layer("stem_bn").moving_variance.numpy()
    )


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.module.{name}",
        lambda name: f"model.{name}",
        lambda name: name.replace("linear", "fc"),
    ],
    ids=["parallel", "compiled", "lightning", "fc"],
)
def test_names_that_training_scripts_change_are_understood(rename, tmp_path):
    model = randomized(build(NETWORKS["cifar"]))
    save_torch(model, tmp_path / "torch.safetensors")
    tensors = {rename(n): t for n, t in torch_tensors(tmp_path / "torch.safetensors").items()}
    tensors[rename("bn1.num_batches_tracked")] = np.array(7)
    metadata = read_metadata(tmp_path / "torch.safetensors")
    safetensors.numpy.save_file(tensors, tmp_path / "renamed.safetensors", metadata)
    again = randomized(build(NETWORKS["cifar"]), seed=1)
    load_weights(again, tmp_path / "renamed.safetensors")
    assert equal(again, model)


PADDED = {
    "basic": small("cifar_resnet20", (16, 32, 64)),
    "bottleneck": small("cifar_resnet20", (16, 24), block="bottleneck"),
    "wide": small("cifar_resnet20", (24, 51)),
}


def without_metadata(path):
    safetensors.numpy.save_file(torch_tensors(path), path)


@pytest.mark.parametrize("padding", ["behind", "both"])
@pytest.mark.parametrize("row", PADDED)
def test_shortcuts_may_be_padded_on_both_sides(row, padding, tmp_path):
    """The names do not tell; the logits are those of NumPy's network that pads so."""
    path = tmp_path / "torch.safetensors"
    variant = dataclasses.replace(PADDED[row], blocks=(2,) * len(PADDED[row].filters))
    theirs = randomized(build(variant, classifier_activation=None))
    save_torch(theirs, path)
    without_metadata(path)
    ours = randomized(build(variant, classifier_activation=None), seed=1)
    before = ours.get_weights()
    with pytest.raises(ValueError, match=r"load_weights\(model, path, shortcut_padding='both'\)"):
        load_weights(ours, path)
    assert all(np.array_equal(a, b) for a, b in zip(before, ours.get_weights(), strict=True))
    load_weights(ours, path, shortcut_padding=padding)
    assert equal(ours, theirs) == (padding == "behind")
    images = np.random.default_rng(3).normal(size=(2, *SHAPE))
    expected = reference.network(
        images,
        theirs,
        variant.blocks,
        reference.PROGRAMS[variant.block, "original"],
        "zero_padding" if padding == "behind" else "zero_padding_both",
        imagenet_stem=False,
        strided_conv=1 if variant.block == "basic" else 2,
    )
    assert abs(expected).max() > 0.1
    np.testing.assert_allclose(outputs(ours), expected, atol=1e-4 * max(1, abs(expected).max()))


def test_a_file_of_ours_says_how_it_is_padded(tmp_path):
    path = tmp_path / "torch.safetensors"
    model = randomized(build(NETWORKS["cifar"]))
    save_torch(model, path)
    assert read_metadata(path) == {"format": "pt", "shortcut_padding": "behind"}
    load_weights(model, path)
    with pytest.raises(ValueError, match=r"Expected shortcut_padding='behind' or None"):
        load_weights(model, path, shortcut_padding="both")
    safetensors.numpy.save_file(torch_tensors(path), path, {"shortcut_padding": "elsewhere"})
    with pytest.raises(ValueError, match=r"names of the weights do not tell"):
        load_weights(model, path)
    save_torch(build(NETWORKS["torchvision"]), path)
    assert read_metadata(path) == {"format": "pt"}


def test_constructors_name_the_remedy_for_shortcuts_that_do_not_tell(tmp_path):
    path = tmp_path / "resnet8.safetensors"
    model = keras_resnet.CifarResNet(8)
    save_torch(model, path)
    assert equal(keras_resnet.CifarResNet(8, weights=path), model)
    without_metadata(path)
    for channels in (1, 3):
        with pytest.raises(ValueError, match=r"keras_resnet.load_weights\(model, path, shortcut_"):
            keras_resnet.CifarResNet(8, weights=path, input_shape=(32, 32, channels))


@pytest.mark.parametrize(
    ("network", "save", "padding", "message"),
    [
        ("torchvision", save_torch, "both", "Expected None. Received: 'both' for 'resnet50'"),
        ("cifar", save_weights, "behind", "names of keras_resnet"),
        ("cifar", save_torch, "front", "Expected None, 'behind' or 'both'. Received: 'front'"),
    ],
)
def test_where_there_is_no_question_of_padding_no_answer_is_taken(
    network, save, padding, message, tmp_path
):
    model = build(NETWORKS[network])
    save(model, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=message):
        load_weights(model, tmp_path / "weights.safetensors", shortcut_padding=padding)


def test_padding_on_both_sides_is_not_for_grouped_convolutions(tmp_path):
    model = build(dataclasses.replace(NETWORKS["cifar"], groups=8))
    save_torch(model, tmp_path / "torch.safetensors")
    without_metadata(tmp_path / "torch.safetensors")
    with pytest.raises(ValueError, match=r"cannot be absorbed by grouped convolutions"):
        load_weights(model, tmp_path / "torch.safetensors", shortcut_padding="both")


def test_the_old_names_of_densenets_are_understood(tmp_path):
    model = randomized(build(NETWORKS["densenet"]))
    save_torch(model, tmp_path / "torch.safetensors")
    tensors = torch_tensors(tmp_path / "torch.safetensors")
    old = {
        name.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): tensor
        for name, tensor in tensors.items()
    }
    assert old.keys() != tensors.keys()
    safetensors.numpy.save_file(old, tmp_path / "old.safetensors")
    again = randomized(build(NETWORKS["densenet"]), seed=1)
    load_weights(again, tmp_path / "old.safetensors")
    assert equal(again, model)


def test_a_network_that_pytorch_has_not_is_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"No library of PyTorch has this network"):
        save_torch(build(SMALL["highway"]), tmp_path / "torch.safetensors")
    assert not list(tmp_path.iterdir())


# By scheme: a network of the library, and options that change its graph but none of its weights.
OTHER_GRAPHS = [
    ("torchvision", NETWORKS["torchvision"], {"stride_in_1x1": True}),
    ("torchvision", NETWORKS["torchvision"], {"stride_in_last_block": True}),
    ("torchvision", NETWORKS["torchvision"], {"shortcut": "average_pool"}),
    ("torchvision", NETWORKS["torchvision_basic"], {"stem": "imagenet_caffe"}),
    ("cifar", NETWORKS["cifar"], {"shortcut": "none"}),
    ("cifar", NETWORKS["cifar"], {"shortcut": "average_pool_zero_padding"}),
    ("cifar", NETWORKS["cifar"], {"activation_order": "relu_pre_activation"}),
    ("timm_d", NETWORKS["timm_d"], {"shortcut": "projection"}),
    ("timm_v2", NETWORKS["timm_v2"], {"stem": "imagenet_zero_padded"}),
    ("timm_v2", NETWORKS["timm_v2"], {"stride_in_1x1": True}),
    ("transformers", NETWORKS["torchvision"], {"stride_in_1x1": True}),
    ("keras_hub", NETWORKS["torchvision"], {"stem": "imagenet_caffe"}),
    ("keras_hub_d", NETWORKS["timm_d"], {"shortcut": "projection"}),
    ("keras_hub_v2", NETWORKS["timm_v2"], {"stem": "imagenet_zero_padded"}),
    ("keras_applications", small("resnet50", stride_in_1x1=True), {"stem": "imagenet_caffe"}),
]


@pytest.mark.parametrize(("name", "variant", "options"), OTHER_GRAPHS)
def test_another_graph_with_the_same_weights_is_refused(name, variant, options, tmp_path):
    scheme = next(scheme for scheme in SCHEMES if scheme.name == name)
    path = tmp_path / "theirs.safetensors"
    model, other = build(variant), build(variant, **options)
    weights = {weight.path: weight.numpy() for weight in model.weights}
    assert {weight.path: weight.shape for weight in other.weights} == {
        weight: value.shape for weight, value in weights.items()
    }
    tensors = {scheme.key(weight): scheme.write(weight, v) for weight, v in weights.items()}
    metadata = {"shortcut_padding": "behind"}
    safetensors.numpy.save_file(
        {key: np.ascontiguousarray(value) for key, value in tensors.items()}, path, metadata
    )
    assert load_weights(model, path).scheme == name
    ((field, value),) = options.items()
    message = f"{field}={value!r}. Build the network with {field}={getattr(variant, field)!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
        load_weights(other, path)
    if scheme.transposed:
        path.unlink()
        with pytest.raises(ValueError, match=re.escape(f"{field}={value!r}. Build the network")):
            save_torch(other, path)
        assert not list(tmp_path.iterdir())


def test_the_stride_of_basic_blocks_is_where_it_is(tmp_path):
    model = build(NETWORKS["torchvision_basic"], stride_in_1x1=True)
    save_torch(model, tmp_path / "torch.safetensors")
    load_weights(model, tmp_path / "torch.safetensors")


def test_convolutions_with_biases_are_not_written_for_pytorch(tmp_path):
    with pytest.raises(ValueError, match=r"Received: conv_bias=True. Build .* conv_bias=False"):
        save_torch(build(NETWORKS["cifar"], conv_bias=True), tmp_path / "torch.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_precisions_are_converted(dtype, tmp_path):
    model = randomized(build(NETWORKS["cifar"]))
    save_torch(model, tmp_path / "torch.safetensors")
    tensors = {n: t.astype(dtype) for n, t in torch_tensors(tmp_path / "torch.safetensors").items()}
    safetensors.numpy.save_file(tensors, tmp_path / "other.safetensors")
    again = build(NETWORKS["cifar"])
    load_weights(again, tmp_path / "other.safetensors", shortcut_padding="behind")
    for old, new in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(old.astype(dtype).astype("float32"), new)


def test_both_sides_are_listed_by_their_own_names_and_nothing_is_changed(tmp_path):
    save_torch(randomized(build(NETWORKS["cifar"])), tmp_path / "torch.safetensors")
    tensors = torch_tensors(tmp_path / "torch.safetensors")
    tensors["layer9.weight"] = tensors.pop("bn1.running_mean")
    tensors["conv1.weight"] = tensors["conv1.weight"][:, :1]
    safetensors.numpy.save_file(tensors, tmp_path / "other.safetensors")
    model = randomized(build(NETWORKS["cifar"]), seed=1)
    before = model.get_weights()
    message = (
        r"only the file has: layer9.weight; "
        r"only the network has: stem_bn/moving_mean \(bn1.running_mean\); "
        r"of another shape: stem_conv/kernel \(3, 3, 1, 16\) for \(3, 3, 3, 16\)"
    )
    with pytest.raises(ValueError, match=message):
        load_weights(model, tmp_path / "other.safetensors")
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    report = load_weights(
        model, tmp_path / "other.safetensors", strict=False, shortcut_padding="behind"
    )
    assert report.scheme == "cifar"
    assert report.unused == ("layer9.weight",)
    assert report.missing == ("stem_bn/moving_mean (bn1.running_mean)",)
    assert len(report.mismatched) == 1
    assert "stem_conv/kernel" not in report.loaded
    np.testing.assert_array_equal(model.get_weights()[0], before[0])
    np.testing.assert_array_equal(
        model.get_layer("predictions").kernel.numpy(), tensors["linear.weight"].T
    )


@pytest.mark.parametrize(
    "value", [np.nan, np.inf, -0.5], ids=["not a number", "infinite", "negative variance"]
)
def test_weights_that_are_no_numbers_are_refused(value, tmp_path):
    save_torch(randomized(build(NETWORKS["cifar"])), tmp_path / "torch.safetensors")
    tensors = torch_tensors(tmp_path / "torch.safetensors")
    tensors["layer1.0.bn2.running_var"][3] = value
    safetensors.numpy.save_file(tensors, tmp_path / "other.safetensors")
    model = randomized(build(NETWORKS["cifar"]), seed=1)
    before = model.get_weights()
    for strict in (True, False):
        with pytest.raises(ValueError, match=r"stage1_block1_bn2/moving_variance"):
            load_weights(model, tmp_path / "other.safetensors", strict=strict)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


@pytest.mark.parametrize(
    ("policy", "dtype", "value"), [("float32", "float64", 1e300), ("float16", "float32", 1e5)]
)
def test_numbers_too_large_for_the_model_are_refused(policy, dtype, value, tmp_path):
    keras.config.set_dtype_policy(policy)
    model = build(NETWORKS["torchvision"])
    save_torch(model, tmp_path / "torch.safetensors")
    tensors = {n: t.astype(dtype) for n, t in torch_tensors(tmp_path / "torch.safetensors").items()}
    tensors["conv1.weight"][0, 0, 0, 0] = value
    safetensors.numpy.save_file(tensors, tmp_path / "large.safetensors")
    with pytest.raises(ValueError, match=r"Expected finite numbers.*: stem_conv/kernel"):
        load_weights(model, tmp_path / "large.safetensors")
    assert np.isfinite(model.get_layer("stem_conv").kernel.numpy()).all()


@pytest.mark.parametrize("head", [True, False])
def test_a_foreign_classifier_may_stay_behind(head, tmp_path):
    model = randomized(build(NETWORKS["torchvision"]))
    save_torch(model, tmp_path / "torch.safetensors")
    other = randomized(build(NETWORKS["torchvision"], classes=5), seed=1)
    if head:
        with pytest.raises(ValueError, match=r"predictions/kernel \(96, 3\) for \(96, 5\)"):
            load_weights(other, tmp_path / "torch.safetensors")
        return
    kernel = other.get_layer("predictions").kernel.numpy()
    load_weights(other, tmp_path / "torch.safetensors", head=False)
    np.testing.assert_array_equal(other.get_layer("predictions").kernel.numpy(), kernel)
    np.testing.assert_array_equal(
        other.get_layer("stem_conv").kernel.numpy(), model.get_layer("stem_conv").kernel.numpy()
    )


@pytest.fixture(scope="module")
def theirs():
    """A small network of keras.applications: stride in the 1x1, biases, an epsilon of 1.001e-5."""

    def stages(x):
        block = keras_applications.stack_residual_blocks_v1
        return block(block(x, 24, 2, stride1=1, name="conv2"), 32, 2, name="conv3")

    model = keras_applications.ResNet(
        stages, False, True, name="small", weights=None, input_shape=SHAPE, classes=3
    )
    # Small variances make the difference of the epsilons visible.
    reference.randomize(model)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            variance = np.random.default_rng(1).uniform(1e-6, 1e-4, layer.moving_variance.shape)
            layer.moving_variance.assign(variance)
            layer.gamma.assign(layer.gamma * np.sqrt(variance))
    return model


SMALL_V1 = small("resnet50", (24, 32), stem_filters=64, stride_in_1x1=True)


def write_legacy(model, path):
    """As the published files: groups of layers, weights by name."""
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)


@pytest.mark.parametrize("conv_bias", [False, True])
@pytest.mark.parametrize("suffix", [".h5", ".weights.h5"])
def test_keras_applications_logits_are_reached(theirs, suffix, conv_bias, tmp_path):
    path = tmp_path / f"theirs{suffix}"
    theirs.save_weights(path) if suffix == ".weights.h5" else write_legacy(theirs, path)
    ours = build(SMALL_V1, conv_bias=conv_bias)
    report = load_weights(ours, path)
    assert report.scheme == "keras_applications"
    verification = verify(ours, theirs)
    assert max(*verification.stages, verification.logits) < 1e-4
    assert min(*verification.largest_features, verification.largest_logit) > 0.1
    assert f"logits   {verification.logits:10.2g}" in str(verification)


def test_keras_applications_needs_its_strides(theirs, tmp_path):
    write_legacy(theirs, tmp_path / "theirs.h5")
    ours = build(dataclasses.replace(SMALL_V1, stride_in_1x1=False))
    with pytest.raises(ValueError, match=r"stride_in_1x1=False. Build .* stride_in_1x1=True"):
        load_weights(ours, tmp_path / "theirs.h5")


@pytest.mark.parametrize("policy", ["float32", "bfloat16"])
def test_our_own_weights_of_keras_format_are_read(policy, tmp_path):
    keras.config.set_dtype_policy(policy)
    model = randomized(build(NETWORKS["torchvision"]))
    model.save_weights(tmp_path / "own.weights.h5")
    again = build(NETWORKS["torchvision"])
    load_weights(again, tmp_path / "own.weights.h5")
    assert equal(again, model)


@pytest.mark.parametrize("conv_bias", [True, False])
def test_pre_activation_networks_of_keras_applications_need_their_graph(conv_bias, tmp_path):
    def stages(x):
        block = keras_applications.stack_residual_blocks_v2
        return block(block(x, 24, 2, name="conv2"), 32, 2, stride1=1, name="conv3")

    theirs = keras_applications.ResNet(
        stages, True, True, name="small", weights=None, input_shape=SHAPE, classes=3
    )
    reference.randomize(theirs)
    write_legacy(theirs, tmp_path / "theirs.h5")
    graph = {"stride_in_last_block": True, "stem": "imagenet_zero_padded"}
    variant = small("resnet50v2", (24, 32), stem_filters=64)
    ours = build(variant, conv_bias=conv_bias, **graph)
    if not conv_bias:  # what the padding of the pool makes of a bias cannot be absorbed
        with pytest.raises(ValueError, match=r"only the file has: .*_3_conv/bias"):
            load_weights(ours, tmp_path / "theirs.h5")
        return
    load_weights(ours, tmp_path / "theirs.h5")
    verification = verify(ours, theirs)
    assert max(*verification.stages, verification.logits) < 1e-4
    assert verification.largest_logit > 0.1
    with pytest.raises(ValueError, match=r"Build .* with stride_in_last_block=True, stem="):
        load_weights(build(variant, conv_bias=True), tmp_path / "theirs.h5")


def caffe_message():
    """Caffe's schema as its authors wrote it: packed floats, not bytes."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="original.proto", package="caffe")
    for name, *fields in (
        ("BlobShape", ("dim", 1, field.TYPE_INT64, True)),
        ("BlobProto", ("data", 5, field.TYPE_FLOAT, True), ("shape", 7, ".caffe.BlobShape", False)),
        (
            "LayerParameter",
            ("name", 1, field.TYPE_STRING, False),
            ("type", 2, field.TYPE_STRING, False),
            ("blobs", 7, ".caffe.BlobProto", True),
        ),
        (
            "NetParameter",
            ("name", 1, field.TYPE_STRING, False),
            ("layer", 100, ".caffe.LayerParameter", True),
        ),
    ):
        message = file.message_type.add(name=name)
        for field_name, number, kind, repeated in fields:
            is_message = isinstance(kind, str)
            added = message.field.add(
                name=field_name,
                number=number,
                label=field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL,
                type=field.TYPE_MESSAGE if is_message else kind,
                type_name=kind if is_message else None,
            )
            added.options.packed = repeated and not is_message
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("caffe.NetParameter"))


def write_caffe(model, path, block_names, stem_bias=None):
    """A network of ours as the file of He et al. has it; `block_names` by stage and block."""
    net = caffe_message()(name="ResNet")

    def add(name, kind, *blobs):
        layer = net.layer.add(name=name, type=kind)
        for blob in blobs:
            layer.blobs.add(data=np.ravel(blob)).shape.dim.extend(np.shape(blob))

    def add_conv(ours, theirs, norm, bias=None):
        kernel = model.get_layer(ours).kernel.numpy().transpose(3, 2, 0, 1)
        add(theirs, "Convolution", kernel, *([] if bias is None else [bias]))
        layer = model.get_layer(ours.replace("conv", "bn"))
        gamma, beta, mean, variance = layer.get_weights()
        # The mean that Caffe saw has the bias in it; both statistics are sums over 999.98 batches.
        mean = mean + (0 if bias is None else bias)
        add(f"bn{norm}", "BatchNorm", mean * 999.98, variance * 999.98, [999.98])
        add(f"scale{norm}", "Scale", gamma, beta)
        add(f"{theirs}_relu", "ReLU")

    add_conv("stem_conv", "conv1", "_conv1", bias=stem_bias)
    for (stage, block), name in block_names.items():
        ours = f"stage{stage}_block{block}"
        if block == 1:
            add_conv(f"{ours}_shortcut_conv", f"res{name}_branch1", f"{name}_branch1")
        for position, letter in enumerate("abc", 1):
            suffix = f"{name}_branch2{letter}"
            add_conv(f"{ours}_conv{position}", f"res{suffix}", suffix)
    kernel, bias = model.get_layer("predictions").get_weights()
    add("fc1000", "InnerProduct", kernel.T, bias)
    path.write_bytes(net.SerializeToString())


CAFFE_NAMES = {
    "letters": {(1, 1): "2a", (1, 2): "2b", (2, 1): "3a", (2, 2): "3b", (2, 3): "3c"},
    "numbers": {(1, 1): "2a", (1, 2): "2b", (2, 1): "3a", (2, 2): "3b1", (2, 3): "3b2"},
}


@pytest.mark.parametrize("names", CAFFE_NAMES)
def test_caffe_weights_come_in_with_their_sums_and_their_bias(names, tmp_path):
    variant = dataclasses.replace(SMALL_V1, blocks=(2, 3), stem="imagenet_caffe")
    model = randomized(build(variant))
    bias = np.linspace(-1, 1, 64) if names == "letters" else None  # only ResNet-50 has it
    write_caffe(model, tmp_path / "net.caffemodel", CAFFE_NAMES[names], bias)
    again = randomized(build(variant), seed=1)
    report = load_weights(again, tmp_path / "net.caffemodel")
    assert report.scheme == "caffe"
    for old, new in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(outputs(again), outputs(model), atol=1e-5)
    for option in ({"stride_in_1x1": False}, {"stem": "imagenet"}):
        with pytest.raises(ValueError, match=f"Build the network with {next(iter(option))}="):
            load_weights(build(variant, **option), tmp_path / "net.caffemodel")


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "bfloat16", "float64"])
def test_every_precision_is_saved_and_comes_back(policy, tmp_path):
    keras.config.set_dtype_policy(policy)
    model = randomized(build(NETWORKS["cifar"]))
    save_weights(model, tmp_path / "own.safetensors")
    again = build(NETWORKS["cifar"])
    load_weights(again, tmp_path / "own.safetensors")
    assert equal(again, model)
    save_torch(model, tmp_path / "torch.safetensors")
    load_weights(again, tmp_path / "torch.safetensors")
    assert again.get_layer("stem_conv").kernel.dtype == model.get_layer("stem_conv").kernel.dtype


def test_verify_refuses_another_network():
    first, second = build(NETWORKS["torchvision"]), build(NETWORKS["torchvision_basic"])
    with pytest.raises(ValueError, match=r"The reference is another network"):
        verify(first, second)
    inputs = keras.Input(SHAPE)
    with pytest.raises(ValueError, match=r"The stages of the reference are not found"):
        verify(first, keras.Model(inputs, keras.layers.Flatten()(inputs)))
    with pytest.raises(ValueError, match=r"The stages of the ref.*Received: <class 'str'>"):
        verify(first, "resnet50.pth")


def test_verify_measures_the_largest_difference():
    first = randomized(build(NETWORKS["torchvision"], classifier_activation="softmax"))
    second = build(NETWORKS["torchvision"], classifier_activation=None)
    second.set_weights(first.get_weights())
    assert verify(first, second).logits == 0
    kernel, bias = second.get_layer("predictions").get_weights()
    second.get_layer("predictions").set_weights([kernel, bias - [0, 0.25, -0.125]])
    verification = verify(first, second)
    assert verification.stages == (0, 0)
    assert verification.logits == pytest.approx(0.25, abs=1e-6)
