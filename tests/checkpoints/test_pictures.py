"""Pictures from strangers, and the same logits from a picture's file on, whatever the checkpoint was converted for."""

import argparse
import os
import random
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
import timm
import torch
from mmengine.registry import init_default_scope
from mmpretrain import get_model
from PIL import Image, features

from covpool_plugins.checkpoints import load_original, write
from covpool_plugins.explain.images import as_input, mmpretrain_preprocessing, timm_preprocessing
from covpool_plugins.pictures import FORMATS, MOST_PIXELS, read_picture


def photograph(height=180, width=240):
    """Something with edges, on which roundings and interpolations show."""
    noise = np.random.default_rng(0).uniform(0, 255, (height // 6, width // 6, 3)).astype(np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.NEAREST)


@pytest.mark.parametrize("name", FORMATS)
def test_formats(name, tmp_path):
    path = tmp_path / "picture"
    photograph().save(path, format=name, **({"lossless": True} if name == "WEBP" else {}))
    assert read_picture(path).size == (240, 180)


@pytest.mark.parametrize("name", ["EPS", "DDS", "SPIDER", "BLP", "AVIF", "ICNS", "TGA", "PDF"])
def test_other_formats(name, tmp_path):
    """An EPS would start Ghostscript; the decoders of the others raise what is no error of a picture."""
    if name == "AVIF" and not features.check("avif"):
        pytest.skip("Pillow without AVIF")
    picture = photograph().convert({"SPIDER": "F", "BLP": "P"}.get(name, "RGB"))
    picture.save(tmp_path / "picture", format=name)
    with pytest.raises(ValueError, match="not a picture that can be read") as error:
        read_picture(tmp_path / "picture")
    assert "\n" not in str(error.value)


def declared(width, height):
    """A PNG that says how large it is, and no more."""

    def chunk(kind, data):
        body = kind + data
        return len(data).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("action", ["error", "default"])
@pytest.mark.parametrize("size", [(13_000, 13_000), (1 << 30, 1 << 30), (MOST_PIXELS + 1, 1)])
def test_bombs(action, size, tmp_path):
    """Refused by the size that they declare, also where warnings are errors."""
    path = tmp_path / "bomb.png"
    path.write_bytes(declared(*size))
    with warnings.catch_warnings(), pytest.raises(ValueError, match="pixels") as error:
        warnings.simplefilter(action)
        read_picture(path)
    assert "\n" not in str(error.value)


def test_cameras():
    """Of 102 and 108 megapixels."""
    assert 11_648 * 8_736 < 12_000 * 9_000 < MOST_PIXELS


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "I;16"])
def test_modes(mode, tmp_path):
    """Values as they are, whatever the mode; 16 bits are rounded to 8."""
    values = np.arange(0, 256, 15, dtype=np.uint8)[None]
    if mode == "I;16":
        picture = Image.fromarray(np.minimum(values * 257.0 + 128, 65_535).astype(np.uint16))
    else:
        picture = Image.fromarray(values).convert("RGB" if mode == "P" else mode)
    picture = picture.quantize() if mode == "P" else picture
    picture.save(tmp_path / "picture.png")
    read = np.asarray(read_picture(tmp_path / "picture.png"))
    assert read.shape == (1, 18, 3)
    assert (read == values[..., None]).all()


def test_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    photograph().save(tmp_path / "turned.jpg", exif=exif)
    assert read_picture(tmp_path / "turned.jpg").size == (180, 240)
    assert read_picture(tmp_path / "turned.jpg", upright=False).size == (240, 180)


