"""Models that take clips, and which frames of a video make up one."""

import copy
import pickle

import pytest
import timm
import torch
from support.matrices import relative_error
from torch import nn

import covpool_plugins
from covpool_plugins.errors import OptionError, ShapeError
from covpool_plugins.timm_plugin.clips import sample_frames

FRAMES = 4
# What is pooled over the frames of a clip together, and what is averaged over them.
HEADS = {
    "temporal": {},
    "temporal by frame": {"level": "frame"},
    "isqrt": {},
    "gap": {},
}
ONE_OF_EACH = pytest.mark.parametrize("head", ["temporal", "isqrt"])
# Maps in either order, tokens with a class token; a head after, instead of and beside the backbone's own.
BACKBONES = {
    "resnet10t": {"channels": (4, 4, 4, 16), "stem_width": 8},
    "test_convnext": {},
    "test_vit": {"img_size": 64},
    "selecsls42": {},
}


def clip_model(head="temporal", backbone="resnet10t", **kwargs):
    torch.manual_seed(0)
    options = HEADS[head] | ({} if head == "gap" else {"reduce_channels": 8})
    arguments = {"frames": FRAMES, "num_classes": 5, "head_kwargs": options} | BACKBONES[backbone] | kwargs
    model = covpool_plugins.create_model(backbone, head.split()[0], **arguments)
    convolution = getattr(getattr(getattr(model, "head", None), "global_pool", None), "attention", None)
    if convolution is not None:  # new ones change nothing
        nn.init.normal_(convolution.convolution.conv.weight, std=0.1)
    return model.eval()


def clips(count=2, frames=FRAMES, size=64):
    return torch.randn(count, frames, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "head, backbone",
    [
        *((head, "resnet10t") for head in HEADS),
        ("temporal", "test_convnext"),
        ("isqrt", "test_vit"),
        pytest.param("isqrt", "selecsls42", marks=pytest.mark.slow),
    ],
)
def test_clips_and_their_frames(head, backbone):
    model, x = clip_model(head, backbone), clips()
    logits, features = model(x), model.forward_features(x.flatten(0, 1))
    assert logits.shape == (2, 5)
    assert torch.equal(model(x.flatten(0, 1)), logits)
    vectors = model.forward_head(features, pre_logits=True)
    assert vectors.shape == (2, model.head_hidden_size)
    assert torch.equal(model.get_classifier()(vectors), logits)
    assert relative_error(model(x[1:]), logits[1:]) < 1e-5
    if backbone != "resnet10t":
        return
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(twin) is type(model) and torch.equal(twin(x), logits)
    final, maps = model.forward_intermediates(x.flatten(0, 1))
    assert torch.equal(final, features) and len(maps[0]) == 2 * FRAMES
    traced = timm.models.create_feature_extractor(model, ["layer4", "head.fc"])(x)
    assert torch.equal(traced["layer4"], features) and torch.equal(traced["head.fc"], logits)


@pytest.mark.parametrize("head, options", [("gap", {}), ("isqrt", {}), ("gap", {"hidden_features": (6,)})])
def test_heads_for_images_give_the_mean_of_the_logits_of_the_frames(head, options):
    image, model = clip_model(head, frames=None, **options), clip_model(head, **options)
    assert list(model.state_dict()) == list(image.state_dict())
    model.load_state_dict(image.state_dict())
    x = clips()
    mean = image(x.flatten(0, 1)).unflatten(0, (2, FRAMES)).mean(1)
    assert relative_error(model(x), mean) < 1e-5
    assert relative_error(model(x.flip(1)), mean) < 1e-5


@pytest.mark.parametrize("head", ["temporal", "temporal by frame"])
def test_temporal_heads_know_the_order_of_the_frames(head):
    model = clip_model(head, channels=(64, 128, 256, 512))  # narrower ones hardly tell random frames apart
    pool, x = model.head.global_pool, clips()
    assert pool.frames == FRAMES
    vectors = pool(model.forward_features(x.flatten(0, 1)))
    expected = vectors if head == "temporal" else vectors.unflatten(0, (2, FRAMES)).mean(1)
    assert relative_error(model(x), model.get_classifier()(expected)) < 1e-5
    assert relative_error(model(x.flip(1)), model(x)) > 1e-3


@ONE_OF_EACH
def test_class_tokens_of_the_frames_are_averaged(head):
    model = clip_model(head, "test_vit", fuse_class_token=True)
    x = clips()
    features = model.forward_features(x.flatten(0, 1))
    vectors = model.forward_head(features, pre_logits=True)
    tokens = model.head.norm(features)[:, 0].unflatten(0, (2, FRAMES)).mean(1)
    assert relative_error(vectors[:, -tokens.shape[1] :], tokens) < 1e-5
    assert model(x).shape == (2, 5)


