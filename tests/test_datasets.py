"""Sources of images: their splits, their pixels, and what is said about bad ones."""

import collections
import os
import shutil

import numpy as np
import pytest
import sklearn.datasets
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from keras_resnet.preprocessing import CIFAR10, IMAGENET
from training import datasets, pipeline, splits


def arrays(split):
    """All images and labels of a split."""
    images, labels = zip(*split.examples().batch(1000).as_numpy_iterator())
    return np.concatenate(images), np.concatenate(labels)


def counts(dataset):
    return {name: split.num_examples for name, split in dataset.splits.items()}


def error_text(*args, **kwargs):
    with pytest.raises(ValueError) as error:
        datasets.load(*args, **kwargs)
    return str(error.value)


# digits


def test_digits_are_those_of_scikit_learn():
    digits = datasets.load("digits")
    source = sklearn.datasets.load_digits()
    expected = collections.Counter(
        (np.round(image * 255 / 16).astype("uint8").tobytes(), int(label))
        for image, label in zip(source.images, source.target)
    )
    found = collections.Counter()
    for split in digits.splits.values():
        images, labels = arrays(split)
        assert (images.dtype, labels.dtype) == (np.uint8, np.int64)
        assert images.shape[1:] == digits.image_shape == (8, 8, 1)
        assert len(labels) == split.num_examples
        assert np.ptp(np.bincount(labels, minlength=10) / len(labels)) < 0.02  # stratified
        found.update((image.tobytes(), int(label)) for image, label in zip(images, labels))
    assert found == expected  # every image once, in one split
    assert counts(digits) == {"train": 1293, "test": 360, "validation": 144}
    assert digits.class_names == tuple("0123456789")


def test_digits_statistics_are_those_of_the_train_split():
    digits = datasets.load("digits")
    pixels = arrays(digits.splits["train"])[0] / 255
    assert digits.preprocessing.mean == pytest.approx([pixels.mean()], abs=5e-5)
    assert digits.preprocessing.std == pytest.approx([pixels.std()], abs=5e-5)
    assert digits.preprocessing.size == (8, 8)


def test_validation_can_be_chosen_and_test_stays():
    full = datasets.load("digits", validation_examples=0)
    assert counts(full) == {"train": 1437, "test": 360, "validation": 0}
    default = datasets.load("digits")
    np.testing.assert_array_equal(arrays(full.splits["test"])[0], arrays(default.splits["test"])[0])
    assert error_text("digits", validation_examples=1430) == (
        "Too few images to hold out so many. Expected at most 1427, so that every class keeps one "
        "to train on. Received: 1430. Choose a smaller validation_examples."
    )
    assert error_text("digits", validation_examples=-1) == (
        "The size of the validation split cannot be chosen. Expected 0 or more. "
        "Received: validation_examples=-1."
    )


def test_what_is_held_out_does_not_depend_on_the_order():
    images = np.random.default_rng(0).integers(0, 256, (200, 4, 4, 1), dtype=np.uint8)
    labels = np.arange(200) % 7
    shuffled = np.random.default_rng(1).permutation(200)
    _, (held, held_labels) = splits.hold_out(images, labels, 30)
    _, (again, _) = splits.hold_out(images[shuffled], labels[shuffled], 30)
    assert {image.tobytes() for image in held} == {image.tobytes() for image in again}
    assert set(np.bincount(held_labels)) == {4, 5}


