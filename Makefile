PYTHON = .venv/bin/python

.PHONY: docs
docs: # the site, in site/; needs the extra `docs`
	$(PYTHON) docs/gallery.py
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict
