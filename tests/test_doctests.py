"""The examples in docstrings say what the code does, and every public name has one.

An example may use the public names of its room, ``torch``, ``timm`` and ``covpool_plugins``; what it writes goes to a
temporary folder.
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

ROOMS = ["linalg", "pooling", "whitening", "timm_plugin", "explain", "checkpoints"]
NEED_NO_EXAMPLE = {
    "Converted": "what load_original returns",
    "Explanation": "what explain returns",
    "KeyReport": "a row of what load_original returns",
    "Randomization": "a row of what cascading_randomization returns",
    "SecondOrderModel": "mixed into the models that create_model returns; nobody builds one",
    "Spectrum": "what pool.spectrum returns",
}


def _public(room):
    module = importlib.import_module(f"covpool_plugins.{room}" if room else "covpool_plugins")
    return {name: getattr(module, name) for name in module.__all__}


def _examples():
    """(id, doctest, room) of every docstring of the package that has examples."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    for room in ROOMS:
        package = importlib.import_module(f"covpool_plugins.{room}")
        names = [found.name for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
        for name in [package.__name__, *names]:
            module = importlib.import_module(name)
            for test in finder.find(module, name.removeprefix("covpool_plugins."), globs={}):
                if test.examples:
                    yield pytest.param(test, room, id=test.name)


def _needing_examples():
    for room in ["", *ROOMS]:
        for name, thing in _public(room).items():
            is_error = inspect.isclass(thing) and issubclass(thing, Exception)
            if (inspect.isclass(thing) or inspect.isfunction(thing)) and not is_error and name not in NEED_NO_EXAMPLE:
                yield pytest.param(thing, id=f"{room or 'covpool_plugins'}.{name}")


EXAMPLES = list(_examples())


def test_no_example_is_left_out():
    package = Path(covpool_plugins.__file__).parent
    written = {path for path in package.rglob("*.py") if re.search(r"^ +>>> ", path.read_text(), re.MULTILINE)}
    assert written == {Path(parameter.values[0].filename) for parameter in EXAMPLES}


@pytest.mark.parametrize("example, room", EXAMPLES)
def test_an_example_gives_what_it_says(example, room, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example.globs = {"torch": torch, "timm": timm, "covpool_plugins": covpool_plugins, **_public(room)}
    said = []
    doctest.DocTestRunner().run(example, out=said.append)
    assert not said, "".join(said)


@pytest.mark.parametrize("thing", list(_needing_examples()))
def test_every_public_name_has_an_example(thing):
    documented = thing
    reference = re.fullmatch(r":class:`(\w+)` of .*", thing.__doc__)
    if reference:  # ZCANorm2d refers to ZCANorm
        documented = getattr(inspect.getmodule(thing), reference[1])
    assert ">>> " in documented.__doc__


def test_the_names_without_an_example_are_public():
    everything = set().union(*(_public(room) for room in ROOMS))
    assert set(NEED_NO_EXAMPLE) <= everything