# TFDS


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """A directory with five prepared datasets: three of fixed size, two of varied sizes."""
    root = tmp_path_factory.mktemp("tfds")
    rng = np.random.default_rng(0)

    def store(name, channels, splits, sizes, unlabelled=()):
        def examples(split, count):
            for i in range(count):
                shape = (*[sizes[i % len(sizes)]] * 2, channels)
                image = rng.integers(0, 256, shape, dtype=np.uint8)
                yield i, {"image": image, "label": -1 if split in unlabelled else i % 3}

        side = sizes[0] if len(sizes) == 1 else None
        features = {
            "image": tfds.features.Image(shape=(side, side, channels)),
            "label": tfds.features.ClassLabel(names=["ant", "bee", "cat"]),
        }
        members = {
            "VERSION": tfds.core.Version("1.0.0"),
            "_info": lambda self: self.dataset_info_from_configs(
                features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
            ),
            "_split_generators": lambda self, _: {
                split: examples(split, count) for split, count in splits.items()
            },
            "_generate_examples": None,
            "pkg_dir_path": root,
        }
        with tfds.core.registered.skip_registration():  # it is found by its files alone
            builder = type(name.title(), (tfds.core.GeneratorBasedBuilder,), members)
        builder(data_dir=root).download_and_prepare()

    store("grey", 1, {"train": 60, "test": 9}, sizes=[8])
    store("whole", 3, {"train": 60}, sizes=[8])
    store("clear", 4, {"train": 60}, sizes=[8])
    store("varied", 3, {"train": 60, "validation": 12, "test": 9}, sizes=[20, 24])
    splits = {"train": 60, "validation": 12, "test": 9}
    store("secret", 3, splits, sizes=[20, 24], unlabelled=["test"])
    return root


def test_a_small_tfds_dataset_is_held_in_memory(tfds_dir):
    grey = datasets.load("grey", data_dir=tfds_dir)
    assert counts(grey) == {"train": 54, "test": 9, "validation": 6}
    assert grey.class_names == ("ant", "bee", "cat")
    assert grey.image_shape == (8, 8, 3)  # grey became RGB
    assert grey.splits["train"].in_memory
    assert grey.preprocessing.size == (8, 8)
    assert grey.preprocessing.mean == IMAGENET.mean
    images, labels = arrays(grey.splits["test"])
    source = tfds.as_numpy(tfds.load("grey", split="test", data_dir=tfds_dir, batch_size=-1))
    np.testing.assert_array_equal(images, source["image"].repeat(3, axis=-1))
    np.testing.assert_array_equal(labels, source["label"])


def test_without_a_test_split_a_tenth_of_train_is_it(tfds_dir):
    assert counts(datasets.load("whole", data_dir=tfds_dir)) == {
        "train": 49,
        "test": 6,
        "validation": 5,
    }


def test_a_large_tfds_dataset_is_streamed_with_the_same_pixels(tfds_dir, monkeypatch):
    in_memory = datasets.load("whole", data_dir=tfds_dir)
    monkeypatch.setattr(datasets, "IN_MEMORY_BYTES", 0)
    encoded = datasets.load("whole", data_dir=tfds_dir)
    monkeypatch.setattr(datasets, "ENCODED_BYTES", 0)
    streamed = datasets.load("whole", data_dir=tfds_dir)
    assert counts(streamed) == {"train": 48, "test": 6, "validation": 6}
    assert not streamed.splits["train"].in_memory

    def pixels(dataset):
        return sorted(
            image.tobytes() for split in dataset.splits.values() for image in arrays(split)[0]
        )

    assert pixels(streamed) == pixels(in_memory)
    for split in encoded.splits:  # whether it is held decides nothing else
        for mine, theirs in zip(arrays(encoded.splits[split]), arrays(streamed.splits[split])):
            np.testing.assert_array_equal(mine, theirs)
    for split in (encoded.splits["train"], streamed.splits["train"]):
        assert split.keys.map(split.fetch).element_spec[0].shape == (8, 8, 3)
    chosen = datasets.load("whole", data_dir=tfds_dir, validation_examples=0)
    assert counts(chosen) == {"train": 54, "test": 6, "validation": 0}


def test_a_stream_is_shuffled_by_the_seed_alone(tfds_dir, monkeypatch):
    monkeypatch.setattr(splits, "SHUFFLE_WINDOW", 25)
    monkeypatch.setattr(datasets, "ENCODED_BYTES", 0)
    split = datasets.load("varied", data_dir=tfds_dir).splits["train"]
    assert split.num_examples == 60

    def order(seed):
        keys = split.shuffled_keys(tf.constant(seed, tf.int64))
        return [record["image"] for record in keys.as_numpy_iterator()]

    in_order = [record["image"] for record in split.keys.as_numpy_iterator()]
    first = order((0, 1))
    tf.random.set_seed(5)
    assert first == order((0, 1))
    assert sorted(first) == sorted(in_order) == sorted(order((0, 2)))
    assert len({tuple(in_order), tuple(first), tuple(order((0, 2)))}) == 3


