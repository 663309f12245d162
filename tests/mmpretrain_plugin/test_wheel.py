"""The wheel in an environment of its own, used from another folder: by timm, by MMPretrain and by openmim."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]
MIM = "covpool_plugins/.mim/"
CONFIG = "resnet18_svdpade_textures.py"
# openmim imports pkg_resources, which setuptools no longer has from 82 on.
FOR_OPENMIM = ["openmim", "setuptools<82"]
TIMM = "import timm, covpool_plugins; print(timm.create_model('resnet18_svdpade', num_classes=3).head.fc.out_features)"
MMPRETRAIN = """
import covpool_plugins, mmpretrain
names = mmpretrain.list_models("*svdpade*", task="Image Classification")
model = mmpretrain.get_model(names[0])
print(type(model.neck).__name__, model._config.filename)
"""
CONFIG_ALONE = """
import sys
from importlib.util import find_spec
from pathlib import Path
from mmengine.config import Config
from mmpretrain.registry import MODELS
folder = Path(find_spec("covpool_plugins").origin).parent / ".mim" / "configs"
cfg = Config.fromfile(folder / "resnet" / "resnet50_svdpade_8xb32_in1k.py")
assert "covpool_plugins" not in sys.modules
print(type(MODELS.build(dict(cfg.model.neck, _scope_="mmpretrain"))).__name__, cfg.filename)
"""

pytestmark = pytest.mark.slow


def run(*command, folder=ROOT, **environment):
    """The output of a command that sees no other copy of the package than that of its Python."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment = {**inherited, "OMP_NUM_THREADS": "1", **environment}
    command = [str(part) for part in command]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=folder, env=environment)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
    return result.stdout


def build_wheel(source, folder):
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, source)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build_wheel(ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def bin_folder(wheel, tmp_path_factory):
    """Of an environment that has the wheel and openmim.

    It borrows the installed dependencies, which are gigabytes, from this environment by a path that comes after its
    own packages. An editable install is not borrowed: `.pth` files count in an environment's own folder only.
    """
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", folder)
    pip = [folder / "bin" / "pip", "install", "--quiet"]
    run(*pip, "--no-deps", wheel)
    (own,) = folder.glob("lib/python*/site-packages")
    (own / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(*pip, f"{wheel}[mmpretrain]", *FOR_OPENMIM, "hatchling")
    return folder / "bin"


def contents(wheel):
    with ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_configs_and_tools_are_those_of_the_checkout(wheel):
    files = [path for path in (ROOT / "configs").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    files += [ROOT / "tools" / "train.py", ROOT / "tools" / "test.py"]
    expected = {f"{MIM}{path.relative_to(ROOT).as_posix()}": path.read_bytes() for path in files}
    expected[f"{MIM}model-index.yml"] = (ROOT / "configs" / "model-index.yml").read_bytes()
    assert {name: data for name, data in contents(wheel).items() if name.startswith(MIM)} == expected


def test_the_source_distribution_builds_the_same_wheel(bin_folder, tmp_path):
    run(bin_folder / "hatchling", "build", "--target", "sdist", "--directory", tmp_path)
    (archive,) = tmp_path.glob("*.tar.gz")
    assert contents(build_wheel(archive, tmp_path / "archive")) == contents(build_wheel(ROOT, tmp_path / "checkout"))


def test_the_installed_package(bin_folder, tmp_path):
    run(bin_folder / "pip", "check")
    where = run(bin_folder / "python", "-c", "import covpool_plugins; print(covpool_plugins.__file__)", folder=tmp_path)
    assert Path(where).is_relative_to(bin_folder.parent)
    assert run(bin_folder / "python", "-c", TIMM, folder=tmp_path) == "3\n"


@pytest.mark.parametrize("script", [MMPRETRAIN, CONFIG_ALONE], ids=["by name", "config, nothing of ours imported"])
def test_mmpretrain_builds_an_installed_config(bin_folder, tmp_path, script):
    printed = run(bin_folder / "python", "-c", script, folder=tmp_path).splitlines()
    kind, path = printed[-1].split()  # after what TIMMBackbone logs
    assert kind == "CovariancePooling"
    assert Path(path).is_relative_to(bin_folder.parent) and f"/{MIM}configs/" in path


def test_mim_trains_and_tests(bin_folder, textures, tmp_path):
    common = ["--gpus", 0, "--work-dir", "work", "--cfg-options", f"data_root={textures}", "train_cfg.max_epochs=1"]
    # openmim keeps a folder in the home directory.
    place = {"folder": tmp_path, "HOME": str(tmp_path)}
    run(bin_folder / "mim", "train", "covpool_plugins", CONFIG, *common, **place)
    checkpoint = ["--checkpoint", "work/epoch_1.pth", "--out", "metrics.json"]
    run(bin_folder / "mim", "test", "covpool_plugins", CONFIG, *checkpoint, *common, **place)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics.keys() == {"accuracy/top1"} and 0 <= metrics["accuracy/top1"] <= 100
    names = run(bin_folder / "mim", "search", "covpool_plugins", "--valid-config", **place)
    assert "resnet50_svdpade_8xb32_in1k" in names
