"""CONTRIBUTING.md is true: what it names exists, and a method added as it says works everywhere."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.documents import ROOT, check_command, fenced_blocks, named_files, parametrized_commands

CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
PACKAGE = ROOT / "covpool_plugins"
ROOMS = re.findall(r"^\| `(\w+)` \|", CONTRIBUTING.split("\n## The house\n")[1].split("\n## ")[0], re.MULTILINE)
NEW_FILE = re.compile(r"New file `([^`]+)`:\s*$")
BLOCKS = fenced_blocks(CONTRIBUTING)
((NEW, CODE),) = [(found[1], block.code) for block in BLOCKS if (found := NEW_FILE.search(block.before))]
(FOLLOWS,) = [block.code for block in BLOCKS if not NEW_FILE.search(block.before)]
(NAME,) = re.findall(r'SQUARE_ROOTS\.add\(\s*"(\w+)"', CODE)
(WRITE_DOCS,) = re.findall(r"^    (COVPOOL_WRITE_DOCS=.*)$", CONTRIBUTING, re.MULTILINE)


def test_the_files_exist():
    files = set(named_files(CONTRIBUTING))
    assert NEW in files and len(files) > 5
    assert {file for file in files if not (ROOT / file).exists()} == {NEW}
    assert (ROOT / NEW).parent.is_dir()


@pytest.mark.parametrize("command", parametrized_commands(CONTRIBUTING))
def test_a_command_is_taken(command, tmp_path, monkeypatch):
    # The new method is not there: another one stands for it.
    check_command(command.replace(NAME, "exact"), tmp_path, monkeypatch)


# The house


def _imports(path: Path) -> set[str]:
    """Full names of all modules that a module imports, or imports from."""
    package = ("covpool_plugins", *path.relative_to(PACKAGE).parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = [*above, *(node.module or "").split(".")]
            found |= {".".join(filter(None, [*base, alias.name])) for alias in node.names}
    return found


def _imported_by(room: str) -> set[str]:
    return set().union(*(_imports(path) for path in (PACKAGE / room).rglob("*.py")))


def test_every_room_is_in_the_table():
    assert sorted(ROOMS) == sorted(folder.parent.name for folder in PACKAGE.glob("*/__init__.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_from_rooms_above_it(room):
    modules = _imported_by(room)
    assert not any(name.split(".")[0] == "studies" for name in modules)
    rooms = {name.split(".")[1] for name in modules if name.startswith("covpool_plugins.")} & set(ROOMS)
    allowed = set(ROOMS[: ROOMS.index(room) + 1])
    if room == "mmpretrain_plugin":
        allowed -= {"timm_plugin"}
    assert rooms <= allowed


@pytest.mark.parametrize("room", ROOMS[:3])
def test_the_first_rooms_know_no_ecosystem(room):
    outside = {name.split(".")[0] for name in _imported_by(room)}
    assert "torch" in outside and not outside & {"timm", "mmengine", "mmpretrain", "mmcv"}


# The method

CHECKS = """
import sys
import timm, torch
import covpool_plugins
from covpool_plugins import CovariancePooling, explain, linalg

root, name = sys.argv[1:]
assert covpool_plugins.__file__.startswith(root)
assert name in linalg.list_methods() and name in covpool_plugins.list_heads()

A = linalg.covariance(torch.randn(3, 8, 40, dtype=torch.float64)).requires_grad_()
exact = linalg.sqrtm(A.detach(), "exact")
assert torch.linalg.matrix_norm(linalg.sqrtm(A, name) - exact).max() < 1e-9
assert torch.autograd.gradcheck(lambda A: linalg.sqrtm(A, name), A)
grads = [torch.autograd.grad(linalg.sqrtm(A, method).sin().sum(), A)[0] for method in (name, "exact")]
assert torch.allclose(*grads, atol=1e-6)

model = timm.create_model(f"resnet18_{name}", num_classes=5, reduce_channels=16)
x = torch.randn(2, 3, 64, 64)
model(x).square().sum().backward()
assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters()) and model.conv1.weight.grad.any()
found = explain.explain(model, x[:1], "contribution", target=1)
assert found.completeness_gap < 1e-4

neck = CovariancePooling(in_channels=64, pool=name, reduce_channels=16)
(vector,) = neck((torch.randn(2, 64, 7, 7, requires_grad=True),))
vector.sum().backward()
assert vector.shape == (2, 136)
"""


@pytest.fixture(scope="module")
def changed_copy(tmp_path_factory):
    """A copy of this repository with the method that the page adds."""
    copy = tmp_path_factory.mktemp("changed") / "copy"
    copy.mkdir()
    for folder in ("covpool_plugins", "configs", "docs", "tests", "tools"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("README.md", "CONTRIBUTING.md", "pyproject.toml", "Makefile"):
        shutil.copy(ROOT / file, copy / file)
    (copy / NEW).write_text(CODE)
    variable, *command = WRITE_DOCS.split()
    assert command[0] == "python"
    _run(copy, *command[1:], **dict([variable.split("=")]))
    return copy


def _run(copy, *arguments, **variables):
    environment = {
        "PYTHONPATH": str(copy),
        "OMP_NUM_THREADS": "1",
        "PATH": str(Path(sys.executable).parent),
        **variables,
    }
    done = subprocess.run([sys.executable, *arguments], cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_new_method_is_everywhere(changed_copy):
    _run(changed_copy, "-W", "ignore", "-c", CHECKS, str(changed_copy), NAME)


@pytest.mark.slow
def test_what_the_page_says_follows(changed_copy):
    _run(changed_copy, "-W", "ignore", "-c", FOLLOWS)
    printed = _run(
        changed_copy,
        *("tools/benchmark.py", "linalg", "--methods", NAME),
        *("--channels", "8", "--positions", "25", "--batch", "2", "--repeats", "1"),
    )
    assert NAME in printed


@pytest.mark.slow
def test_the_new_method_passes_the_tests_of_the_table(changed_copy):
    tests = ("-m", "pytest", "-p", "no:cacheprovider", "-vv", "-m", "")
    names = f"{NAME} and not inductor"
    printed = _run(changed_copy, *tests, "tests/linalg", "tests/test_doctests.py", "-k", names)
    assert int(re.search(r"(\d+) passed", printed)[1]) > 80 and "test_doctests" in printed
    _run(changed_copy, *tests, "tests/test_head_table.py")
    assert f"| `{NAME}` |" in (changed_copy / "docs" / "heads.md").read_text()


@pytest.mark.slow
def test_the_new_file_is_in_the_style_of_the_house(changed_copy):
    for command in (["check"], ["format", "--check"]):
        _run(changed_copy, "-m", "ruff", *command, NEW)
