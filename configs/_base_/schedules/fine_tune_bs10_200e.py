# Fine-tuning of SEB (T-PAMI 2022) on CUB: batch 10, 200 epochs, divided by 10 after 50 and 100, the classifier's
# learning rate 20 times as large.
optim_wrapper = dict(
    optimizer=dict(type="SGD", lr=3e-3, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys={"head.fc": dict(lr_mult=20)}),
    clip_grad=dict(max_norm=5),
)
param_scheduler = dict(type="MultiStepLR", by_epoch=True, milestones=[50, 100], gamma=0.1)
train_cfg = dict(by_epoch=True, max_epochs=200, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=10)
