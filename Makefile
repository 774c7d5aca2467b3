# Two commands for newcomers, `make demo` and `make test`; the scripts that they start say the rest.

.PHONY: demo test bench chaos lint environment
.DEFAULT_GOAL := help

# Python 3.11 or newer: PYTHON, else on the PATH, else among pyenv's versions.
find_python = for python in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11 \
	$$(pyenv root 2>/dev/null | sed 's|$$|/versions/3.1[1-9]*/bin/python3|'); do \
		if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then break; fi; \
		python=; \
	done; \
	if [ -z "$$python" ]; then echo 'Python 3.11 or newer was not found (PYTHON=… names one).' >&2; exit 1; fi

.PHONY: help
help:
	@echo 'make demo   a year of flights through Kafka, Django and the admin (FLIGHTS=all, SERVE=0)'
	@echo 'make test   everything: servers, journeys, every Python and Django, lint, types'
	@echo 'make bench  ratios against the raw client and its peers (BENCH="words --rounds 5")'
	@echo 'make chaos  workers, brokers and the database broken on purpose (SEED=1 MINUTES=3 GUARANTEE=effect_once)'
	@echo 'make lint   ruff and mypy'

demo:
	@sh testproject/demo.sh

test:
	@$(find_python); exec $$python -m tests.run test

bench:
	@$(find_python); $$python -m tests.run prepare && exec .venv/bin/python -m benchmarks $(BENCH)

chaos:
	@$(find_python); $$python -m tests.run prepare && exec .venv/bin/python -m tests.chaos \
		$(if $(SEED),--seed $(SEED)) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(RATE),--rate $(RATE)) \
		$(if $(GUARANTEE),--guarantee $(GUARANTEE))

lint:
	@$(find_python); exec $$python -m tests.run lint
