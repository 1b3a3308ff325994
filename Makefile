# One command each; CI runs `make check`. Every target makes .venv if it is missing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt

.PHONY: demo test check format lint types bench games clean

demo: $(VENV)/.installed  ## train masked PPO on Taxi, evaluate, plot
	$(BIN)/rlmask train configs/ppo/taxi.yaml

test: $(VENV)/.dev  ## all tests
	$(BIN)/pytest -q -n 2

check: lint types test  ## what CI runs: format, lint, types, tests

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.dev
	$(BIN)/basedpyright

format: $(VENV)/.dev  ## rewrite the code in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.dev  ## against sb3-contrib, Stable-Baselines3, Tianshou, torchrl; over an hour
	$(PIP) -e '.[bench]'
	$(BIN)/python scripts/benchmark_ppo.py
	$(BIN)/python scripts/benchmark_dqn.py
	$(BIN)/python scripts/benchmark_replay.py
	$(BIN)/python scripts/benchmark_envs.py
	$(BIN)/python scripts/benchmark_native.py

games: $(VENV)/.dev  ## every mask of the games against brute force, PPO on each; an hour
	$(BIN)/python scripts/check_games.py
	$(BIN)/python scripts/train_games.py

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
	find rlmask envs -name '*.nb[ci]' -delete

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch==$$(sed -n 's/^torch==//p' constraints.txt)  # first, and alone: its small CPU build
	$(PIP) -e '.[video]'
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(PIP) -e '.[dev]'
	touch $@
