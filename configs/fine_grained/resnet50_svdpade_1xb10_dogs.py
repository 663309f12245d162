# ResNet-50 with SVD-Padé, on Stanford Dogs.
# Paper: "Why Approximate Matrix Square Root Outperforms Accurate SVD in Global Covariance Pooling?", ICCV 2021
# Published: final/best accuracy 83.40/84.34 in the comparison of ICCV 2021
# Recipe: ICCV 2021 (batch 10, learning rate 1.2e-3, 5 times that for the classifier, 100 epochs)
# Train: python tools/train.py configs/fine_grained/resnet50_svdpade_1xb10_dogs.py
_base_ = [
    "../_base_/models/resnet50_in1k.py",
    "../_base_/datasets/dogs_bs10_448.py",
    "../_base_/schedules/fine_tune_bs10_100e.py",
    "mmpretrain::_base_/default_runtime.py",
]

model = dict(
    neck=dict(_delete_=True, type="covpool_plugins.CovariancePooling", pool="svdpade", in_channels=2048),
    head=dict(type="covpool_plugins.SecondOrderClsHead", in_channels=None, num_classes=120),
)
optim_wrapper = dict(clip_grad=dict(max_norm=5))
