"""The coupled weight decay and the schedules, against NumPy, Keras' own SGD and the paper."""

import dataclasses

import keras
import numpy as np
import pytest

from training.optimizers import CoupledSGD, Lamb, learning_rate_schedule, make_optimizer
from training.recipes import get_recipe
from training.strategy import make_strategy


def shrink_alone(optimizer, steps=200):
    """A weight of 1 that never gets a gradient."""
    weight = keras.Variable(np.ones(3, "float32"), name="kernel")
    optimizer.build([weight])
    for _ in range(steps):
        optimizer.apply([keras.ops.zeros(3)])
    return float(weight.numpy()[0])


def numpy_sgd(weights, gradients, rate, momentum, decay, nesterov):
    """torch.optim.SGD as its documentation writes it, in float64."""
    buffer = np.zeros_like(weights)
    for gradient in gradients:
        gradient = gradient + decay * weights
        buffer = momentum * buffer + gradient
        weights = weights - rate * (gradient + momentum * buffer if nesterov else buffer)
    return weights


def test_a_weight_left_alone_decays_as_in_the_paper_and_not_as_in_keras():
    assert shrink_alone(CoupledSGD(0.1, 0.9, weight_decay=1e-4)) == pytest.approx(0.9811, abs=5e-5)
    keras_sgd = keras.optimizers.SGD(0.1, 0.9, weight_decay=1e-4)
    assert shrink_alone(keras_sgd) == pytest.approx(0.9980, abs=5e-5)


@pytest.mark.parametrize("nesterov", [False, True])
def test_steps_equal_a_float64_loop(nesterov):
    random = np.random.default_rng(0)
    start, gradients = random.normal(size=5), random.normal(size=(30, 5))
    weight = keras.Variable(start.astype("float32"), name="kernel")
    optimizer = CoupledSGD(0.05, 0.9, nesterov=nesterov, weight_decay=0.01)
    optimizer.build([weight])
    for gradient in gradients:
        optimizer.apply([keras.ops.convert_to_tensor(gradient, "float32")])
    expected = numpy_sgd(start, gradients, 0.05, 0.9, 0.01, nesterov)
    np.testing.assert_allclose(weight.numpy(), expected, atol=1e-5)


def test_without_decay_it_is_keras_sgd():
    assert shrink_alone(CoupledSGD(0.1, weight_decay=0.0)) == 1.0


def test_excluded_names_are_not_decayed():
    kernel = keras.Variable(np.ones(1, "float32"), name="kernel")
    gamma = keras.Variable(np.ones(1, "float32"), name="gamma")
    optimizer = CoupledSGD(0.1, weight_decay=0.1, exclude=("gamma", "beta"))
    optimizer.build([kernel, gamma])
    optimizer.apply([keras.ops.zeros(1), keras.ops.zeros(1)])
    assert kernel.numpy()[0] == pytest.approx(0.99)
    assert gamma.numpy()[0] == 1.0