def test_varied_sizes_are_decoded_lazily(tfds_dir):
    varied = datasets.load("varied", data_dir=tfds_dir)
    assert varied.image_shape == (None, None, 3)
    assert varied.preprocessing == IMAGENET
    assert counts(varied) == {"train": 60, "validation": 12, "test": 9}
    assert {image.shape for image, _ in varied.splits["test"].examples()} == {
        (20, 20, 3),
        (24, 24, 3),
    }
    assert error_text("varied", data_dir=tfds_dir, validation_examples=3) == (
        "The size of the validation split cannot be chosen. Expected None, because the dataset "
        "brings its own. Received: validation_examples=3."
    )


def test_small_files_of_a_tfds_dataset_stay_in_memory(tfds_dir, tmp_path):
    shutil.copytree(tfds_dir / "varied", tmp_path / "varied")
    varied = datasets.load("varied", data_dir=tmp_path)
    shutil.rmtree(tmp_path / "varied")
    source = datasets.load("varied", data_dir=tfds_dir)
    for split, count in counts(varied).items():
        images = [image.numpy().tobytes() for image, _ in varied.splits[split].examples()]
        assert len(images) == count
        assert images == [image.numpy().tobytes() for image, _ in source.splits[split].examples()]


@pytest.mark.cifar10
def test_cifar10_is_split_as_in_the_paper():
    cifar10 = datasets.load("cifar10")
    assert counts(cifar10) == {"train": 45_000, "test": 10_000, "validation": 5_000}
    assert cifar10.image_shape == (32, 32, 3)
    assert cifar10.class_names[::9] == ("airplane", "truck")
    assert cifar10.preprocessing == CIFAR10
    _, labels = arrays(cifar10.splits["validation"])
    assert list(np.bincount(labels)) == [500] * 10
    images, _ = arrays(cifar10.splits["train"])
    levels = np.arange(256) / 255
    for values, mean, std in zip(np.moveaxis(images, -1, 0), CIFAR10.mean, CIFAR10.std):
        shares = np.bincount(values.ravel(), minlength=256) / values.size
        assert shares @ levels == pytest.approx(mean, abs=1e-3)
        assert np.sqrt(shares @ (levels - mean) ** 2) == pytest.approx(std, abs=1e-3)
    batches = pipeline.training_batches(
        cifar10, batch_size=500, augmentation={"pad_crop_flip": {}}, preprocessing=CIFAR10, seed=0
    )
    images, _ = next(batches.as_numpy_iterator())
    assert images.mean() == pytest.approx(0, abs=0.1)
    assert images.std() == pytest.approx(1, abs=0.1)


