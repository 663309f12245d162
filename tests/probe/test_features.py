"""Features of frozen networks, and the files that they are kept in."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from covpool_plugins.errors import OptionError, ShapeError, UnknownNameError
from covpool_plugins.probe import cached_features

TRANSFORM = torch.nn.Identity()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return timm.create_model("resnet10t")


@pytest.fixture
def files(tmp_path):
    generator = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for path in paths:
        Image.fromarray(generator.integers(0, 256, (40, 40, 3)).astype(np.uint8)).save(path)
    return paths


def as_numbers(picture):
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def test_features_are_what_the_layer_gives(model, files):
    features = cached_features(model, files, size=64, batch_size=2, transform=as_numbers)
    x = torch.stack([as_numbers(Image.open(path)) for path in files])
    with torch.no_grad():
        expected = model.eval().forward_features(x)
    np.testing.assert_allclose(features.maps(), expected, rtol=1e-4, atol=1e-5)
    layer = cached_features(model, files, layer="layer3", batch_size=3, transform=as_numbers)
    with torch.no_grad():
        expected = nn.Sequential(
            model.conv1, model.bn1, model.act1, model.maxpool, *[getattr(model, f"layer{i}") for i in (1, 2, 3)]
        )(x)
    np.testing.assert_allclose(layer.maps(), expected, rtol=1e-4, atol=1e-5)


def test_class_tokens_stand_apart(files):
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1)
    features = cached_features(model, files)
    assert features.values.shape == (5, 4, 192) and features.prefix.shape == (5, 1, 192)
    assert features.mask is None
    with pytest.raises(ShapeError, match="tokens, not maps"):
        features.maps()


def test_channels_last_becomes_maps(files):
    model = timm.create_model("swin_tiny_patch4_window7_224", img_size=32, depths=(1, 1), window_size=4)
    features = cached_features(model, files[:1])
    assert features.values.shape == (1, 16, model.num_features) and features.grid == (4, 4)


class Counting(nn.Module):
    """Tokens and a mask; the second batch has more tokens than the first."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        tokens = (x.flatten(2).mT * self.weight)[:, : 3 * self.calls]
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool)
        mask[0, 0] = False
        return tokens, mask


def test_tokens_of_different_numbers_are_masked(files):
    features = cached_features(Counting(), files[:4], batch_size=2, transform=as_numbers)
    assert features.values.shape == (4, 6, 3)
    expected = np.zeros((4, 6), bool)
    expected[0, 1:3] = expected[1, :3] = expected[2, 1:] = expected[3] = True
    np.testing.assert_array_equal(features.mask, expected)
    assert not features.values[:2, 3:].any()


def test_they_are_computed_once(files, tmp_path):
    model, cache = Counting(), tmp_path / "cache"
    options = dict(cache=cache, transform=as_numbers, name="counting", batch_size=5)
    first = cached_features(model, files, **options)
    again = cached_features(model, files, **options)
    assert model.calls == 1
    for one, other in zip(first, again, strict=True):
        assert (one is None and other is None) or np.array_equal(one, other)
    assert len(list(cache.iterdir())) == 1


def test_whatever_they_depend_on_is_in_the_key(model, files, tmp_path):
    cache = tmp_path / "cache"

    def compute(network=model, paths=files, **options):
        cached_features(network, paths, cache=cache, **{"size": 32, **options})
        return len(list(cache.iterdir()))

    assert compute() == 1
    assert compute(layer="layer2") == 2
    assert compute(size=64) == 3
    assert compute(paths=files[::-1]) == 4
    assert (
        compute(paths=[Image.open(path) for path in files]) == 5
    )  # pixels, not files: a picture may have been changed
    Image.new("RGB", (40, 40)).save(files[2])
    assert compute() == 6
    other = timm.create_model("resnet10t")
    other.load_state_dict(model.state_dict())
    assert compute(other) == 6
    with torch.no_grad():
        other.layer4[0].conv1.weight[0, 0, 0, 0] += 1
    assert compute(other) == 7


def test_a_damaged_file_is_computed_anew(files, tmp_path):
    model, cache = Counting(), tmp_path / "cache"
    options = dict(cache=cache, transform=as_numbers, name="counting", batch_size=5)
    cached_features(model, files, **options)
    (kept,) = cache.iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    cached_features(model, files, **options)
    cached_features(model, files, **options)
    assert model.calls == 2


def test_an_interruption_leaves_nothing(files, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(files[0].read_bytes()[:60])
    with pytest.raises(ValueError, match=r"broken\.png"):
        cached_features(Counting(), [*files, broken], cache=tmp_path / "cache", transform=as_numbers, name="counting")
    assert not (tmp_path / "cache").exists()


def test_the_model_is_left_as_it_was(model, files):
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    cached_features(model, files, size=32)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(layer="layer9"), UnknownNameError, "unknown layer 'layer9'.*layer"),
        (dict(size=0), OptionError, "size must be a positive integer, got 0"),
        (dict(batch_size=True), OptionError, "batch_size"),
        (dict(pictures=[]), OptionError, "no pictures"),
        (dict(layer="global_pool"), ShapeError, "maps .* or tokens"),
        (dict(model=Counting()), OptionError, "needs transform="),
        (dict(model=Counting(), transform=as_numbers, cache="cache"), OptionError, "needs name="),
    ],
)
def test_bad_calls_are_refused(model, files, change, error, message):
    call = {"model": model, "pictures": files, "size": 32, **change}
    with pytest.raises(error, match=message):
        cached_features(call.pop("model"), call.pop("pictures"), **call)
