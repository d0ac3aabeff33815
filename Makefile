# The Python that makes the environments; CPython 3.10, 3.11 or 3.12 (both versions of Paddle exist for these).
PYTHON ?= python3

ENV = .venv
ENV26 = .venv-paddle26
DOWNLOAD = : once, a download of 200 to 300 MB, about a minute on a fast line

.PHONY: help demo lint test test-long clean

help:
	@echo 'make demo        pretrain, finetune, linear probe and inference on the data in data/ (CPU, about 10 minutes)'
	@echo 'make lint        the linter and the type checker (ruff and mypy, half a minute)'
	@echo 'make test        lint, and the tests on both supported versions of Paddle (CPU, about 10 minutes on 2 cores)'
	@echo 'make test-long   the tests that take minutes each'
	@echo 'make clean       remove the environments that the above make: $(ENV), $(ENV26)'
	@echo 'Another Python than $(PYTHON): make demo PYTHON=/path/to/python3.11'

demo: $(ENV)/.installed
	@$(ENV)/bin/python tools/demo.py

lint: $(ENV)/.installed-test
	@echo '== linter, formatter and type checker'
	@$(ENV)/bin/python -m ruff check --quiet .
	@$(ENV)/bin/python -m ruff format --check --quiet .
	@$(ENV)/bin/python -m mypy

# What touches oneDNN, precision and equality once more, as on processors that have no more than AVX2 or SSE4.1.
ISA = -m 'isa and not slow' $$(grep -rl --include='*.py' mark.isa tests)
AVX2 = env ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
SSE41 = env ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2
# Pages, reports, the command line and the repository itself do not depend on Paddle.
NO_PAGES = --ignore tests/repository --ignore tests/report --ignore tests/options
BESIDE = $(ENV26)/tests.log

# Two chains at once, with one thread each: the models of the tests are too small for more. The output of the second chain
# is shown at the end.
test: export OMP_NUM_THREADS = 1
test: $(ENV)/.installed-test $(ENV26)/.installed
	@echo '== tests on paddlepaddle 3.3; beside them, shown afterwards: lint, 2.6.2, and both with limited instruction sets'
	@{ $(MAKE) --no-print-directory lint && \
	   $(call run,tests on paddlepaddle 2.6.2,$(ENV26)/bin/python -m pytest -m 'not long and not slow' $(NO_PAGES)) && \
	   $(call run,paddlepaddle 2.6.2 with AVX2,$(AVX2) $(ENV26)/bin/python -m pytest $(ISA)) && \
	   $(call run,paddlepaddle 3.3 with AVX2,$(AVX2) $(ENV)/bin/python -m pytest $(ISA)) && \
	   $(call run,paddlepaddle 3.3 with SSE4.1,$(SSE41) $(ENV)/bin/python -m pytest $(ISA)) && \
	   $(call run,paddlepaddle 3.3: whole scripts,$(ENV)/bin/python -m pytest -m 'not long' tests/scripts); } > $(BESIDE) 2>&1 & second=$$!; \
	trap 'kill $$second 2> /dev/null; exit 130' INT TERM; \
	$(ENV)/bin/python -m pytest -m 'not long' --ignore tests/scripts; first=$$?; \
	wait $$second; ended=$$?; \
	cat $(BESIDE); \
	test $$first = 0 && test $$ended = 0

# $(1) title, $(2) command
run = { echo '== $(1)'; $(2); }

test-long: $(ENV)/.installed-test
	@$(ENV)/bin/python -m pytest -m long

clean:
	rm -rf $(ENV) $(ENV26) .mypy_cache .ruff_cache

# An environment counts as installed once its stamp exists, which is made last: an interrupted installation is repeated.
$(ENV)/.installed: requirements.txt requirements/common.txt
	$(call install,$(ENV),requirements.txt,$(DOWNLOAD))

$(ENV)/.installed-test: $(ENV)/.installed requirements/test.txt requirements/export.txt requirements/serve.txt
	$(call install,$(ENV),requirements/test.txt -r requirements/export.txt,)

$(ENV26)/.installed: requirements/paddle26.txt requirements/common.txt requirements/test.txt requirements/serve.txt
	$(call install,$(ENV26),requirements/paddle26.txt,$(DOWNLOAD))

# $(1) environment, $(2) requirements file, $(3) what to expect
define install
@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' || { echo \
    'make: $(PYTHON) is missing or is not Python 3.10, 3.11 or 3.12; name one: make PYTHON=/path/to/python3.11'; \
    exit 1; }
@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo \
    'make: $(PYTHON) has no venv or ensurepip to make environments; on Debian: apt-get install python3-venv'; \
    exit 1; }
@echo '== installing $(2) into $(1)$(3)'
@$(PYTHON) -m venv $(1)
@$(1)/bin/python -m pip install --quiet --disable-pip-version-check -r $(2)
@touch $@
endef
