"""Fitted probes as heads of timm models."""

import numpy as np
import pytest
import timm
import torch
from sklearn.neighbors import KNeighborsClassifier

from covpool_plugins import save_for_hub
from covpool_plugins.errors import OptionError
from covpool_plugins.probe import SecondOrderProbe, model_with_probe


def fitted(channels=512, classes=3, **options):
    X, y = np.random.default_rng(0).normal(size=(15, 9, channels)).astype(np.float32), np.arange(15) % classes
    return SecondOrderProbe(**{"channels": 6, **options}).fit(X, y), X


@pytest.mark.parametrize("classifier", ["logistic", "ridge"])
@pytest.mark.parametrize("pool", ["gap", "svdpade", "ibcnn", "gaussian"])
def test_the_head_gives_the_scores_of_the_probe(pool, classifier, tmp_path):
    probe, X = fitted(pool=pool, classifier=classifier)
    torch.manual_seed(0)
    model = model_with_probe(probe, "resnet10t").eval()
    maps = torch.from_numpy(X).mT.unflatten(2, (3, 3))
    with torch.no_grad():
        np.testing.assert_allclose(model.forward_head(maps), probe.decision_function(X), rtol=1e-3, atol=1e-4)
    save_for_hub(model, tmp_path / "hub")
    again = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(again(x), model(x))


def test_what_a_head_cannot_express_is_refused():
    with pytest.raises(OptionError, match="not linear: KNeighborsClassifier"):
        model_with_probe(fitted(classifier=KNeighborsClassifier(2))[0], "resnet10t")
    with pytest.raises(OptionError, match="'attention' is no head"):
        model_with_probe(fitted(8, pool="attention", epochs=1)[0], "resnet10t")
    with pytest.raises(OptionError, match=r"has 512 and .*the probe 8 channels"):
        model_with_probe(fitted(8)[0], "resnet10t")
    with pytest.raises(OptionError, match="normalises its features"):
        model_with_probe(fitted(320)[0], "convnext_atto")
