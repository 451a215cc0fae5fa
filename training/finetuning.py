"""Recipes that begin with published weights: `train finetune-resnet18 --dataset folder:PATH`."""

from training.recipe import Recipe


def _finetune(network, weights, **changes) -> Recipe:
    """Ours, for the images of `--dataset`; `--set freeze=stage3` trains the last stage alone.

    A small rate, a warm-up from nothing and a still stem: what was learnt is bent, not broken.
    """
    defaults = {
        "dataset": "folder:images",
        "batch_size": 32,
        "steps": 1_000,
        "learning_rate": 0.01,
        "warmup_steps": 100,
        "augmentation": {"inception_crop": {"area": [0.35, 1.0]}, "flip": {}},
        "label_smoothing": 0.1,
        "freeze": "stem",
    }
    return Recipe(
        name=f"finetune-{network.replace('_', '-')}",
        variant=network,
        weights=weights,
        schedule="cosine",
        warmup="linear",
        warmup_learning_rate=0.0,
        nesterov=True,
        reference="ours: " + weights + " weights on other images",
        **(defaults | changes),
    )


RECIPES = (
    _finetune("resnet18", "imagenet"),
    _finetune("resnet34", "imagenet"),
    _finetune("resnet50", "imagenet"),
    _finetune(
        "cifar_resnet20",
        "cifar10",
        dataset="digits",
        batch_size=128,
        steps=100,
        warmup_steps=10,
        augmentation={"shift": {}},
        measured_accuracy=0.9778,  # seed 0, one replica
    ),
)
