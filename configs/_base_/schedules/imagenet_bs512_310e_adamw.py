# So-ViT in ICLR 2022 on ImageNet: batch 512, learning rate 1e-3; 5 epochs of warm-up, cosine to 300, 10 at the end.
optim_wrapper = dict(
    optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.03),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys={".cls_token": dict(decay_mult=0.0)},
    ),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", T_max=295, eta_min=1e-5, by_epoch=True, begin=5, end=300),
]
custom_hooks = [dict(type="EMAHook", momentum=4e-5, priority="ABOVE_NORMAL")]
train_cfg = dict(by_epoch=True, max_epochs=310, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=512)
