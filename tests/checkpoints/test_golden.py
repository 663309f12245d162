"""Every kind of checkpoint of the original repositories: converted to each target, the logits are the original's."""

import json
import re
import shutil

import pytest
import timm
import torch
from mmengine.registry import init_default_scope
from mmpretrain import get_model
from support.checkpoints import MANIFESTS, original_content, save_original
from support.golden_models import assert_equal, golden_input, original_centring
from support.matrices import relative_error

from covpool_plugins.checkpoints import load_original, write

# A classifier that fits nothing, a network that the original cannot run, and one that timm lacks.
REFUSED = ("sovit__So_vit_19", "isice__swin_t__SICE", "mp__as_base_patch4_window7_224__linear_probe")
NAMES = [name for name in MANIFESTS if name not in REFUSED]
HEADS = {
    "SVD_Pade": "svdpade",
    "SEB": "seb",
    "MPNCOV": "isqrt",
    "BCNN": "bcnn",
    "CBP": "cbp",
    "GAvP": "gap",
    "none": "gap",
    "standalone": "isqrt",
    "PowEMLR": "isqrt",
    "PowTMLR": "powtmlr",
    "SICE": "isice",
    "INVCOV": "precision",
}
# The originals centre by a matrix made in float32, which shows where there are fewer positions than channels.
CENTRED_IN_FLOAT32 = (
    "dsvd__alexnet__SEB__scratch",
    "dsvd__alexnet__SVD_Pade__finetune",
    "dsvd__alexnet__SVD_Pade__scratch",
    "dsvd__resnet18__SEB__finetune",
    "dsvd__resnet18__SEB__scratch__shift",
)
FAST = ("dbn__resnet18__zcanormbatch__c10", "fmpn__alexnet__GAvP__finetune", "pisvd__resnet18__pcanormsvdpi__c10")
pytestmark = pytest.mark.parametrize(
    "name",
    [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in NAMES],
    scope="module",
)


@pytest.fixture(scope="module")
def converted(name, tmp_path_factory):
    folder = tmp_path_factory.mktemp("original")
    yield load_original(save_original(name, folder))
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def timm_folder(converted, tmp_path_factory):
    """Removed at once: the largest networks have 600 MB."""
    folder = tmp_path_factory.mktemp("timm")
    write(converted, "timm", folder / "timm")
    yield folder / "timm"
    shutil.rmtree(folder)


@pytest.fixture
def folder(tmp_path):
    yield tmp_path
    shutil.rmtree(tmp_path)


def timm_name(arch):
    """Of an architecture of the repositories, as far as the two have it in common."""
    arch = arch.removeprefix("mpncov").removesuffix("_acd").replace("deit_drop", "deit")
    arch = arch.replace("clip_vit_base_patch16", "vit_base_patch16_clip")
    return re.sub("_in2[12]k$", "", arch)


def expected_head(name):
    repository, *rest = name.split("__")
    if name.startswith("fmpn__mpncovvgg16_bn"):
        return "isqrt"
    if repository == "mp" or rest[0].endswith("_ACD"):
        return "moment" if repository == "mp" else "dropcov"
    return HEADS.get(rest[1] if len(rest) > 1 else "")  # None for a network with a head of its own


def assert_logits(model, name):
    """In float64 and float32, as the original's where it computes them."""
    manifest = MANIFESTS[name]
    if "logits" not in manifest:
        return
    images = golden_input(manifest["input"])
    for dtype, tolerance in (("float32", 2e-5), ("float64", 1e-6)):
        if dtype not in manifest["logits"]:
            continue
        typed = model.to(getattr(torch, dtype))
        if name in CENTRED_IN_FLOAT32:
            norm = manifest.get("representation_norm", {}).get(dtype)
            centre_in_float32(typed.head.global_pool, norm)
        with torch.no_grad():
            logits = typed(images.to(getattr(torch, dtype)))
        assert_equal(logits, manifest["logits"][dtype], tolerance)


def centre_in_float32(pool, norm):
    """Let a pool compute the root of a covariance that is centred as in the originals.

    The factor of the scaling eigen branch sums over the null eigenvalues too, which are the originals' rounding errors:
    it is taken from the norm of what they computed.
    """
    ours = pool.represent

    def represent(X):
        values, vectors = torch.linalg.eigh(X.double() @ original_centring(X.shape[-1]) @ X.double().mT)
        root = (vectors * values.abs().sqrt().unsqueeze(-2)) @ vectors.mT
        row, column = torch.triu_indices(X.shape[1], X.shape[1])
        vector = root[:, row, column]
        if norm is not None:
            vector *= norm / vector.norm()
        assert relative_error(ours(X), vector) < 1e-4
        return vector.to(X.dtype)

    pool.represent = represent


def test_recognition(name, converted):
    route = MANIFESTS[name]["route"]
    assert converted.network.head == expected_head(name)
    assert converted.network.num_classes == route["num_classes"]
    arch = route["arch"].lower()
    assert timm_name(arch) in converted.network.backbone
    assert (converted.network.last_stride == 1) == (arch.startswith("mpncov") or "vgg" in arch or "acd" in arch)
    assert len({row.original for row in converted.keys if row.original}) == len(MANIFESTS[name]["state_dict"])


def test_timm(name, converted, timm_folder):
    model = timm.create_model(f"local-dir:{timm_folder}", pretrained=True).eval()
    assert_logits(model, name)
    page = (timm_folder / "conversion.md").read_text()
    assert all(f"`{key}`" in page for key, *_ in MANIFESTS[name]["state_dict"])
    assert all(f"`{key}`" in page for key in converted.state_dict)
    assert json.loads((timm_folder / "config.json").read_text())["architecture"] == converted.model_name


def test_mmpretrain(name, converted, folder):
    write(converted, "mmpretrain", folder / "mmpretrain")
    init_default_scope("mmpretrain")
    (config,) = (folder / "mmpretrain").glob("*.py")
    model = get_model(str(config), pretrained=str(config.with_suffix(".pth"))).eval()
    size = MANIFESTS[name].get("input", dict(shape=(1, 3, 64, 64)))["shape"]
    images = torch.randn(size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(images), converted.create_model()(images), rtol=1e-5, atol=1e-5)


def test_round_trip(name, timm_folder, folder):
    write(load_original(timm_folder), "original", folder / "original")
    (path,) = [path for path in (folder / "original").iterdir() if path.suffix not in (".md", ".json")]
    again, first = torch.load(path, weights_only=True), original_content(name)
    container = MANIFESTS[name]["container"]
    if container is not None:
        assert {key: again[key] for key in ("epoch", "acc", "arch") if key in first} == {
            key: first[key] for key in ("epoch", "acc", "arch") if key in first
        }
        again, first = again[container], first[container]
    assert list(again) == list(first)
    for key, tensor in first.items():
        assert again[key].dtype == tensor.dtype
        assert torch.equal(again[key], tensor)
