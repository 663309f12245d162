# Fine-tuning of VGG by iSQRT-COV (CVPR 2018): batch 10, 40 epochs, divided by 10 after 20, the classifier's rate 20 times.
optim_wrapper = dict(
    optimizer=dict(type="SGD", lr=3e-3, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys={"head.fc": dict(lr_mult=20)}),
)
param_scheduler = dict(type="MultiStepLR", by_epoch=True, milestones=[20], gamma=0.1)
train_cfg = dict(by_epoch=True, max_epochs=40, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=10)
