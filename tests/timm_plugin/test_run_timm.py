"""``tools/run_timm.py``: other people's scripts as Python would run them, and our models in them."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "run_timm.py"

# What a script sees of how it was started.
SCRIPT = """
import json, os, sys
print(json.dumps([os.path.abspath(sys.argv[0]), *sys.argv[1:], sys.path[0], __name__, __file__, __spec__ is None]))
"""


def run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, cwd=cwd)


def launch(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return run(TOOL, *arguments, cwd=cwd)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder like a checkout of timm, with a plugin that is quickly imported."""
    folder = tmp_path / "checkout"
    (folder / "timm").mkdir(parents=True)
    (folder / "timm" / "__init__.py").write_text("models = []")
    (folder / "covpool_plugins.py").write_text("import timm; timm.models.append('resnet50_svdpade')")
    (folder / "script.py").write_text(SCRIPT)
    return folder


def test_a_script_is_started_as_python_starts_it(checkout):
    arguments = ("checkout/script.py", "--model", "x", "--help", "--", "-c", "")
    plain = run(*arguments, cwd=checkout.parent)
    launched = launch(*arguments, cwd=checkout.parent)
    assert launched.returncode == 0, launched.stderr
    assert json.loads(launched.stdout) == json.loads(plain.stdout)
    assert str(checkout) in json.loads(launched.stdout)


@pytest.mark.parametrize("python", [(), ("-P",)])
def test_the_timm_beside_the_script_goes_before_the_installed_one(checkout, python):
    if python and sys.version_info < (3, 11):
        pytest.skip("python -P came with Python 3.11")
    (checkout / "script.py").write_text("import sys, timm; print(timm.models, timm.__file__, 'torch' in sys.modules)")
    done = run(*python, TOOL, "script.py", cwd=checkout)
    assert done.stdout == f"['resnet50_svdpade'] {checkout / 'timm' / '__init__.py'} False\n", done.stderr


def test_a_link_to_a_script_finds_what_lies_beside_the_script_and_not_beside_the_launcher(checkout, tmp_path):
    (checkout / "benchmark.py").write_text("own = True")
    (checkout / "script.py").write_text("import benchmark, timm; print(benchmark.own, timm.models)")
    (tmp_path / "link.py").symlink_to(checkout / "script.py")
    assert launch(tmp_path / "link.py").stdout == "True ['resnet50_svdpade']\n"


@pytest.mark.parametrize(
    "body, status, ending",
    [
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('no data')", 1, "no data"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
        ("raise ImportError('of the script')", 1, "ImportError: of the script"),
    ],
)
def test_the_scripts_own_end_passes_through(checkout, body, status, ending):
    (checkout / "script.py").write_text(body)
    done = launch(checkout / "script.py")
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.strip().endswith(ending)
    assert ("script.py" in done.stderr) == ("Error" in ending)  # a traceback names the script


def test_functions_of_the_script_reach_spawned_processes(checkout):
    (checkout / "script.py").write_text(
        "import multiprocessing, sys, timm\n"
        "def work(n):\n    return n, sys.argv[1], len(timm.models)\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n        print(pool.map(work, [1, 2]))\n"
    )
    done = launch("script.py", "given", cwd=checkout)
    assert done.stdout == "[(1, 'given', 0), (2, 'given', 0)]\n", done.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "the following arguments are required: SCRIPT.py"),
        (("nowhere/validate.py", "--model", "resnet50_svdpade"), "nowhere/validate.py: no such file"),
        (("checkout",), "checkout: is a folder; name a script in it"),
        (("--model", "x", "script.py"), "the script comes first, then its arguments; got --model before x"),
        (("checkout/script.py",), "the plugin cannot be imported: cannot import name 'register_model'"),
    ],
)
def test_bad_input_is_one_line(checkout, arguments, message):
    (checkout / "covpool_plugins.py").write_text("from timm import\\\n register_model")
    done = launch(*arguments, cwd=checkout.parent)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"run_timm.py: {message}") and done.stderr.count("\n") == 1


def test_our_models_are_there(tmp_path, monkeypatch, capsys):
    script = tmp_path / "script.py"
    script.write_text("import sys, timm; print(type(timm.create_model(sys.argv[1], device='meta')).__name__)")
    monkeypatch.setattr(sys, "argv", ["run_timm.py"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    runpy.run_path(str(TOOL))["main"]([str(script), "resnet18_isqrt"])
    assert capsys.readouterr().out == "SecondOrderResNet\n"


@pytest.mark.slow
def test_two_processes_train_our_models_and_their_loaders_have_workers(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "import sys, timm, torch\n"
        "from torch import distributed\n"
        "class Pictures(torch.utils.data.Dataset):\n"
        "    def __len__(self): return 4\n"
        "    def __getitem__(self, i): return torch.full((3, 64, 64), float(i)), i % 3\n"
        "if __name__ == '__main__':\n"
        "    torch.set_num_threads(1)\n"
        "    distributed.init_process_group('gloo')\n"
        "    torch.manual_seed(0)\n"
        "    model = timm.create_model('resnet18_svdpade', num_classes=3, reduce_channels=8)\n"
        "    model = torch.nn.parallel.DistributedDataParallel(model)\n"
        "    loader = torch.utils.data.DataLoader(Pictures(), 4, num_workers=1, multiprocessing_context=sys.argv[1])\n"
        "    for x, y in loader:\n"
        "        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(distributed.get_rank()))\n"
        "        torch.nn.functional.cross_entropy(model(x + noise), y).backward()\n"
        "    grads = [torch.empty_like(model.module.conv1.weight) for _ in range(2)]\n"
        "    distributed.all_gather(grads, model.module.conv1.weight.grad)\n"
        "    assert torch.equal(*grads) and grads[0].norm() > 0\n"
        "    if distributed.get_rank() == 0: print('trained')\n"
        "    distributed.barrier()\n"
        "    distributed.destroy_process_group()\n"
    )
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "2")
    done = run(*torchrun, "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", TOOL, script, "spawn")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "trained\n"
