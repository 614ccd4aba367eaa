PYTHON = .venv/bin/python

.PHONY: docs notebooks
docs: # the site, in site/; needs the extra `docs`
	$(PYTHON) docs/gallery.py
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict

notebooks: # each run again where it lies, one after another: about seven minutes
	$(PYTHON) -m jupyter nbconvert --log-level=WARN --to notebook --execute --inplace \
		--ExecutePreprocessor.timeout=600 --ExecutePreprocessor.record_timing=False \
		--ExecutePreprocessor.store_widget_state=False notebooks/*.ipynb
	$(PYTHON) -m ruff format notebooks
