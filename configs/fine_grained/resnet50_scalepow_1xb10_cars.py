# ResNet-50 from scratch with scaled matrix powers (ScalePow-EMLR), on Stanford Cars.
# Paper: "Understanding Matrix Function Normalizations in Covariance Pooling through the Lens of Riemannian Geometry",
#   ICLR 2025
# Published: top-1/top-5 accuracy 80.31/94.07 (80.43/94.15 by Newton-Schulz iteration), trained from scratch
# Recipe: ICLR 2025 (batch 10, learning rate 5e-2, 10 times that for the classifier, 100 epochs, divided by 10 after
#   50)
# Train: python tools/train.py configs/fine_grained/resnet50_scalepow_1xb10_cars.py
_base_ = [
    "mmpretrain::_base_/models/resnet50.py",
    "../_base_/datasets/cars_bs10_448.py",
    "../_base_/schedules/fine_tune_bs10_200e.py",
    "mmpretrain::_base_/default_runtime.py",
]

model = dict(
    neck=dict(_delete_=True, type="covpool_plugins.CovariancePooling", pool="scalepow", in_channels=2048),
    head=dict(type="covpool_plugins.SecondOrderClsHead", in_channels=None, num_classes=196),
)
optim_wrapper = dict(optimizer=dict(lr=5e-2), paramwise_cfg=dict(custom_keys={"head.fc": dict(lr_mult=10)}))
param_scheduler = dict(milestones=[50])
train_cfg = dict(max_epochs=100)
