"""The direction of the house: who may import whom."""

import ast
import pathlib
import subprocess
import sys

import pytest

import keras_resnet

ROOT = pathlib.Path(__file__).parents[1]

# Which modules of the library a module may import; each may import `errors` besides.
DRAWING = ("blocks", "shortcuts", "stems", "parts", "layers", "variants")
ALLOWED = {
    "errors": (),
    "preprocessing": ("resampling", "imagenet_classes"),
    "resampling": (),
    "imagenet_classes": (),
    "macs": (),
    "layers": (),
    "variants": ("preprocessing",),
    "parts": ("layers", "variants"),
    "stems": ("parts", "layers", "variants"),
    "shortcuts": ("parts", "layers", "variants"),
    "blocks": DRAWING[1:],
    "axes": DRAWING,
    "models": ("axes", *DRAWING, "weights", "preprocessing", "replica_xla"),
    "applications": ("models", "axes", "variants"),
    "dropping": ("layers",),
    "replica_xla": ("dropping", "sharing"),
    "sharing": (),
    "weights": ("layers", "variants", "preprocessing"),
    "surgery": ("models", "macs", *DRAWING),
    "ensemble": ("models", "surgery", "preprocessing"),
    "export": ("layers", "preprocessing", "resampling", "surgery"),
}
# Modules of TensorFlow alone, which `models` imports where that is the backend.
OF_TENSORFLOW = {"replica_xla", "dropping", "sharing"}


def modules(package):
    """Paths of the modules of a package, with the part of the house each belongs to."""
    folder = ROOT / package
    found = [(path, path.relative_to(folder).parts[0]) for path in sorted(folder.rglob("*.py"))]
    return [(path, part.removesuffix(".py")) for path, part in found if part != "__init__.py"]


def imports(path, *, top_level=False):
    """Names that a module imports, e.g. `keras_resnet.models.build`, relative ones resolved."""
    tree = ast.parse(path.read_text())
    lazy = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(tree):
        if top_level and id(node) in lazy:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            source = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{source}.{alias.name}" for alias in node.names)


def identity(path):
    return str(path[0].relative_to(ROOT)) if isinstance(path, tuple) else str(path)


@pytest.mark.parametrize("module", modules("keras_resnet"), ids=identity)
def test_the_library_imports_in_one_direction(module):
    path, part = module
    assert part in ALLOWED, f"{part} has no place in DESIGN.md, section 2, and in ALLOWED"
    for name in imports(path):
        assert not name.startswith("training"), f"{part} -> {name}: the library knows no training"
        if name.split(".")[0] == "keras_resnet":
            target = name.split(".")[1]
            assert target in {part, "errors", *ALLOWED[part]}, f"{part} -> {name}"


@pytest.mark.parametrize("module", modules("keras_resnet"), ids=identity)
def test_tensorflow_is_imported_late(module):
    path, part = module
    late = {"tensorflow", *(f"keras_resnet.{name}" for name in OF_TENSORFLOW)}
    for name in imports(path, top_level=True) if part not in OF_TENSORFLOW else ():
        assert not any(name == module or name.startswith(f"{module}.") for module in late), name


@pytest.mark.parametrize("module", modules("training"), ids=identity)
def test_training_uses_only_public_names(module):
    for name in imports(module[0]):
        package, *parts = name.split(".")
        if package == "keras_resnet" and parts:
            assert parts[0] in {*keras_resnet.__all__, "errors", "preprocessing"}, name
            assert not any(part.startswith("_") for part in parts), name


def test_macs_knows_keras_only():
    names = {name.split(".")[0] for name in imports(ROOT / "keras_resnet" / "macs.py")}
    assert names == {"math", "keras"}


def test_there_is_no_drawer_for_odds_and_ends():
    names = {path.stem for package in ("keras_resnet", "training") for path, _ in modules(package)}
    assert not names & {"utils", "helpers", "common", "misc"}


@pytest.mark.parametrize(
    ("backend", "unwanted"),
    [
        pytest.param("jax", "tensorflow", marks=pytest.mark.parity),
        ("tensorflow", "training"),
    ],
)
def test_importing_the_library_does_not_import(backend, unwanted):
    pytest.importorskip(backend, reason=f"needs {backend}: make parity")
    script = f"import sys, keras_resnet; sys.exit({unwanted!r} in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={"KERAS_BACKEND": backend, "PATH": "", "TF_CPP_MIN_LOG_LEVEL": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, f"imported {unwanted} {result.stderr}"
