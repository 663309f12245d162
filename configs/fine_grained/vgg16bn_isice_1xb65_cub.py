# VGG-16 with batch norm with sparse inverse covariances (iSICE), on CUB-200-2011.
# Paper: "Learning Partial Correlation based Deep Visual Representation for Image Classification", CVPR 2023
# Published: accuracy 86.5 of VGG-16 (84.5 by Newton-Schulz iteration)
# Recipe: CVPR 2023 (batch 65, learning rate 1.2e-4, 5 times that for the classifier, 100 epochs, divided by 10 after
#   15 and 30)
# Train: python tools/train.py configs/fine_grained/vgg16bn_isice_1xb65_cub.py
_base_ = [
    "../_base_/models/vgg16bn_in1k.py",
    "../_base_/datasets/cub_bs10_448.py",
    "../_base_/schedules/fine_tune_bs10_40e.py",
    "mmpretrain::_base_/default_runtime.py",
]

model = dict(neck=dict(pool="isice", step_size=1.0), head=dict(num_classes=200))
train_dataloader = dict(batch_size=65)
optim_wrapper = dict(
    # Momentum is none of AdamW's options; its weight decay was not seen, this is PyTorch's.
    optimizer=dict(_delete_=True, type="AdamW", lr=1.2e-4, weight_decay=0.01),
    paramwise_cfg=dict(custom_keys={"head.fc": dict(lr_mult=5)}),
)
param_scheduler = dict(milestones=[15, 30])
train_cfg = dict(max_epochs=100)
auto_scale_lr = dict(base_batch_size=65)
