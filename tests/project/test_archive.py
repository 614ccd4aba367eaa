"""What is archived says one version everywhere."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import yaml
from packaging.requirements import Requirement
from packaging.version import Version
from rooms import ROOT

import neox_lab as nl


def citation() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    return read


def test_the_newest_entry_of_the_changes_is_what_is_cited_and_installed() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## ([\d.]+) \((\d{4}-\d\d-\d\d)\)$", changes, re.MULTILINE)
    assert newest is not None
    assert newest.groups() == (nl.__version__, citation()["date-released"])
    assert citation()["version"] == nl.__version__


def test_what_is_cited_is_what_is_licensed() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'license = "{citation()["license"]}"' in project
    assert 'dynamic = ["version"]' in project, "nl.__version__ says it and nothing else"


def test_the_oldest_versions_that_are_tested_are_those_that_are_admitted() -> None:
    text = (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8")
    tested = {name: Version(v) for name, v in re.findall(r"^([\w-]+)==(.+)$", text, re.MULTILINE)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    admitted = [Requirement(each) for each in project["dependencies"]]
    oldest = {each.name.replace("_", "-"): Version(str(each.specifier)[2:]) for each in admitted}
    assert {name: tested.get(name) for name in oldest} == oldest
