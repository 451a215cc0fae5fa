# Each target sets up what it needs: a virtual environment in .venv, with tested versions.

PYTHON ?= python3
BIN := .venv/bin
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: demo test test-slow notebooks parity clean
.DEFAULT_GOAL := test

.venv/installed: setup.cfg constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[training,onnx,openvino,hub,dev]'
	touch $@

# Trains on two replicas, exports, verifies, and shows it. About three minutes.
demo: .venv/installed
	$(BIN)/python -m training demo

# All but the tests that take minutes. With TFDS_DATA_DIR set, those on the real CIFAR-10 too.
test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n auto --dist worksteal -m 'not slow and not parity' keras_resnet tests

test-slow: .venv/installed
	$(BIN)/python -m pytest -m 'slow and not parity' tests

# The notebooks, from the first cell to the last.
notebooks: .venv/installed
	$(BIN)/python -m pytest tests/test_notebooks.py

# On JAX, PyTorch, LiteRT, ONNX and OpenVINO; weights and preprocessing against where they come from.
parity: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[training,jax,parity]'
	$(BIN)/python -m pytest -n auto --dist worksteal -m parity tests

clean:
	rm -rf .venv build dist *.egg-info
