"""A thousand steps of bfloat16 autocast at a high learning rate, with hostile pictures among the others."""

import pytest
import torch
from torch import nn

from covpool_plugins.timm_plugin import SecondOrderHead, list_heads

STEPS, BATCH, SIDE, CHANNELS, CLASSES = 1000, 8, 12, 16, 4
LEARNING_RATE, MOMENTUM, LARGEST_NORM = 0.5, 0.9, 1.0

HOSTILE_PICTURES = [
    torch.zeros_like,
    lambda x: torch.full_like(x, 0.7),
    lambda x: x[:, :1, :1].expand_as(x),
    lambda x: 1e4 * x,
    lambda x: 1e-4 * x,
    lambda x: x[:, :1].expand_as(x),
]


def network(head):
    def layer(channels, stride=1):
        convolution = nn.Conv2d(channels, CHANNELS, 3, stride, padding=1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(CHANNELS), nn.ReLU(inplace=True))

    return nn.Sequential(layer(3, 2), layer(CHANNELS), layer(CHANNELS), head)


class PlainRoot(nn.Module):
    """The square root as PyTorch differentiates an eigen-decomposition, and a classifier."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(CHANNELS**2, CLASSES)

    def forward(self, x):
        X = x.flatten(2).float()
        X = X - X.mean(-1, keepdim=True)
        values, U = torch.linalg.eigh(X @ X.mT / X.shape[-1])
        return self.fc(((U * values.clamp_min(0).sqrt().unsqueeze(-2)) @ U.mT).flatten(1))


def batches():
    """Pictures of random scale and labels; in every step one picture is hostile, in every fiftieth all are."""
    generator = torch.Generator().manual_seed(0)
    for step in range(STEPS):
        images = torch.randn(BATCH, 3, SIDE, SIDE, generator=generator)
        spoil = HOSTILE_PICTURES[step // 50 % len(HOSTILE_PICTURES)]
        hostile = range(BATCH) if step % 50 == 0 else [step % BATCH]
        for index in hostile:
            images[index] = spoil(images[index])
        yield images, torch.randint(CLASSES, (BATCH,), generator=generator)


def first_step_that_is_not_finite(model):
    """The step and what is not finite in it, gradients and weights by their norms; ``None`` if there is none."""
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, LEARNING_RATE, MOMENTUM, foreach=True)
    for step, (images, labels) in enumerate(batches()):
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        gradient = nn.utils.clip_grad_norm_(parameters, LARGEST_NORM)
        optimizer.step()
        weights = nn.utils.get_total_norm(parameters)
        for name, value in (("loss", loss), ("gradient", gradient), ("weights", weights)):
            if not value.isfinite():
                return step, name
    return None


def statistics(model):
    return [buffer for buffer in model.buffers() if buffer.is_floating_point()]


def test_the_plain_gradient_does_not_survive():
    assert first_step_that_is_not_finite(network(PlainRoot())) is not None


@pytest.mark.slow
@pytest.mark.parametrize("name", list_heads())
def test_heads(name):
    model = network(SecondOrderHead(CHANNELS, CLASSES, name))
    assert first_step_that_is_not_finite(model) is None
    assert all(buffer.isfinite().all() for buffer in statistics(model))
