"""Runs of MMEngine's runner that take a tenth of a second, on a model with a neck."""

import itertools
import logging

import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from covpool_plugins.mmpretrain_plugin import CovariancePooling
from covpool_plugins.mmpretrain_plugin.necks import find_neck, pools_of
from covpool_plugins.mmpretrain_plugin.runner import weights_only_checkpoints

EPOCHS, BATCHES = 3, 2
run_numbers = itertools.count()


class Noise(Dataset):
    def __init__(self):
        self.metainfo = dict(classes=("a", "b"))
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(8, 3, 6, 6, generator=generator)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return dict(images=self.images[index], labels=index % 2)


class Tiny(BaseModel):
    """A convolution, the neck on one or two stages, a linear layer."""

    def __init__(self, neck, stages=1):
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 3)
        self.neck = neck
        self.head = nn.Linear(neck.out_channels, 2)
        self.stages = stages

    def forward(self, images, labels, mode="tensor"):
        maps = self.backbone(images)
        logits = self.head(torch.cat(self.neck((maps, 2 * maps)[: self.stages]), dim=1))
        if mode == "loss":
            return dict(loss=nn.functional.cross_entropy(logits, labels))
        return [dict(logits=row) for row in logits]


class Seen(BaseMetric):
    """Accepts everything; remembers the predictions."""

    def __init__(self):
        super().__init__()
        self.logits = []

    def process(self, data_batch, data_samples):
        self.logits += [sample["logits"].clone() for sample in data_samples]
        self.results += [0.0] * len(data_samples)

    def compute_metrics(self, results):
        return dict(count=float(len(results)))


class Losses(Hook):
    def __init__(self):
        self.values = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.values.append(outputs["loss"].item())


def tiny(stages=1, **neck):
    torch.manual_seed(0)
    options = dict(neck or dict(pool="isqrt", iterations=3), reduce_channels=3)
    return Tiny(CovariancePooling(4 if stages == 1 else [4] * stages, **options), stages)


def a_runner(work_dir, *hooks, model=None, loop=None, **options):
    loader = dict(batch_size=4, num_workers=0, dataset=Noise(), collate_fn=dict(type="default_collate"))
    return Runner(
        default_scope="mmpretrain",  # it stays for the tests that follow
        model=model if model is not None else tiny(),
        work_dir=str(work_dir),
        train_dataloader=dict(loader, sampler=dict(type="DefaultSampler", shuffle=True)),
        val_dataloader=dict(loader, sampler=dict(type="DefaultSampler", shuffle=False)),
        test_dataloader=dict(loader, sampler=dict(type="DefaultSampler", shuffle=False)),
        train_cfg=loop or dict(by_epoch=True, max_epochs=EPOCHS),
        val_cfg=dict(),
        test_cfg=dict(),
        val_evaluator=[Seen()],
        test_evaluator=[Seen()],
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1, momentum=0.9)),
        param_scheduler=dict(type="MultiStepLR", milestones=[2]),
        default_hooks=dict(
            logger=dict(type="LoggerHook", interval=1), checkpoint=dict(type="CheckpointHook", interval=1)
        ),
        custom_hooks=list(hooks),
        randomness=dict(seed=0),
        experiment_name=f"hooks_{next(run_numbers)}",
        log_level="INFO",
        **options,
    )


def load(path):
    with weights_only_checkpoints():
        return torch.load(path)


def resume(path, work_dir, *hooks, strict=True, **options):
    runner = a_runner(work_dir, *hooks, load_from=str(path), resume=True, **options)
    load_checkpoint = runner.load_checkpoint
    runner.load_checkpoint = lambda *args, **kwargs: load_checkpoint(*args, **{**kwargs, "strict": strict})
    with weights_only_checkpoints():
        runner.train()
    return runner


def different(first, second):
    """The keys in which two state dicts differ, missing ones included."""
    return [
        k for k in first.keys() | second.keys() if k not in first or k not in second or not first[k].equal(second[k])
    ]


def pools(model):
    return pools_of(find_neck(model, "neck"))


def warnings_of(runner):
    """A list that gets what the runner warns of from now on."""
    messages = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    runner.logger.addHandler(handler)
    return messages