MEMORY = """
import resource, sys
from covpool_plugins.pictures import read_picture
read_picture(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
read_picture(sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_memory(tmp_path):
    """A decoded pixel takes 4 bytes, and the picture is not copied."""
    for name, side in (("small.png", 10), ("large.png", 6_000)):
        Image.new("RGB", (side, side)).save(tmp_path / name)
    ran = subprocess.run(
        [sys.executable, "-c", MEMORY, tmp_path / "small.png", tmp_path / "large.png"], capture_output=True, check=True
    )
    assert int(ran.stdout) * 1024 < 5 * 6_000**2


def test_a_tile_larger_than_any_picture(tmp_path):
    """A TIFF of 16x16 pixels whose only tile has 40,000 x 40,000."""
    tile = zlib.compress(bytes(256))
    tags = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 322: 40_000, 323: 40_000, 324: 8 + 2 + 9 * 12 + 4, 325: len(tile)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    header = b"II*\0" + struct.pack("<IH", 8, len(tags))
    (tmp_path / "tile.tif").write_bytes(header + entries + bytes(4) + tile)
    with pytest.raises(ValueError, match="a picture of 40000x40000 pixels"):
        read_picture(tmp_path / "tile.tif")


def test_special_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero", ".", "nothing"):
        with pytest.raises(ValueError, match=r"regular|No such file"):
            read_picture(tmp_path / name)


@pytest.mark.parametrize("name", FORMATS)
def test_mutated_pictures(name, tmp_path):
    """Read, or refused in one line."""
    path, generator = tmp_path / "picture", random.Random(0)
    photograph(30, 40).save(path, format=name)
    whole = path.read_bytes()
    for _ in range(60):
        data = bytearray(whole[: generator.choice([len(whole), generator.randrange(len(whole))])])
        for _ in range(generator.randint(1, 6)):
            if data:
                data[generator.randrange(min(len(data), generator.choice([40, 1 << 20])))] = generator.randrange(256)
        path.write_bytes(bytes(data))
        try:
            read_picture(path)
        except ValueError as error:
            assert "\n" not in str(error)


def logits_from_file(path, model, preprocessing):
    with torch.no_grad():
        return model(as_input(path, preprocessing))


NETWORKS = {
    "alexnet_isqrt": {},
    "efficientnet_b0_isqrt": dict(reduce_channels=16),
    "resnet18_cifar_zca": {},
    "resnet18_gap": {},
    "inception_v3_isqrt": dict(reduce_channels=16),
    "swin_tiny_patch4_window7_224_isqrt": dict(reduce_channels=16),
    "vit_small_patch16_224_isqrt": dict(reduce_channels=16, fuse_class_token=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_logits_from_the_file_of_a_picture(name, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **NETWORKS[name])
    settings = argparse.Namespace(model=name, model_kwargs=NETWORKS[name])
    torch.save({"args": settings, "state_dict": model.state_dict()}, tmp_path / "checkpoint.pth")
    converted = load_original(tmp_path / "checkpoint.pth")
    for target in ("timm", "mmpretrain"):
        write(converted, target, tmp_path / target)
    picture = tmp_path / "photograph.png"
    photograph().save(picture)
    model = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    expected = logits_from_file(picture, model, timm_preprocessing(model))
    init_default_scope("mmpretrain")
    (config,) = (tmp_path / "mmpretrain").glob("*.py")
    classifier = get_model(str(config), pretrained=str(config.with_suffix(".pth"))).eval()
    result = logits_from_file(picture, classifier, mmpretrain_preprocessing(classifier))
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
    pipeline = classifier._config.test_dataloader.dataset.pipeline
    if pipeline[0].type == "LoadImageFromFile":  # as tools/test.py reads it
        from mmengine.dataset import Compose
        from mmpretrain.registry import TRANSFORMS

        sample = Compose([TRANSFORMS.build(step) for step in pipeline])(dict(img_path=str(picture)))
        inputs = classifier.data_preprocessor({"inputs": [sample["inputs"]]})["inputs"]
        with torch.no_grad():
            torch.testing.assert_close(classifier(inputs), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_no_other_program_is_started(tmp_path):
    """Ghostscript, for an EPS that says it is a PNG."""
    photograph().save(tmp_path / "picture.eps")
    (tmp_path / "picture.eps").rename(tmp_path / "picture.png")
    code = "import sys; from covpool_plugins.pictures import read_picture; read_picture(sys.argv[1])"
    environment = {**os.environ, "PATH": str(tmp_path)}
    ran = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "picture.png"], capture_output=True, text=True, env=environment
    )
    assert "not a picture that can be read" in ran.stderr
