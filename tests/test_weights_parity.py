"""Imported weights against the libraries they come from: the same logits from the same images.

`make parity` installs the libraries and runs this. Weights are random, statistics of batch
normalisation too: nothing is downloaded.
"""

import importlib
import io
import os
import pickle
import re
import zipfile

import h5py
import keras
import numpy as np
import pytest
import reference
from keras.src.legacy.saving import legacy_h5_format
from mutation import mutated

import keras_resnet
from keras_resnet.weights.files import load_weights, save_torch
from keras_resnet.weights.verify import verify

pytestmark = pytest.mark.parity

SHAPE = (64, 64, 3)
TOLERANCE = 1e-4  # of logits, in float32

TORCHVISION = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("wide_resnet50_2", "wide_resnet101_2", "resnext50_32x4d", "resnext101_32x8d"),
    *("densenet121", "densenet169", "densenet201"),
)
TIMM = {
    "resnet18": "resnet18",
    "resnet34": "resnet34",
    "resnet50": "resnet50",
    "resnet101": "resnet101",
    "resnet152": "resnet152",
    "wide_resnet50_2": "wide_resnet50_2",
    "resnext50_32x4d": "resnext50_32x4d",
    "resnet18d": "resnet18d",
    "resnet34d": "resnet34d",
    "resnet50d": "resnet50d",
    "resnet101d": "resnet101d",
    "resnet152d": "resnet152d",
    "se_resnet50": "seresnet50",
    "se_resnet101": "seresnet101",
    "se_resnet152": "seresnet152",
    "densenet121": "densenet121",
    "resnet50v2": "resnetv2_50",
    "resnet101v2": "resnetv2_101",
}


@pytest.fixture(scope="module")
def safetensors_torch(torch):
    return importlib.import_module("safetensors.torch")


