"""Configs whose runs take a tenth of a second; they name the classes here."""

import json
import random
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModule
from mmpretrain.structures import DataSample
from torch import nn
from torch.utils.data import Dataset

HERE = "support.small_configs"


class Backbone(BaseModule):
    """One or two stages; no batch norm, whose statistics would depend on how a batch is shared out."""

    def __init__(self, stages=1):
        super().__init__()
        self.convolution = nn.Conv2d(3, 6, 3)
        self.stages = stages

    def forward(self, images):
        maps = self.convolution(images).relu()
        return (maps, 2 * maps)[: self.stages]


class Images(Dataset):
    """Noise of one of two colours; ``augment`` adds noise that each of the three random states has a part in."""

    def __init__(self, size=12, augment=False, data_root=None):
        self.metainfo = dict(classes=("a", "b"))
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(size, 3, 7, 7, generator=generator)
        self.images[1::2, 0] *= 2
        self.augment = augment

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = self.images[index].clone()
        if self.augment:
            image *= 1 + random.random()
            image += float(np.random.rand()) + torch.rand(7, 7)
        return dict(inputs=image, data_samples=DataSample().set_gt_label(index % 2))


class Record(Hook):
    """Writes the loss and the sum of the images of every iteration to ``seen_<rank>.json`` in the work folder."""

    def __init__(self):
        self.seen = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        images = data_batch["inputs"]
        self.seen.append(
            dict(epoch=runner.epoch, loss=outputs["loss"].item(), images=float(sum(image.sum() for image in images)))
        )

    def after_train(self, runner):
        Path(runner.work_dir, f"seen_{get_rank()}.json").write_text(json.dumps(self.seen))


class MeanScore(BaseMetric):
    """A metric that every change of the weights shows in."""

    def process(self, data_batch, data_samples):
        self.results += [float(sample["pred_score"][0]) for sample in data_samples]

    def compute_metrics(self, results):
        return dict(score=float(np.mean(results)))


def seen(work_dir, rank=0):
    """What :class:`Record` wrote."""
    return json.loads(Path(work_dir, f"seen_{rank}.json").read_text())


def validated(work_dir):
    """The metrics of the last validation of a run."""
    (log,) = Path(work_dir).glob("*/vis_data/scalars.json")
    last = json.loads(log.read_text().splitlines()[-1])
    return {name: last[name] for name in ("accuracy/top1", "score")}


def model_config(pool="isqrt", stages=1, **neck):
    return dict(
        type="ImageClassifier",
        backbone=dict(type=f"{HERE}.Backbone", stages=stages),
        neck=dict(
            type="covpool_plugins.CovariancePooling",
            pool=pool,
            in_channels=6 if stages == 1 else [6] * stages,
            **{"reduce_channels": None, **neck},
        ),
        head=dict(type="covpool_plugins.SecondOrderClsHead", num_classes=2, loss=dict(type="CrossEntropyLoss")),
    )


def settings(pool="isqrt", *hooks, workers=0, persistent=False, augment=False, batch_size=4, **parts):
    """A whole config; ``parts`` replace keys of it."""
    loader = dict(batch_size=batch_size, num_workers=workers, persistent_workers=persistent)
    shuffled = dict(loader, sampler=dict(type="DefaultSampler", shuffle=True))
    ordered = dict(loader, num_workers=0, persistent_workers=False, sampler=dict(type="DefaultSampler", shuffle=False))
    evaluator = [dict(type="Accuracy", topk=(1,)), dict(type=f"{HERE}.MeanScore")]
    ordered["dataset"] = dict(type=f"{HERE}.Images", size=9)
    content = dict(
        default_scope="mmpretrain",
        model=model_config(pool),
        train_dataloader=dict(shuffled, dataset=dict(type=f"{HERE}.Images", augment=augment)),
        val_dataloader=ordered,
        test_dataloader=ordered,
        train_cfg=dict(by_epoch=True, max_epochs=3),
        val_cfg=dict(),
        test_cfg=dict(),
        val_evaluator=evaluator,
        test_evaluator=evaluator,
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1, momentum=0.9), clip_grad=dict(max_norm=1.0)),
        default_hooks=dict(
            logger=dict(type="LoggerHook", interval=1), checkpoint=dict(type="CheckpointHook", interval=1)
        ),
        custom_hooks=[dict(type=f"{HERE}.Record"), *hooks],
        env_cfg=dict(mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0)),
        randomness=dict(seed=0),
        log_level="WARNING",
    )
    return {**content, **parts}


def small_config(path, *pool_and_hooks, **options):
    """Write a config to a file."""
    Config(settings(*pool_and_hooks, **options)).dump(path)
    return path
