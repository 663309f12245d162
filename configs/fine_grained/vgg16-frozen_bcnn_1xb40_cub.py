# VGG-16 with bilinear pooling, stage 1 of 2: the classifier alone, on CUB-200-2011.
# Paper: "Bilinear CNN Models for Fine-grained Visual Recognition", ICCV 2015
# Published: accuracy 84.0 after both stages (as BMVC 2017 quotes it)
# Recipe: stage 1 of the released script (batch 40, learning rate 1e-3, 1000 times that for the classifier, 100
#   epochs)
# Train: python tools/train.py configs/fine_grained/vgg16-frozen_bcnn_1xb40_cub.py
_base_ = [
    "../_base_/models/vgg16_in1k.py",
    "../_base_/datasets/cub_bs10_448.py",
    "../_base_/schedules/fine_tune_bs10_100e.py",
    "mmpretrain::_base_/default_runtime.py",
]

model = dict(backbone=dict(frozen_stages=5), neck=dict(pool="bcnn"), head=dict(num_classes=200))
train_dataloader = dict(batch_size=40)
optim_wrapper = dict(
    optimizer=dict(lr=1e-3, weight_decay=5e-4), paramwise_cfg=dict(custom_keys={"head.fc": dict(lr_mult=1000)})
)
auto_scale_lr = dict(base_batch_size=40)