def test_missing_data_says_where_and_how(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert error_text("cifar100") == (
        f"The dataset 'cifar100' is not prepared. Expected it in '{tmp_path}/cifar100'. "
        f"Received: data_dir=None, TFDS_DATA_DIR='{tmp_path}'. Set --data-dir or TFDS_DATA_DIR to "
        "the directory that holds 'cifar100', or download it once with: "
        'python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('cifar100', data_dir='{tmp_path}').download_and_prepare()\""
    )


def test_a_missing_version_is_missing_data(tfds_dir):
    assert error_text("whole:2.0.0", data_dir=tfds_dir).startswith(
        f"The dataset 'whole:2.0.0' is not prepared. Expected it in '{tfds_dir}/whole'."
    )


def test_a_damaged_file_of_a_tfds_dataset_is_said_to_be_one(tfds_dir, tmp_path):
    shutil.copytree(tfds_dir / "grey", tmp_path / "grey")
    (path,) = tmp_path.rglob("grey-train.*")
    path.write_bytes(path.read_bytes()[:-10])
    message = error_text("grey", data_dir=tmp_path)
    assert message.startswith(
        "The files of the dataset 'grey' cannot be read. Expected them as TFDS has prepared them "
        f"in '{tmp_path}/grey/1.0.0'. Received: truncated record at "
    )
    path.unlink()
    assert f"{path}; No such file or directory" in error_text("grey", data_dir=tmp_path)


@pytest.mark.parametrize("prepared", [("train", "validation"), ("train", "validation", "test")])
def test_without_labels_for_test_the_validation_images_take_its_place(
    prepared, tfds_dir, monkeypatch
):
    """As with ImageNet's test images, which few people have downloaded."""
    builder = tfds.builder("secret", data_dir=tfds_dir)
    found = tfds.core.SplitDict([builder.info.splits[split] for split in prepared])
    monkeypatch.setattr(type(builder.info), "splits", found)
    monkeypatch.setattr(tfds, "builder", lambda *_, **__: builder)
    secret = datasets.load("secret", data_dir=tfds_dir)
    assert counts(secret) == {"train": 54, "test": 12, "validation": 6}


def test_transparency_is_dropped_in_memory_as_in_files(tfds_dir, monkeypatch):
    held = datasets.load("clear", data_dir=tfds_dir).splits
    assert sum(split.num_examples for split in held.values()) == 60
    monkeypatch.setattr(datasets, "IN_MEMORY_BYTES", 0)
    from_files = datasets.load("clear", data_dir=tfds_dir).splits
    first, second = (
        {image.numpy().tobytes() for split in each.values() for image, _ in split.examples()}
        for each in (held, from_files)
    )
    assert first == second


def test_images_of_other_values_than_files_have_are_refused(tfds_dir, monkeypatch):
    monkeypatch.setattr(tfds.features.Image, "np_dtype", np.float32)
    assert error_text("whole", data_dir=tfds_dir) == (
        "The images of 'whole' have other values than those of files. Expected uint8, 0 to 255. "
        "Received: float32. Prepare the dataset with such images."
    )


def test_no_split_is_cut_from_images_in_an_order_of_their_own(tfds_dir, monkeypatch):
    """Such as by class: the first tenth would be of one."""
    monkeypatch.setattr(tfds.core.DatasetInfo, "disable_shuffling", True)
    assert counts(datasets.load("varied", data_dir=tfds_dir))["train"] == 60  # it has its own
    assert error_text("secret", data_dir=tfds_dir) == (
        "The images of 'secret' stand in an order of their own, so that a slice of them is no "
        "sample. Expected shuffled ones, or splits of its own for validation. Received: "
        "disable_shuffling=True. Prepare the dataset without it, or with these splits."
    )


def test_an_unknown_name_gets_the_nearest():
    assert error_text("cifer10") == (
        "Unknown dataset. Expected 'digits', 'folder:PATH' or a name of "
        "https://www.tensorflow.org/datasets/catalog/overview. Received: 'cifer10'. "
        "Did you mean 'cifar10'?"
    )
    assert error_text("digit").endswith("Did you mean 'digits'?")


# folders


def write(path, shape=(6, 8, 3), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def write_classes(root, **sizes):
    for name, count in sizes.items():
        for i in range(count):
            write(root / name / f"{i}.png", seed=i)
    return root


def test_a_folder_gives_every_class_its_share(tmp_path):
    write_classes(tmp_path, one=1, two=2, three=3, many=40)
    folder = datasets.load(f"folder:{tmp_path}")
    assert folder.class_names == ("many", "one", "three", "two")
    assert folder.image_shape == (None, None, 3)
    per_class = {
        name: list(np.bincount([label for _, label in split.examples()], minlength=4))
        for name, split in folder.splits.items()
    }
    assert per_class["test"] == [3, 0, 1, 1]
    assert per_class["validation"] == [3, 0, 1, 0]
    assert per_class["train"] == [34, 1, 1, 1]


@pytest.mark.parametrize("most_held", [2**30, 0], ids=["in_memory", "in_files"])
def test_names_of_files_need_not_be_utf8(tmp_path, monkeypatch, most_held):
    for path in sorted(write_classes(tmp_path, ant=4, bee=4).rglob("*.png")):
        path.rename(path.with_name(os.fsdecode(b"caf\xe9" + os.fsencode(path.name))))
    for limit in ("IN_MEMORY_BYTES", "ENCODED_BYTES"):
        monkeypatch.setattr(datasets, limit, most_held)
    folder = datasets.load(f"folder:{tmp_path}")
    assert counts(folder) == {"train": 4, "test": 2, "validation": 2}
    assert len(list(folder.splits["train"].examples())) == 4


def test_names_that_are_no_utf8_can_be_written_and_printed(tmp_path):
    cafe = os.fsdecode(b"caf\xe9")
    write_classes(tmp_path, **{cafe: 4, "tea": 4})
    (tmp_path / "tea" / cafe).mkdir()  # which cannot be read
    folder = datasets.load(f"folder:{tmp_path}", skip_corrupt=True)
    assert folder.class_names == ("caf\N{REPLACEMENT CHARACTER}", "tea")
    assert folder.skipped == ("tea/caf\N{REPLACEMENT CHARACTER}",)
    assert sum(counts(folder).values()) == 8


def test_a_folder_of_single_images_only_trains(tmp_path):
    write_classes(tmp_path, ant=1, bee=1)
    assert counts(datasets.load(f"folder:{tmp_path}")) == {"train": 2, "test": 0, "validation": 0}


def test_a_folder_with_splits_keeps_them(tmp_path):
    write_classes(tmp_path / "train", ant=4, bee=4)
    write_classes(tmp_path / "validation", ant=2, bee=2)
    write_classes(tmp_path / "test", ant=3)
    folder = datasets.load(f"folder:{tmp_path}")
    assert counts(folder) == {"train": 8, "validation": 4, "test": 3}


def test_a_folder_named_train_may_be_a_class(tmp_path):
    write_classes(tmp_path, bus=2, train=2)
    assert datasets.load(f"folder:{tmp_path}").class_names == ("bus", "train")


def test_images_become_rgb(tmp_path):
    colour = write(tmp_path / "ant" / "colour.png")
    grey = write(tmp_path / "ant" / "grey.png", shape=(5, 7))
    alpha = write(tmp_path / "ant" / "alpha.png", shape=(4, 4, 4))
    write(tmp_path / "ant" / "photo.jpg", shape=(5, 5))
    (tmp_path / "ant" / ".hidden").write_text("not an image, and not looked at")
    folder = datasets.load(f"folder:{tmp_path}", validation_examples=0)
    images = [image.numpy() for split in folder.splits.values() for image, _ in split.examples()]
    found = {image.shape: image for image in images}
    assert len(images) == 4
    np.testing.assert_array_equal(found[6, 8, 3], colour)
    np.testing.assert_array_equal(found[5, 7, 3], grey[..., None].repeat(3, -1))
    np.testing.assert_array_equal(found[4, 4, 3], alpha[..., :3])
    assert np.ptp(found[5, 5, 3], axis=-1).max() == 0


def test_images_are_held_as_far_as_they_fit(tmp_path, monkeypatch):
    """Decoded, as files, or not at all: always the same pixels, whole and in part."""
    for i in range(12):
        write(tmp_path / "images" / f"class{i % 2}" / f"{i}.png", shape=(6 + i, 20 - i, 3), seed=i)
    write(tmp_path / "images" / "class0" / "photo.jpg", shape=(30, 40, 3))
    name = f"folder:{tmp_path}/images"
    everything = datasets.load(name)
    decoded_bytes = sum(
        image.numpy().size for split in everything.splits.values() for image, _ in split.examples()
    )
    encoded_bytes = sum(path.stat().st_size for path in tmp_path.rglob("*.*"))

    def loaded(most_decoded, most_encoded):
        monkeypatch.setattr(datasets, "IN_MEMORY_BYTES", most_decoded)
        monkeypatch.setattr(datasets, "ENCODED_BYTES", most_encoded)
        return datasets.load(name)

    decoded = loaded(decoded_bytes, 0)
    encoded = loaded(decoded_bytes - 1, encoded_bytes)
    neither = loaded(decoded_bytes - 1, encoded_bytes - 1)

    def part(height, width):
        return height // 2, 1, height // 3, width - 1

    for split in everything.splits:
        for box in (None, part):
            found = [
                [
                    (image.numpy().tobytes(), image.shape, int(label))
                    for image, label in (of.fetch(key, box) for key in of.keys)
                ]
                for of in (dataset.splits[split] for dataset in (decoded, encoded, neither))
            ]
            assert found[0] == found[1] == found[2]
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    for dataset in (decoded, encoded):
        assert len(list(dataset.splits["train"].examples())) == counts(dataset)["train"]
    with pytest.raises(tf.errors.NotFoundError):
        list(neither.splits["train"].examples())


def test_a_box_of_images_of_one_size_is_a_part_of_the_array():
    images = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 1), dtype=np.uint8)
    split = splits.held_in_memory(images, np.arange(5))
    image, label = split.fetch(3, lambda height, width: (height - 4, 1, 2, width - 3))
    np.testing.assert_array_equal(image, images[3, 2:4, 1:5])
    assert label == 3


