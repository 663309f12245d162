# Fine-tuning of iSQRT-COV (CVPR 2018): batch 10, a constant learning rate, five times as large for the classifier.
# The released script sets a weight decay of 1e-3 and does not pass it on: what ran is the default of 1e-4. It does not
# clip gradients; that of ICCV 2021, otherwise the same, clips their norm at 5.
optim_wrapper = dict(
    optimizer=dict(type="SGD", lr=1.2e-3, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys={"head.fc": dict(lr_mult=5)}),
)
param_scheduler = dict(type="ConstantLR", by_epoch=True, factor=1.0, end=100)
train_cfg = dict(by_epoch=True, max_epochs=100, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=10)
