# The Python that makes the environments; CPython 3.10, 3.11 or 3.12 (both versions of Paddle exist for these).
PYTHON ?= python3

ENV = .venv
ENV26 = .venv-paddle26
DOWNLOAD = : once, a download of 200 to 300 MB, about a minute on a fast line

.PHONY: help demo lint test test-long clean

help:
	@echo 'make demo        pretrain, finetune, linear probe and inference on the data in data/ (CPU, about 10 minutes)'
	@echo 'make lint        the linter and the type checker (ruff and mypy, half a minute)'
	@echo 'make test        lint, and the tests on both supported versions of Paddle (CPU, at most 15 minutes on 2 cores)'
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

test: lint $(ENV)/.installed-test $(ENV26)/.installed
	$(call both,,-m 'not long',-m 'not long and not slow')
	$(call both,ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2,$(ISA),$(ISA))
	$(call both,ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2,$(ISA),$(ISA))

# Both versions at once, for most of a test's time is one core's; the second one's output is shown when both have ended.
# $(1) variables, $(2) which tests on Paddle 3.3, $(3) which on 2.6.2
define both
@echo '== tests, paddlepaddle 3.3; beside them those on 2.6.2, which are shown afterwards $(1)'
@env $(1) $(ENV26)/bin/python -m pytest $(3) > $(ENV26)/tests.log 2>&1 & second=$$!; \
trap 'kill $$second 2> /dev/null; exit 130' INT TERM; \
env $(1) $(ENV)/bin/python -m pytest $(2); first=$$?; \
wait $$second; ended=$$?; \
echo '== tests, paddlepaddle 2.6.2 $(1)'; cat $(ENV26)/tests.log; \
test $$first = 0 && test $$ended = 0
endef

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
