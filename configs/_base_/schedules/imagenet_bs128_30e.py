# AlexNet in ICCV 2021 on ImageNet: batch 128, learning rate 0.0794, 30 epochs, divided by 10 after 10 and 20.
_base_ = "./imagenet_bs256_60e.py"

optim_wrapper = dict(optimizer=dict(weight_decay=5e-4))
param_scheduler = dict(milestones=[10, 20])
train_cfg = dict(max_epochs=30)
auto_scale_lr = dict(base_batch_size=128)
