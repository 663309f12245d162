# ResNet-50 with Newton-Schulz iteration (iSQRT), on Stanford Cars.
# Paper: "Towards Faster Training of Global Covariance Pooling Networks by Iterative Matrix Square Root Normalization",
#   CVPR 2018
# Published: accuracy 92.8 (92.3 in the authors' README); final/best accuracy 90.93/91.56 in the comparison of ICCV 2021
# Recipe: fine-tuning of CVPR 2018 (batch 10, learning rate 1.2e-3, 5 times that for the classifier, 100 epochs)
# Train: python tools/train.py configs/fine_grained/resnet50_isqrt_1xb10_cars.py
_base_ = [
    "../_base_/models/resnet50_in1k.py",
    "../_base_/datasets/cars_bs10_448.py",
    "../_base_/schedules/fine_tune_bs10_100e.py",
    "mmpretrain::_base_/default_runtime.py",
]

model = dict(
    neck=dict(_delete_=True, type="covpool_plugins.CovariancePooling", pool="isqrt", in_channels=2048),
    head=dict(type="covpool_plugins.SecondOrderClsHead", in_channels=None, num_classes=196),
)