@pytest.fixture
def damaged(tmp_path):
    write_classes(tmp_path, ant=3, bee=3)
    write(tmp_path / "bee" / "whole.jpg", shape=(64, 64, 3))
    (tmp_path / "ant" / "empty.jpg").touch()
    whole = (tmp_path / "bee" / "whole.jpg").read_bytes()
    (tmp_path / "bee" / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "bee" / "notes.txt").write_text("about bees")
    (tmp_path / "ant" / "nested").mkdir()
    return tmp_path


def test_unreadable_files_are_named(damaged):
    assert error_text(f"folder:{damaged}") == (
        "Files that are no readable images: 4. Expected JPEG or PNG. Received: 'ant/empty.jpg', "
        f"'ant/nested', 'bee/half.jpg' and 1 more in '{damaged}'. "
        "Repair or remove them; `train` and `tune` leave them out with --skip-corrupt."
    )


def test_unreadable_files_can_be_left_out(damaged):
    folder = datasets.load(f"folder:{damaged}", skip_corrupt=True)
    assert folder.skipped == ("ant/empty.jpg", "ant/nested", "bee/half.jpg", "bee/notes.txt")
    assert sum(counts(folder).values()) == 7
    for split in folder.splits.values():
        assert len(list(split.examples())) == split.num_examples