def randomize(module, torch, seed=0):
    """Random batch normalisation; residuals are small, or features would grow with the depth."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        if name.endswith("running_mean"):
            value.normal_(0, 0.1, generator=generator)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 1.5, generator=generator)
        elif value.ndim == 1:
            low, high = (-0.2, 0.2) if name.endswith("bias") else (0.5, 1.2)
            value.uniform_(low, high, generator=generator)
        if re.search(r"(bn3|norm3|layer\.2\.normalization)\.weight", name):
            value.mul_(0.25)
    return module


def randomize_keras(model):
    """The same of a Keras model."""
    reference.randomize(model)
    for layer in getattr(model, "backbone", model).layers:
        if layer.name.endswith(("_3_bn", "_3_conv")):
            layer.set_weights([0.25 * layer.get_weights()[0], *layer.get_weights()[1:]])
    return model


def check(model, source, shortcut_padding=None):
    verification = verify(model, source, shortcut_padding=shortcut_padding)
    print(verification)
    assert verification.largest_logit > 0.1
    assert verification.logits < TOLERANCE
    for difference, largest in zip(verification.stages, verification.largest_features, strict=True):
        assert difference < 1e-5 * max(largest, 1)


def check_both_ways(name, module, safetensors_torch, path):
    """In, compared; and out again, strictly and to the bit."""
    safetensors_torch.save_file(module.state_dict(), path)
    model = keras_resnet.build(name, input_shape=SHAPE)
    load_weights(model, path)
    check(model, module)
    expected = {name: value.clone() for name, value in module.state_dict().items()}
    save_torch(model, path)
    for value in module.state_dict().values():
        value.zero_()
    module.load_state_dict(safetensors_torch.load_file(path), strict=True)
    for key, value in module.state_dict().items():
        assert (value == expected[key]).all() or key.endswith("num_batches_tracked"), key


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name, torch, torchvision, safetensors_torch, tmp_path):
    module = randomize(getattr(torchvision.models, name)(weights=None), torch)
    check_both_ways(name, module, safetensors_torch, tmp_path / "weights.safetensors")


@pytest.mark.parametrize(("name", "theirs"), TIMM.items(), ids=TIMM)
def test_timm(name, theirs, torch, timm, safetensors_torch, tmp_path):
    module = randomize(timm.create_model(theirs), torch)
    check_both_ways(name, module, safetensors_torch, tmp_path / "weights.safetensors")


@pytest.mark.parametrize("name", ["resnet18", "resnet50d", "densenet121", "resnet50v2"])
@pytest.mark.parametrize("shape", [(65, 67, 3), (47, 80, 3)])
def test_odd_sizes_have_the_same_grid(name, shape, torch, timm, safetensors_torch, tmp_path):
    module = randomize(timm.create_model(TIMM[name]), torch)
    safetensors_torch.save_file(module.state_dict(), tmp_path / "weights.safetensors")
    model = keras_resnet.build(name, input_shape=shape)
    load_weights(model, tmp_path / "weights.safetensors")
    check(model, module)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_transformers(name, torch, tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs transformers: make parity")
    basic = {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]}
    config = transformers.ResNetConfig(num_labels=1000, **(basic if name == "resnet18" else {}))
    module = randomize(transformers.ResNetForImageClassification(config), torch)
    module.save_pretrained(tmp_path)
    model = keras_resnet.build(name, input_shape=SHAPE)
    assert load_weights(model, tmp_path / "model.safetensors").scheme == "transformers"
    check(model, module)


@pytest.mark.parametrize("depth", [50, 101, 152])
def test_keras_applications(depth, tmp_path):
    theirs = getattr(keras.applications, f"ResNet{depth}")(weights=None, input_shape=SHAPE)
    randomize_keras(theirs)
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, theirs)
    model = keras_resnet.build(f"resnet{depth}", input_shape=SHAPE, stride_in_1x1=True)
    load_weights(model, tmp_path / "weights.h5")
    check(model, theirs)


@pytest.mark.parametrize("depth", [50, 101, 152])
def test_keras_applications_v2(depth, tmp_path):
    theirs = getattr(keras.applications, f"ResNet{depth}V2")(weights=None, input_shape=SHAPE)
    randomize_keras(theirs)
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, theirs)
    graph = {"conv_bias": True, "stride_in_last_block": True, "stem": "imagenet_zero_padded"}
    model = keras_resnet.build(f"resnet{depth}v2", input_shape=SHAPE, **graph)
    load_weights(model, tmp_path / "weights.h5")
    check(model, theirs)


KERAS_HUB = {
    "resnet18": ([2, 2, 2, 2], "basic_block", [64], [7]),
    "resnet34": ([3, 4, 6, 3], "basic_block", [64], [7]),
    "resnet50": ([3, 4, 6, 3], "bottleneck_block", [64], [7]),
    "resnet50d": ([3, 4, 6, 3], "bottleneck_block_vd", [32, 32, 64], [3, 3, 3]),
    "resnet50v2": ([3, 4, 6, 3], "bottleneck_block", [64], [7]),
}


@pytest.mark.parametrize("name", KERAS_HUB)
def test_keras_hub(name, tmp_path):
    keras_hub = pytest.importorskip("keras_hub", reason="needs keras-hub: make parity")
    blocks, block, filters, kernels = KERAS_HUB[name]
    backbone = keras_hub.models.ResNetBackbone(
        input_conv_filters=filters,
        input_conv_kernel_sizes=kernels,
        stackwise_num_filters=[64, 128, 256, 512],
        stackwise_num_blocks=blocks,
        stackwise_num_strides=[1, 2, 2, 2],
        block_type=block,
        use_pre_activation=name.endswith("v2"),
        image_shape=SHAPE,
    )
    theirs = keras_hub.models.ResNetImageClassifier(backbone, num_classes=1000)
    randomize_keras(theirs)
    theirs.save_weights(tmp_path / "whole.weights.h5")
    backbone.save_weights(tmp_path / "backbone.weights.h5")
    model = keras_resnet.build(name, input_shape=SHAPE)
    load_weights(model, tmp_path / "whole.weights.h5")
    check(model, theirs)
    other = keras_resnet.build(name, input_shape=SHAPE, include_top=False)
    load_weights(other, tmp_path / "backbone.weights.h5")
    assert max(verify(other, backbone).stages) < TOLERANCE * 10


@pytest.fixture(scope="module")
def cifar(torch):
    """The usual CIFAR network of PyTorch, of 14 layers, by its kind of shortcut."""
    nn = torch.nn

    class Padded(nn.Module):
        def __init__(self, before, behind):
            super().__init__()
            self.padding = (0, 0, 0, 0, before, behind)

        def forward(self, x):
            return nn.functional.pad(x[:, :, ::2, ::2], self.padding)

    class Block(nn.Module):
        def __init__(self, filters_in, filters, shortcut):
            super().__init__()
            self.conv1 = nn.Conv2d(
                filters_in, filters, 3, filters // filters_in, padding=1, bias=False
            )
            self.bn1 = nn.BatchNorm2d(filters)
            self.conv2 = nn.Conv2d(filters, filters, 3, padding=1, bias=False)
            self.bn2 = nn.BatchNorm2d(filters)
            self.shortcut = nn.Sequential()
            if filters_in != filters and shortcut == "behind":
                self.shortcut = Padded(0, filters - filters_in)
            elif filters_in != filters and shortcut == "both":
                self.shortcut = Padded(filters // 4, filters // 4)
            elif filters_in != filters:
                conv = nn.Conv2d(filters_in, filters, 1, stride=2, bias=False)
                self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(filters))

        def forward(self, x):
            out = torch.relu(self.bn1(self.conv1(x)))
            return torch.relu(self.bn2(self.conv2(out)) + self.shortcut(x))

    class Net(nn.Module):
        def __init__(self, shortcut):
            super().__init__()
            self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
            self.bn1 = nn.BatchNorm2d(16)
            self.layer1 = nn.Sequential(Block(16, 16, shortcut), Block(16, 16, shortcut))
            self.layer2 = nn.Sequential(Block(16, 32, shortcut), Block(32, 32, shortcut))
            self.layer3 = nn.Sequential(Block(32, 64, shortcut), Block(64, 64, shortcut))
            self.linear = nn.Linear(64, 10)

        def forward(self, x):
            x = torch.relu(self.bn1(self.conv1(x)))
            return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))

    return lambda shortcut: randomize(Net(shortcut), torch)


WRAPPERS = {
    "plain": lambda module: module.state_dict(),
    "state_dict": lambda module: {"state_dict": module.state_dict(), "epoch": 3, "accuracy": 0.9},
    "model": lambda module: {"model": module.state_dict(), "optimizer": {"lr": [0.1]}},
    "both": lambda module: {"model": {"state_dict": dict(module.state_dict())}},
    "parameters": lambda module: dict(module.named_parameters()) | dict(module.named_buffers()),
}


@pytest.mark.parametrize("shortcut", ["behind", "both", "projection"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_torch_files_of_cifar_networks(cifar, torch, wrapper, legacy, shortcut, tmp_path):
    module = cifar(shortcut)
    parallel = torch.nn.DataParallel(module) if wrapper != "plain" else module
    path = tmp_path / "checkpoint.pth"
    torch.save(WRAPPERS[wrapper](parallel), path, _use_new_zipfile_serialization=not legacy)
    padding = None if shortcut == "projection" else shortcut
    model = keras_resnet.CifarResNet(depth=14, shortcut="zero_padding" if padding else "projection")
    assert load_weights(model, path, shortcut_padding=padding).scheme == "cifar"
    check(model, module, padding)


def test_the_most_copied_checkpoint_of_cifar_wants_to_know_its_padding(cifar, torch, tmp_path):
    module = cifar("both")
    checkpoint = {"state_dict": torch.nn.DataParallel(module).state_dict(), "best_prec1": 91.7}
    path = tmp_path / "resnet14.th"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=False)
    model = keras_resnet.CifarResNet(depth=14)
    for load in (
        lambda: load_weights(model, path),
        lambda: keras_resnet.CifarResNet(14, weights=path),
    ):
        with pytest.raises(ValueError, match=r"load_weights\(model, path, shortcut_padding='both'"):
            load()
    load_weights(model, path, shortcut_padding="both")
    check(model, module, "both")
    assert max(verify(model, module).stages) > 0.1  # in another order


def hostile(command):
    class Hostile:
        def __reduce__(self):
            return os.system, (command,)

    return pickle.dumps({"conv1.weight": Hostile()}, protocol=2)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_pickle_is_not_executed(cifar, torch, legacy, tmp_path):
    command = f"touch {tmp_path / 'executed'}"
    path, whole = tmp_path / "hostile.pth", io.BytesIO()
    if legacy:
        path.write_bytes(hostile(command))
    else:
        torch.save(cifar("projection").state_dict(), whole)
        with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as target:
            for entry in source.namelist():
                is_pickle = entry.endswith("data.pkl")
                target.writestr(entry, hostile(command) if is_pickle else source.read(entry))
    with pytest.raises(ValueError, match=r"cannot be read"):
        load_weights(keras_resnet.CifarResNet(depth=8), path)
    assert not (tmp_path / "executed").exists()
    pickle.loads(hostile(command))
    assert (tmp_path / "executed").exists()  # the file is as bad as it was meant to be


def test_names_in_an_archive_lead_nowhere(torch, tmp_path):
    path = tmp_path / "inner" / "hostile.pth"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../outside", b"x")
        archive.writestr("/tmp/../outside/data.pkl", b"x")
    with pytest.raises(ValueError, match=r"cannot be read"):
        load_weights(keras_resnet.CifarResNet(depth=8), path)
    assert {entry.name for entry in tmp_path.rglob("*")} == {"inner", "hostile.pth"}


def test_an_archive_that_grows_is_not_unpacked(torch, tmp_path):
    whole = io.BytesIO()
    torch.save({"conv1.weight": torch.zeros(10**7)}, whole)
    with (
        zipfile.ZipFile(whole) as source,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for entry in source.namelist():
            target.writestr(entry, source.read(entry))
    assert (tmp_path / "bomb.pth").stat().st_size < 10**5
    with pytest.raises(ValueError, match=r"unpack to more than the file has"):
        load_weights(keras_resnet.CifarResNet(depth=8), tmp_path / "bomb.pth")


def test_a_tensor_that_claims_more_than_the_file_has_is_refused(torch, tmp_path):
    torch.save({"conv1.weight": torch.zeros(1).expand(10**9)}, tmp_path / "hostile.pth")
    with pytest.raises(ValueError, match=r"conv1.weight claims more bytes than the file has"):
        load_weights(keras_resnet.CifarResNet(depth=8), tmp_path / "hostile.pth")


def test_tensors_that_share_their_values_are_refused(torch, tmp_path):
    shared = torch.zeros(10**6)
    torch.save({f"layer{number}": shared for number in range(300)}, tmp_path / "hostile.pth")
    with pytest.raises(ValueError, match=r"layer1 claims more bytes than the file has"):
        load_weights(keras_resnet.CifarResNet(depth=8), tmp_path / "hostile.pth")


def test_a_whole_module_is_refused_with_the_remedy(torch, tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pth")
    with pytest.raises(ValueError, match=r"as a whole module does; write it by .*state_dict\(\)"):
        load_weights(keras_resnet.CifarResNet(depth=8), tmp_path / "whole.pth")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("content", ["itself", "a list", "a tensor", "a wrapped list", "nothing"])
def test_what_holds_no_dictionary_of_tensors_is_refused(torch, content, legacy, tmp_path):
    itself = {}
    itself["model"] = itself
    tensor = torch.zeros(3)
    contents = {
        "itself": itself,
        "a list": [tensor],
        "a tensor": tensor,
        "a wrapped list": {"model": [tensor]},
        "nothing": {},
    }
    path = tmp_path / "hostile.pth"
    torch.save(contents[content], path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"cannot be read.*it holds no dictionary of tensors"):
        load_weights(keras_resnet.CifarResNet(depth=8), path)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_mutated_torch_files_load_or_are_refused(cifar, torch, legacy, tmp_path):
    whole = io.BytesIO()
    torch.save(cifar("behind").state_dict(), whole, _use_new_zipfile_serialization=not legacy)
    model = keras_resnet.CifarResNet(depth=14)
    good, path, refused = model.get_weights(), tmp_path / "mutated.pth", 0
    for seed in range(2000):
        path.write_bytes(mutated(whole.getvalue(), seed))
        try:
            load_weights(model, path, shortcut_padding="behind")
            model.set_weights(good)
        except ValueError:
            refused += 1
            after = model.get_weights()
            assert all(np.array_equal(a, b) for a, b in zip(good, after, strict=True)), seed
    assert 100 < refused < 1900
