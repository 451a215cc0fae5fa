"""The notebooks run from top to bottom, as a new user would run them."""

import pathlib
import re

import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

CHECKOUT = pathlib.Path(__file__).resolve().parent.parent
NOTEBOOKS = {path.stem: path for path in sorted((CHECKOUT / "notebooks").glob("*.ipynb"))}


def marks(path):
    reads_cifar10 = re.search(r'tfds\.load\(\s*"cifar10"', source(path))
    return [pytest.mark.cifar10] if reads_cifar10 else []


def source(path):
    return "\n".join(cell.source for cell in nbformat.read(path, 4).cells)


ROWS = [pytest.param(path, marks=marks(path), id=name) for name, path in NOTEBOOKS.items()]


@pytest.mark.slow
@pytest.mark.parametrize("path", ROWS)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    notebook = nbformat.read(path, 4)
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()  # an error of a cell is raised
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output.get("name") == "stderr"]


@pytest.mark.parametrize("path", NOTEBOOKS.values(), ids=NOTEBOOKS)
def test_a_notebook_is_kept_without_its_outputs(path):
    for cell in nbformat.read(path, 4).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
