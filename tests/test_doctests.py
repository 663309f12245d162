"""The examples in docstrings give what they say, and every public name has one.

An example may use the public names of its room (beside the rooms, those of its module), ``torch``, ``timm`` and
``covpool_plugins``; what it writes goes to a temporary folder.
"""

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
import timm
import torch

import covpool_plugins

ROOMS = ["linalg", "pooling", "whitening", "timm_plugin", "probe", "explain", "checkpoints"]
NEED_NO_EXAMPLE = {
    "Converted": "what load_original returns",
    "Explanation": "what explain returns",
    "Features": "what cached_features returns",
    "KeyReport": "a row of what load_original returns",
    "Randomization": "a row of what cascading_randomization returns",
    "SecondOrderModel": "mixed into the models that create_model returns; nobody builds one",
    "Spectrum": "what pool.spectrum returns",
}


def _public(room):
    module = importlib.import_module(f"covpool_plugins.{room}" if room else "covpool_plugins")
    return {name: getattr(module, name) for name in module.__all__}


def _modules():
    """(name, names that its examples may use) of every module of the rooms and beside them."""
    for module in pkgutil.iter_modules(covpool_plugins.__path__, "covpool_plugins."):
        room = module.name.removeprefix("covpool_plugins.")
        if not module.ispkg:
            yield module.name, vars(importlib.import_module(module.name))
        elif room in ROOMS:
            yield module.name, _public(room)
            package = importlib.import_module(module.name)
            for inner in pkgutil.walk_packages(package.__path__, f"{module.name}."):
                yield inner.name, _public(room)


def _examples():
    """Every docstring of the package that has examples, and the names that these may use."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    for name, public in _modules():
        for test in finder.find(importlib.import_module(name), name.removeprefix("covpool_plugins."), globs={}):
            if test.examples:
                yield pytest.param(test, public, id=test.name)


def _needing_examples():
    for room in ["", *ROOMS]:
        for name, value in _public(room).items():
            is_error = inspect.isclass(value) and issubclass(value, Exception)
            if (inspect.isclass(value) or inspect.isfunction(value)) and not is_error and name not in NEED_NO_EXAMPLE:
                yield pytest.param(value, id=f"{room or 'covpool_plugins'}.{name}")


EXAMPLES = list(_examples())


def test_no_example_is_left_out():
    package = Path(covpool_plugins.__file__).parent
    written = {path for path in package.rglob("*.py") if re.search(r"^ +>>> ", path.read_text(), re.MULTILINE)}
    assert written == {Path(parameter.values[0].filename) for parameter in EXAMPLES}


@pytest.mark.parametrize("example, public", EXAMPLES)
def test_an_example_gives_what_it_says(example, public, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example.globs = {"torch": torch, "timm": timm, "covpool_plugins": covpool_plugins, **public}
    differences = []
    doctest.DocTestRunner().run(example, out=differences.append)
    assert not differences, "".join(differences)


@pytest.mark.parametrize("value", list(_needing_examples()))
def test_every_public_name_has_an_example(value):
    reference = re.fullmatch(r":class:`(\w+)` of .*", value.__doc__)
    if reference:  # ZCANorm2d refers to ZCANorm
        value = getattr(inspect.getmodule(value), reference[1])
    assert ">>> " in value.__doc__


def test_the_names_without_an_example_are_public():
    everything = set().union(*(_public(room) for room in ROOMS))
    assert set(NEED_NO_EXAMPLE) <= everything
