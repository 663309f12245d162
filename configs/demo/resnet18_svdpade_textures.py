# Not from a paper: a small network for photos of brick, grass and gravel, trained on a CPU in a minute.
# The folders are DATA/train/<class>/*.png and DATA/val/<class>/*.png, at least 64 pixels to a side.
# Train: python tools/train.py configs/demo/resnet18_svdpade_textures.py --cfg-options data_root=DATA
_base_ = "mmpretrain::_base_/default_runtime.py"

classes = ["brick", "grass", "gravel"]
data_root = "data/textures"

model = dict(
    type="ImageClassifier",
    # Stride 8 in all: 8 x 8 positions of 128 channels for a crop of 64 pixels.
    backbone=dict(type="ResNet_CIFAR", depth=18, stem_channels=16, base_channels=16, out_indices=(3,)),
    neck=dict(type="covpool_plugins.CovariancePooling", pool="svdpade", in_channels=128, reduce_channels=32),
    head=dict(
        type="covpool_plugins.SecondOrderClsHead",
        num_classes=len(classes),
        loss=dict(type="CrossEntropyLoss"),
    ),
)
data_preprocessor = dict(
    num_classes=len(classes), mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True
)

train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="CustomDataset",
        data_root=data_root,
        data_prefix="train",
        metainfo=dict(classes=classes),
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="RandomCrop", crop_size=64),
            dict(type="RandomFlip", prob=0.5, direction="horizontal"),
            dict(type="PackInputs"),
        ],
    ),
)
val_dataloader = dict(
    batch_size=16,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="CustomDataset",
        data_root=data_root,
        data_prefix="val",
        metainfo=dict(classes=classes),
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="CenterCrop", crop_size=64),
            dict(type="PackInputs"),
        ],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="Accuracy", topk=(1,))
test_evaluator = val_evaluator

optim_wrapper = dict(optimizer=dict(type="SGD", lr=0.02, momentum=0.9, weight_decay=1e-4), clip_grad=dict(max_norm=5))
param_scheduler = dict(type="MultiStepLR", by_epoch=True, milestones=[4], gamma=0.1)
train_cfg = dict(by_epoch=True, max_epochs=6, val_interval=1)
val_cfg = dict()
test_cfg = dict()

default_hooks = dict(logger=dict(interval=5), checkpoint=dict(max_keep_ckpts=1))
randomness = dict(seed=0)
