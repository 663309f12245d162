# The SVD heads of ICCV 2021 on ImageNet: batch 256, learning rate 0.0794, 60 epochs, divided by 10 after 30 and 45.
optim_wrapper = dict(
    optimizer=dict(type="SGD", lr=0.0794, momentum=0.9, weight_decay=1e-4),
    clip_grad=dict(max_norm=5),
)
param_scheduler = dict(type="MultiStepLR", by_epoch=True, milestones=[30, 45], gamma=0.1)
train_cfg = dict(by_epoch=True, max_epochs=60, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=256)