def test_it_survives_saving(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    rates = keras.optimizers.schedules.PiecewiseConstantDecay([3], [0.2, 0.02])
    optimizer = CoupledSGD(rates, nesterov=True, weight_decay=0.3, exclude=("bias",))
    model.compile(optimizer, "mse")
    model.fit(np.ones((8, 2)), np.ones((8, 1)), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.optimizer, CoupledSGD)
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    for each in (model, loaded):  # the momenta came along, and the decay goes on
        each.fit(np.ones((8, 2)), np.ones((8, 1)), verbose=0)
    np.testing.assert_allclose(loaded.get_weights()[0], model.get_weights()[0], rtol=1e-6)


def test_two_replicas_decay_as_one():
    random = np.random.default_rng(1)
    images, targets = random.normal(size=(16, 4)), random.normal(size=(16, 1))

    def train(replicas):
        with make_strategy(replicas).scope():
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
            model.set_weights([np.full((4, 1), 0.5), np.zeros(1)])
            model.compile(CoupledSGD(0.1, weight_decay=0.5), "mse")
        model.fit(images, targets, batch_size=8, epochs=3, shuffle=False, verbose=0)
        return model.get_weights()[0]

    np.testing.assert_allclose(train(2), train(1), rtol=1e-5)


def test_negative_decay_is_refused():
    with pytest.raises(ValueError, match="weights") as error:
        CoupledSGD(weight_decay=-1e-4)
    assert str(error.value) == (
        "Weight decay cannot grow the weights. Expected `weight_decay` >= 0. "
        "Received: weight_decay=-0.0001"
    )


def test_the_schedule_turns_exactly_at_the_milestones():
    rate = learning_rate_schedule(get_recipe("cifar10-resnet20"))
    steps = (0, 31_999, 32_000, 47_999, 48_000, 63_999)
    np.testing.assert_allclose(
        [float(rate(step)) for step in steps], [0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-6
    )


def test_the_warm_up_comes_first():
    rate = learning_rate_schedule(get_recipe("cifar10-resnet110"))
    np.testing.assert_allclose(
        [float(rate(step)) for step in (0, 399, 400, 32_000)], [0.01, 0.01, 0.1, 0.01], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("schedule", "middle"), [("one_cycle", 0.1), ("cosine", 0.2 * (1 + np.cos(np.pi / 2)) / 2)]
)
def test_a_linear_warm_up_and_a_fall_to_zero(schedule, middle):
    recipe = dataclasses.replace(get_recipe("cifar10-resnet20-fast"), schedule=schedule)
    rate = learning_rate_schedule(recipe)
    np.testing.assert_allclose(
        [float(rate(step)) for step in (0, 1_600, 3_200, 9_600, 16_000)],
        [0.02, 0.11, 0.2, middle, 0.0],
        atol=1e-7,
    )


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle"])
def test_whole_numbers_are_rates_too(schedule):
    recipe = get_recipe("digits-resnet20").changed(
        {"schedule": schedule, "milestones": [], "steps": 100, "learning_rate": 1, "momentum": 0}
    )
    assert make_optimizer(recipe).momentum == 0
    done = 0.3
    expected = 1 - done if schedule == "one_cycle" else (1 + np.cos(np.pi * done)) / 2
    assert float(learning_rate_schedule(recipe)(30)) == pytest.approx(expected, rel=1e-6)


def test_a_warm_up_survives_its_configuration():
    rate = learning_rate_schedule(get_recipe("cifar10-resnet20-fast"))
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(rate))
    assert float(again(5_000)) == float(rate(5_000))


def test_a_recipe_without_milestones_keeps_its_rate():
    recipe = dataclasses.replace(get_recipe("cifar10-resnet20"), milestones=())
    rate = learning_rate_schedule(recipe)
    assert [float(rate(step)) for step in (0, 1, 63_999)] == pytest.approx([0.1] * 3)


def test_the_optimizer_follows_the_recipe():
    config = make_optimizer(get_recipe("cifar10-resnet20")).get_config()
    assert (config["momentum"], config["nesterov"], config["weight_decay"]) == (0.9, False, 1e-4)
    assert config["exclude"] == []


def numpy_lamb(weights, gradients, rate, decay, adapts):
    """You et al. 2020, algorithm 2, in float64."""
    first, second = np.zeros_like(weights), np.zeros_like(weights)
    for step, gradient in enumerate(gradients, start=1):
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        update = first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.999**step)) + 1e-6)
        if adapts:
            update = update + decay * weights
            update = update * np.linalg.norm(weights) / np.linalg.norm(update)
        weights = weights - rate * update
    return weights


@pytest.mark.parametrize("name", ["kernel", "gamma"])
def test_lamb_equals_a_float64_loop(name):
    random = np.random.default_rng(2)
    start, gradients = random.normal(size=6), random.normal(size=(20, 6))
    weight = keras.Variable(start.astype("float32"), name=name)
    optimizer = Lamb(0.01, weight_decay=0.1, exclude=("gamma",))
    optimizer.build([weight])
    for gradient in gradients:
        optimizer.apply([keras.ops.convert_to_tensor(gradient, "float32")])
    expected = numpy_lamb(start, gradients, 0.01, 0.1, adapts=name == "kernel")
    np.testing.assert_allclose(weight.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("optimizer", [CoupledSGD, Lamb])
def test_two_replicas_clip_the_gradient_of_the_whole_batch(optimizer):
    """Keras clips each replica's gradient before the sum, which is another step."""
    random = np.random.default_rng(3)
    images, targets = random.normal(size=(16, 4)), random.normal(size=(16, 1))

    def train(replicas):
        with make_strategy(replicas).scope():
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
            model.set_weights([np.full((4, 1), 0.5), np.zeros(1)])
            model.compile(optimizer(0.1, weight_decay=0.01, global_clipnorm=0.1), "mse")
        model.fit(images, targets, batch_size=8, epochs=3, shuffle=False, verbose=0)
        return model.get_weights()[0]

    np.testing.assert_allclose(train(2), train(1), rtol=1e-5)


def test_lamb_survives_saving():
    optimizer = Lamb(0.01, weight_decay=0.3, exclude=("bias",), global_clipnorm=1.0)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer))
    assert isinstance(again, Lamb)
    assert again.get_config() == optimizer.get_config()


def test_recipes_choose_lamb_clipping_and_the_average_of_weights():
    config = make_optimizer(get_recipe("imagenet-resnet50-a1")).get_config()
    assert (config["name"], config["weight_decay"]) == ("lamb", 0.01)
    assert config["global_clipnorm"] == 1.0
    config = make_optimizer(get_recipe("imagenet-resnet50-torchvision-v2")).get_config()
    assert (config["use_ema"], config["ema_momentum"]) == (True, 0.999966)
    assert config["exclude"] == ["gamma", "beta"]
