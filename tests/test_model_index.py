"""Our configs by name in MMPretrain."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmpretrain import FeatureExtractor, ImageClassificationInferencer, get_model, inference_model, list_models
from mmpretrain.apis.model import ModelHub
from modelindex.load_model_index import load

from covpool_plugins import CovariancePooling, model_index
from covpool_plugins.model_index import INDEX_FILES, find_index, register_configs

ROOT = Path(__file__).parents[1]
NAME = "resnet50_svdpade_8xb32_in1k"
# The same parts, smaller.
SMALL = dict(backbone=dict(depth=18), neck=dict(in_channels=512, reduce_channels=16))


def test_the_index_is_valid():
    path, folder = find_index()
    index = load(str(path))
    assert index.check(silent=True) == [] and len(index.models) > 0
    for model in index.models:
        assert (folder / model.config).is_file() and Path(model.config).stem == model.name
        # MMPretrain lists models by the task of their results, and keeps names in lower case.
        assert "Image Classification" in {result.task for result in model.results}
        assert model.name == model.name.lower() and model.in_collection


RELOADS = """
from mmpretrain.apis import model
importlib.reload(covpool_plugins)
assert model.ModelHub.has(name)
"""


@pytest.mark.fast_for("MMPretrain second")
@pytest.mark.parametrize(
    "imports",
    [
        "import mmpretrain; import covpool_plugins" + RELOADS,
        "import covpool_plugins; assert 'mmpretrain' not in sys.modules; import mmpretrain",
    ],
    ids=["MMPretrain first and both again", "MMPretrain second"],
)
def test_names_of_models_and_parts_are_known_whichever_is_imported_first(imports):
    code = f"import importlib, sys; name = {NAME!r}\n{imports}\n"
    code += "from mmpretrain.apis.model import ModelHub; from mmpretrain.registry import HOOKS, MODELS\n"
    code += "from mmengine.registry import MODELS as ROOT\n"
    code += "assert MODELS.get('CovariancePooling') and HOOKS.get('SpectrumHook') and ROOT.get('ZCANorm2d')\n"
    code += "print(ModelHub.has(name))"
    command = [sys.executable, "-W", "always", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert (result.returncode, result.stdout) == (0, "True\n"), result.stderr
    assert "covpool_plugins" not in result.stderr


def test_listed_and_built(recwarn):
    for names in (list_models("resnet50_svdpade"), ImageClassificationInferencer.list_models("*resnet50_svdpade*")):
        assert NAME in names
    assert NAME not in list_models(task="Image Caption")
    model = get_model(NAME, **SMALL)
    assert isinstance(model.neck, CovariancePooling) and not model.training
    assert model._metainfo.name == NAME and len(model._dataset_meta["classes"]) == 1000
    before = dict(ModelHub._models_dict)
    register_configs(sys.modules["mmpretrain.apis.model"])
    assert ModelHub._models_dict == before and NAME in before
    assert [warning for warning in recwarn if "covpool_plugins" in str(warning.message)] == []


def test_inferencers():
    photo = np.random.default_rng(0).integers(0, 256, (80, 64, 3), dtype=np.uint8)
    inferencer = ImageClassificationInferencer(NAME, pretrained=False, **SMALL)
    (result,) = inferencer(photo)
    assert result["pred_scores"].shape == (1000,) and isinstance(result["pred_class"], str)
    np.testing.assert_allclose(result["pred_scores"].sum(), 1, rtol=1e-5)
    assert inference_model(inferencer.model, photo)["pred_label"] == result["pred_label"]

    extract = FeatureExtractor(NAME, pretrained=False, **SMALL)
    (vector,) = extract(photo)[0]
    (stage,) = extract(photo, stage="backbone")[0]
    assert vector.shape == (16 * 17 // 2,) and stage.shape == (512, 7, 7)
    torch.testing.assert_close(extract.model.neck(stage[None])[0], vector)


class FullHub:
    """A hub in which a name is taken; it says so on two lines."""

    @staticmethod
    def register_model_index(path, config_prefix):
        raise ValueError(f"The model name is conflict in\n{path}.")


@pytest.mark.parametrize(
    "hub, files, reason",
    [
        (dict(ModelHub=FullHub), INDEX_FILES, "The model name is conflict in /"),
        ({}, INDEX_FILES, "has no attribute"),
        (dict(ModelHub=FullHub), [(Path("nowhere/model-index.yml"), Path())], "no model index; looked for nowhere"),
    ],
    ids=["conflict", "another API", "no index"],
)
def test_an_error_is_a_warning_of_one_line(hub, files, reason, monkeypatch):
    monkeypatch.setattr(model_index, "INDEX_FILES", files)
    with pytest.warns(UserWarning, match=f"does not know the configs of covpool_plugins: .*{reason}") as caught:
        register_configs(SimpleNamespace(**hub))
    assert [len(str(warning.message).splitlines()) for warning in caught] == [1]


def test_an_installed_index_goes_before_a_folder_beside_the_package(monkeypatch, tmp_path):
    assert find_index() == (ROOT / "configs" / "model-index.yml", ROOT)
    moved = [(tmp_path / index.relative_to(ROOT), tmp_path / folder.relative_to(ROOT)) for index, folder in INDEX_FILES]
    for index, _ in moved:
        index.parent.mkdir(parents=True)
        index.touch()
    monkeypatch.setattr(model_index, "INDEX_FILES", moved)
    assert find_index() == (tmp_path / "covpool_plugins/.mim/model-index.yml", tmp_path / "covpool_plugins/.mim")
