# The script released with ICLR 2022, on CIFAR: batch 128, learning rate 0.1, weight decay 5e-4, 350 epochs, divided by 10
# after 100, 200 and 300. NeurIPS 2019 states the same epochs and rates; its momentum and weight decay were not seen.
optim_wrapper = dict(optimizer=dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=5e-4))
param_scheduler = dict(type="MultiStepLR", by_epoch=True, milestones=[100, 200, 300], gamma=0.1)
train_cfg = dict(by_epoch=True, max_epochs=350, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=128)
