"""timm's own tests of models, run on ours: TIMM_CHECKOUT is the folder of its checkout or unpacked sdist.

pip download --no-deps --no-binary :all: timm && tar xzf timm-*.tar.gz
TIMM_CHECKOUT=timm-1.0.31 python -m pytest -m slow tests/timm_plugin/test_timms_own_tests.py
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from covpool_plugins.timm_plugin import registered_models

CHECKOUT = os.environ.get("TIMM_CHECKOUT")
# Every backbone, and every head.
BACKBONES = [name for name, backbone, head in registered_models() if head == "isqrt" and backbone != "resnet152"]
NAMES = [*BACKBONES, "sot_tiny", *(name for name, backbone, head in registered_models() if backbone == "resnet18")]
# It wants the pooled vector of a transformer to be as long as a token, and maps of transformers that it does not know.
KNOWN = re.compile(
    r"test_model_default_cfgs(_non_std\[1-(vit|deit)_small_patch16_224_isqrt\]|\[1-(so_vit_\d+_isqrt|sot_tiny)\])"
)


@pytest.mark.slow
@pytest.mark.skipif(CHECKOUT is None, reason="needs TIMM_CHECKOUT")
def test_timms_own_tests_of_models(tmp_path):
    # Beside the checkout's own timm folder the tests would import that one.
    shutil.copytree(Path(str(CHECKOUT)) / "tests", tmp_path / "tests")
    chosen = " or ".join(dict.fromkeys(NAMES))
    options = "-q -rf -n 2 --import-mode=importlib -p no:cacheprovider"
    command = [sys.executable, "-m", "pytest", *options.split(), "tests/test_models.py"]
    run = subprocess.run(
        [*command, "-k", f"({chosen}) and not torchscript"],  # scripting is refused
        cwd=tmp_path,
        env={**os.environ, "TORCH_BACKEND": "covpool_plugins", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    failed = re.findall(r"^FAILED (\S+)", run.stdout, re.MULTILINE)
    print(run.stdout[-500:])
    assert " passed" in run.stdout, run.stdout[-3000:] + run.stderr[-3000:]
    assert [name for name in failed if not KNOWN.search(name)] == []