@ONE_OF_EACH
def test_every_parameter_learns_under_checkpointing(head):
    model = clip_model(head).train()
    plain, x = copy.deepcopy(model), clips()
    model.set_grad_checkpointing()
    for network in (model, plain):
        network(x).square().mean().backward()
    gradients = [(p.grad, q.grad) for p, q in zip(model.parameters(), plain.parameters(), strict=True)]
    assert all(a is not None and torch.isfinite(a).all() and torch.equal(a, b) for a, b in gradients)


def test_reset_keeps_the_frames():
    model = clip_model("temporal")
    x = clips()
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    model.reset_classifier(3, "gap")
    assert model(x).shape == (2, 3) and model.head_hidden_size == model.num_features
    model.reset_classifier(3, "temporal")
    assert model(x).shape == (2, 3) and model.head.global_pool.frames == FRAMES
    model.reset_classifier(0, "")
    assert model(x).shape == (2 * FRAMES, model.num_features, 2, 2)
    model.reset_classifier(4)
    assert model(x).shape == (2, 4)


def test_frames_may_be_an_option_of_the_pool_and_change_where_a_hub_folder_is_loaded(tmp_path):
    options = {"reduce_channels": 8, "frames": FRAMES}
    model, other = (clip_model(frames=frames, head_kwargs=options) for frames in (None, FRAMES))
    assert model.head.global_pool.frames == FRAMES and torch.equal(model(clips()), other(clips()))
    covpool_plugins.save_for_hub(model, tmp_path)
    longer = timm.create_model(f"local-dir:{tmp_path}", frames=6)
    assert longer.head.global_pool.frames == 6 and longer(clips(frames=6)).shape == (2, 5)


def test_without_frames_a_model_takes_images():
    model = clip_model("temporal", frames=None)
    assert model(clips()[:, 0]).shape == (2, 5)
    with pytest.raises(RuntimeError):
        model(clips())


@pytest.mark.fast_for("temporal")
@ONE_OF_EACH
def test_exports_for_any_number_of_clips(head):
    model = clip_model(head)
    program = torch.export.export(model, (clips(),), dynamic_shapes=({0: torch.export.Dim("clips")},)).module()
    assert relative_error(program(clips(3)), model(clips(3))) < 1e-5


@pytest.mark.slow
@ONE_OF_EACH
def test_compiles_for_any_number_of_clips(head):
    model = clip_model(head)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for count in (2, 3):
        assert relative_error(compiled(clips(count)), model(clips(count))) < 1e-5


@pytest.mark.parametrize("count, frames", [(1, 4), (3, 1), (3, 8), (8, 8), (9, 4), (1001, 8)])
def test_sampled_frames(count, frames):
    segments = torch.arange(frames + 1, dtype=torch.float64) * count / frames
    middle = sample_frames(count, frames, training=False)
    assert middle.dtype == torch.int64 and torch.equal(middle, ((segments[1:] + segments[:-1]) / 2).long())
    drawn = torch.stack([sample_frames(count, frames, training=True) for _ in range(200)])
    assert drawn.shape == (200, frames) and (drawn.diff(dim=1) >= 0).all()
    for segment, indices in enumerate(drawn.T):
        # Every frame of the segment is drawn, where these are few, and no other.
        inside = set(range(int(segments[segment]), min(count, int(segments[segment + 1].ceil()))))
        assert set(indices.tolist()) <= inside
        assert len(inside) > 8 or set(indices.tolist()) == inside


def test_sampled_frames_follow_their_generator():
    first, second = (sample_frames(300, 8, True, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(sample_frames(300, 8, True), sample_frames(300, 8, True))


@pytest.mark.parametrize(
    "shape, message",
    [
        ((2, 3, 3, 64, 64), r"expected clips of 4 frames \(B, 4, C, H, W\), got shape \[2, 3, 3, 64, 64\]"),
        ((6, 3, 64, 64), "a batch of 6 frames is no whole number of clips of 4 frames"),
        ((3, 64, 64), r"expected clips \(B, 4, C, H, W\) or frames \(B T, C, H, W\)"),
    ],
)
def test_no_whole_number_of_clips(shape, message):
    with pytest.raises(ShapeError, match=message):
        clip_model("gap")(torch.randn(shape))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: clip_model(frames=0), "frames must be a positive integer, got 0"),
        (lambda: clip_model(head_kwargs={"frames": 8}), "frames=4, but head_kwargs have frames=8"),
        (lambda: clip_model("isqrt", head_kwargs={"frames": 8}), "pool 'isqrt' has no option 'frames'; its options: "),
        (lambda: sample_frames(0, 8, True), "count must be a positive integer, got 0"),
        (lambda: sample_frames(30, 0, True), "frames must be a positive integer, got 0"),
        (lambda: sample_frames(30, 8, "yes"), "training must be True or False, got 'yes'"),
    ],
)
def test_wrong_options(call, message):
    with pytest.raises(OptionError, match=message):
        call()


@ONE_OF_EACH
def test_any_tracer_of_fx(head):
    model, x = clip_model(head), clips()
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), model(x))
