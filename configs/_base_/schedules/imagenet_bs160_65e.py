# iSQRT-COV (CVPR 2018) on ImageNet: batch 160, learning rate 0.1, 65 epochs, divided by 10 after 30, 45 and 60.
optim_wrapper = dict(optimizer=dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=1e-4))
param_scheduler = dict(type="MultiStepLR", by_epoch=True, milestones=[30, 45, 60], gamma=0.1)
train_cfg = dict(by_epoch=True, max_epochs=65, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=160)
