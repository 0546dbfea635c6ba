"""What a plain install promises: complete packages, light imports, runnable examples, modules a stranger can read."""

import doctest
import importlib
import os
import pkgutil
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import alignscope

ROOT = Path(alignscope.__file__).parent
CODE = [p for p in ROOT.rglob("*.py") if not {".venv", "build", "tests", "benchmarks"} & set(p.relative_to(ROOT).parts)]
HEAVY = ("torch", "transformers", "pandas", "scipy", "plotly", "pyarrow", "peft", "pydantic")


def test_every_package_is_listed_for_the_build():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {".".join(("alignscope", *p.parent.relative_to(ROOT).parts)) for p in CODE if p.name == "__init__.py"}
    assert listed == found


@pytest.mark.parametrize("code", ["import alignscope", "from alignscope.cli import main"])
def test_nothing_heavy_is_imported_before_it_is_used(code):
    command = f"import sys; {code}; print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", ["", "audit", "trace", "score", "series", "steer train", "steer apply"])
def test_help_answers_within_its_budget(command):
    arguments = [*command.split(), "--help"]
    seconds = []
    for _ in range(3):
        before = os.times()
        subprocess.run([sys.executable, "-m", "alignscope.cli.main", *arguments], capture_output=True, check=True)
        after = os.times()
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(seconds) < 0.3, "CPU seconds, the best of three: other work on the machine is not counted"


def test_public_names_exist_and_are_documented():
    for name in alignscope.__all__:
        value = getattr(alignscope, name)
        if name != "__version__":
            assert value.__doc__, f"alignscope.{name} has no docstring"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        alignscope.lode  # noqa: B018


@pytest.mark.parametrize(
    "name",
    [
        m.name
        for m in pkgutil.walk_packages(alignscope.__path__, "alignscope.")
        if not set(m.name.split(".")) & {"tests", "benchmarks", "build"}
    ],
)
def test_examples_in_docstrings_run(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


def test_modules_stay_short():
    lengths = {p.relative_to(ROOT).as_posix(): len(p.read_text().splitlines()) for p in CODE}
    assert {name: n for name, n in lengths.items() if n > 400} == {}
    assert statistics.median(lengths.values()) <= 150
    assert [name for name in lengths if Path(name).stem in {"utils", "common", "helpers"}] == []


def test_version_matches_the_metadata():
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == alignscope.__version__
