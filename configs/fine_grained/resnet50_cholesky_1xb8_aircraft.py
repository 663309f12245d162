# ResNet-50 from scratch with the log-Cholesky classifier (Cho-TMLR), on FGVC Aircraft.
# Paper: "Understanding Matrix Function Normalizations in Covariance Pooling through the Lens of Riemannian Geometry",
#   ICLR 2025
# Published: top-1/top-5 accuracy 78.97/91.81 (72.07/89.83 by Newton-Schulz iteration), trained from scratch
# Recipe: ICLR 2025 (batch 8, learning rate 5e-3, 5 times that for the classifier, 50 epochs, divided by 10 after 21)
# Train: python tools/train.py configs/fine_grained/resnet50_cholesky_1xb8_aircraft.py
_base_ = [
    "mmpretrain::_base_/models/resnet50.py",
    "../_base_/datasets/aircraft_bs10_448.py",
    "../_base_/schedules/fine_tune_bs10_200e.py",
    "mmpretrain::_base_/default_runtime.py",
]

model = dict(
    neck=dict(_delete_=True, type="covpool_plugins.CovariancePooling", pool="cholesky", in_channels=2048),
    head=dict(type="covpool_plugins.SecondOrderClsHead", in_channels=None, num_classes=100),
)
train_dataloader = dict(batch_size=8)
auto_scale_lr = dict(base_batch_size=8)
optim_wrapper = dict(optimizer=dict(lr=5e-3), paramwise_cfg=dict(custom_keys={"head.fc": dict(lr_mult=5)}))
param_scheduler = dict(milestones=[21])
train_cfg = dict(max_epochs=50)
