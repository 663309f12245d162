# Moment probing (ICCV 2023): AdamW, learning rate 1e-4, weight decay 0.05; 5 epochs of warm-up from 1e-7, cosine to 1e-8.
optim_wrapper = dict(optimizer=dict(type="AdamW", lr=1e-4, weight_decay=0.05))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", T_max=25, eta_min=1e-8, by_epoch=True, begin=5, end=30),
]
train_cfg = dict(by_epoch=True, max_epochs=30, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=256)
