"""The page of explanations in a real browser, on a desk and on a phone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
from PIL import Image
from skimage import data

from covpool_plugins.explain import ModelView
from covpool_plugins.explain.batch import Job, NamedModel, explain_pictures
from covpool_plugins.explain.page import write_page

BROWSER = Path(__file__).parents[1] / "support" / "browser.py"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    Image.fromarray(data.astronaut()).save(folder / "astro.png")
    names = ("resnet18_svdpade", "resnet18_gap")
    models = [
        timm.create_model(
            name, channels=(8, 8, 8, 16), num_classes=4, pretrained_cfg_overlay=dict(input_size=(3, 96, 96))
        )
        for name in names
    ]
    models = [NamedModel(name, ModelView.of(model)) for name, model in zip(names, models, strict=True)]
    job = Job(models, {"contribution": {}, "eigen": {}}, target=1, deletion_steps=0)
    return write_page(explain_pictures(job, [folder / "astro.png"], folder), folder)


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_page(page, width, tmp_path):
    pytest.importorskip("PySide6.QtWebEngineCore", reason="needs the extra 'browser'")
    command = [sys.executable, str(BROWSER), str(page), str(width), str(tmp_path / "page.png")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    seen = json.loads(done.stdout)
    assert seen["console"] == []
    assert seen["requests"] == []
    assert len(seen["pictures"]) == 6  # two models by two methods but one n/a, two montages, one panel
    assert all(natural > 0 and 0 < shown <= width for natural, shown in seen["pictures"])
    assert seen["page"] <= seen["window"]
    assert seen["words"] > 200


def test_page_needs_no_other_file(page):
    text = page.read_text()
    assert "://" not in text
    assert text.count("data:image/png") == 6
    assert "n/a" in text
    assert 'name="viewport"' in text
