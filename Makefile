# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.

# The interpreter of the virtual environments
export PYTHON3 ?= python3
export PYTEST
PYTHON = .venv/bin/python
PACKAGING = setup.py pyproject.toml tryton.cfg .ci/venv

# With this variable each of hundreds of programs would compile the module again
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help test coverage test-web test-desktop environments
.PHONY: postgresql browser screenshots locale demo bench package clean

help:
	@echo "make test     run all tests, on SQLite and PostgreSQL, trytond 8.2 and 8.0"
	@echo "              CHECKS='sqlite flake8' runs only these checks,"
	@echo "              PYTEST='-k priority -x' gives options to pytest"
	@echo "make coverage run the tests traced, and show the code that no test reaches"
	@echo "make test-web drive the web client of Tryton in a browser"
	@echo "make test-desktop"
	@echo "              drive the desktop client, on a display of its own"
	@echo "make screenshots"
	@echo "              make the pictures of the documentation by both clients"
	@echo "make locale   update the translations from the code"
	@echo "make demo     see emails go through the queue to an SMTP server"
	@echo "make bench    measure how fast the module is"
	@echo "make package  build the sdist and the wheel and check them"
	@echo "make clean    remove everything that these commands have made"

test: environments
	@$(PYTHON) tests/run.py $(CHECKS) --pytest="$$PYTEST"

coverage: .venv/stamp postgresql
	@$(PYTHON) tests/run.py --coverage \
	    postgresql engine servers modules sqlite plain

test-web: .venv-8.0/stamp .cache/sao/stamp browser
	@.venv-8.0/bin/pytest -o cache_dir=.cache/pytest/web tests_web $$PYTEST

test-desktop: .venv/stamp .cache/desktop/stamp
	@.venv/bin/pytest -o cache_dir=.cache/pytest/desktop tests_desktop $$PYTEST

screenshots: .venv-8.0/stamp .cache/sao/stamp browser
screenshots: .venv/stamp .cache/desktop/stamp
	@.venv-8.0/bin/python doc/screenshots.py web
	@.venv/bin/python doc/screenshots.py desktop

# At the same time, because each of them waits for the network half of the time
environments:
	@$(MAKE) --silent --jobs .venv/stamp .venv-8.0/stamp postgresql

postgresql:
	@$(PYTHON3) tests/postgresql.py > /dev/null 2>&1 || \
	    .ci/install postgresql

browser:
	@command -v chromedriver > /dev/null || \
	    .ci/install chromium chromium-driver fonts-liberation

locale: .venv/stamp
	@$(PYTHON) tests/catalogue.py

demo: .venv/stamp
	@$(PYTHON) demo/demo.py

bench: .venv/stamp
	@$(PYTHON) benchmarks/bench.py

package: .venv/stamp
	@$(PYTHON) .ci/package.py

.venv/stamp: $(PACKAGING)
	@.ci/venv .venv 8.2 modules

.venv-8.0/stamp: $(PACKAGING)
	@.ci/venv .venv-8.0 8.0 modules,web

.cache/sao/stamp: .ci/web
	@.ci/web .cache/sao

.cache/desktop/stamp: .ci/desktop
	@.ci/desktop .cache/desktop

clean:
	rm -rf .venv .venv-8.0 .cache .coverage .coverage.* .hypothesis
	rm -rf .pytest_cache build dist htmlcov *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