def test_a_class_without_images_is_named(tmp_path):
    write_classes(tmp_path, ant=1)
    (tmp_path / "bee").mkdir()
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "empty.png").touch()
    assert error_text(f"folder:{tmp_path}", skip_corrupt=True) == (
        "A class folder has no images. Expected at least one JPEG or PNG in each. "
        f"Received: 'bee', 'cat' in '{tmp_path}'. Add images or remove the folder."
    )


def test_bad_folders_are_explained(tmp_path):
    missing = tmp_path / "missing"
    assert error_text(f"folder:{missing}") == (
        "The image folder does not exist. Expected a directory that holds one folder per class. "
        f"Received: '{missing}'."
    )
    assert error_text(f"folder:{tmp_path}") == (
        "The image folder has no classes. Expected one folder per class. "
        f"Received: '{tmp_path}' without folders."
    )
    write_classes(tmp_path / "train", ant=1)
    write_classes(tmp_path / "test", bee=1)
    assert error_text(f"folder:{tmp_path}") == (
        "Classes that the train images do not have. Expected 'ant'. "
        f"Received: 'bee' in '{tmp_path}/test'."
    )
    write_classes(tmp_path / "val", ant=1)
    assert error_text(f"folder:{tmp_path}") == (
        "The image folder mixes splits and classes. Expected the folders train and, if you like, "
        "validation and test, each with the class folders. Received: 'test', 'train', 'val' in "
        f"'{tmp_path}'."
    )
