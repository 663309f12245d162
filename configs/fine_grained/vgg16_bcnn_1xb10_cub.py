# VGG-16 with bilinear pooling, stage 2 of 2: everything, from the checkpoint of stage 1, on CUB-200-2011.
# Paper: "Bilinear CNN Models for Fine-grained Visual Recognition", ICCV 2015
# Published: accuracy 84.0 (as BMVC 2017 quotes it); 85.8 with `ibcnn` (BMVC 2017)
# Recipe: stage 2 of the released script (batch 10, learning rate 1e-3, 200 epochs)
# Train: python tools/train.py configs/fine_grained/vgg16_bcnn_1xb10_cub.py
_base_ = [
    "../_base_/models/vgg16_in1k.py",
    "../_base_/datasets/cub_bs10_448.py",
    "../_base_/schedules/fine_tune_bs10_100e.py",
    "mmpretrain::_base_/default_runtime.py",
]

model = dict(neck=dict(pool="bcnn"), head=dict(num_classes=200))
load_from = "work_dirs/vgg16-frozen_bcnn_1xb40_cub/epoch_100.pth"
optim_wrapper = dict(optimizer=dict(lr=1e-3, weight_decay=5e-4), paramwise_cfg=dict(_delete_=True))
param_scheduler = dict(end=200)
train_cfg = dict(max_epochs=200)
