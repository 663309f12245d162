"""The life of a model, by what timm's own scripts call: trained, resumed, validated, saved, changed, exported."""

import copy
from argparse import Namespace

import pytest
import timm
import torch
from support.matrices import relative_error
from timm.data import create_transform, resolve_model_data_config
from timm.models import load_checkpoint, resume_checkpoint
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import CheckpointSaver, ModelEmaV3, dispatch_clip_grad
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

import covpool_plugins

NETWORK = dict(backbone="resnet10t", num_classes=4, reduce_channels=16, channels=(8, 16, 32, 64), stem_width=8)


def build(head):
    torch.manual_seed(0)
    return timm.create_model("second_order", head=head, layer_groups="new", **NETWORK)


def pictures(count=8):
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(1)), torch.arange(count) % 4


def optimizer_of(model):
    return create_optimizer_v2(model, opt="sgd", lr=0.1, weight_decay=1e-4, layer_decay=0.1)


def step(model, optimizer, average):
    """One step of train.py with --amp --amp-dtype bfloat16 --clip-grad 5 --model-ema; its loss."""
    model.train()
    x, target = pictures()
    with torch.autocast("cpu", torch.bfloat16):
        loss = torch.nn.functional.cross_entropy(model(x), target)
    optimizer.zero_grad()
    loss.backward()
    dispatch_clip_grad(model.parameters(), 5.0)
    optimizer.step()
    average.update(model)
    return loss.item()


@pytest.mark.slow
@pytest.mark.parametrize("head", ["svdpade", "isqrt"])
def test_the_whole_life(head, tmp_path):
    model = build(head)
    optimizer, average = optimizer_of(model), ModelEmaV3(model, decay=0.5)
    scheduler, _ = create_scheduler_v2(optimizer, "cosine", num_epochs=10, warmup_epochs=1)
    losses = []
    for epoch in range(6):
        scheduler.step(epoch)
        losses.append(step(model, optimizer, average))
    assert losses[-1] < losses[1]
    saver = CheckpointSaver(
        model, optimizer, Namespace(model="second_order"), average, checkpoint_dir=tmp_path, recovery_dir=tmp_path
    )
    saver.save_checkpoint(0, metric=1.0)

    # Resumed, the next step is the same.
    resumed, file = build(head), tmp_path / "last.pth.tar"
    resumed_optimizer = optimizer_of(resumed)
    assert resume_checkpoint(resumed, file, optimizer=resumed_optimizer) == 1
    resumed_average = ModelEmaV3(resumed, decay=0.5)
    load_checkpoint(resumed_average.module, file, use_ema=True)
    expected = copy.deepcopy((model, optimizer, average))
    assert step(resumed, resumed_optimizer, resumed_average) == step(*expected)
    for ours, theirs in zip(resumed.state_dict().values(), expected[0].state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)

    # Validated, as validate.py --use-ema loads it; the transform of inference.py fits it.
    validated = timm.create_model("second_order", head=head, checkpoint_path=str(file), **NETWORK).eval()
    x, _ = pictures()
    assert torch.equal(validated(x), average.module.eval()(x))
    assert create_transform(**resolve_model_data_config(validated))

    # A hub folder, and another task.
    covpool_plugins.save_for_hub(validated, tmp_path / "hub")
    loaded = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    assert torch.equal(loaded(x), validated(x))
    loaded.reset_classifier(3)
    loaded.fc = torch.nn.Linear(loaded.fc.in_features, 7)
    assert loaded(x).shape == (8, 7) and loaded.num_classes == 7

    # Exported and quantised.
    sizes = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(validated, (torch.randn(2, 3, 96, 128),), dynamic_shapes=(sizes,))
    torch.export.save(program, tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2").module()
    for size in ((64, 96), (224, 160)):  # fewer and more positions than channels
        other = torch.randn(3, 3, *size)
        assert relative_error(program(other), validated(other)) < 1e-5
    prepared = prepare_fx(copy.deepcopy(validated), get_default_qconfig_mapping("x86"), (x,))
    prepared(x)
    assert relative_error(convert_fx(prepared)(x), validated(x)) < 0.1
