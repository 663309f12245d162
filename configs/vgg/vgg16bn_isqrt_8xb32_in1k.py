# VGG-16 with batch norm with Newton-Schulz iteration (iSQRT), on ImageNet.
# Paper: "Towards Faster Training of Global Covariance Pooling Networks by Iterative Matrix Square Root Normalization",
#   CVPR 2018
# Published: top-1 error 26.55 of VGG-D (23.98 in the authors' README)
# Recipe: that of the SVD heads for ResNet-50 in ICCV 2021 (batch 256, learning rate 0.0794, 60 epochs, divided by 10
#   after 30 and 45)
# Train: torchrun --nproc-per-node 8 tools/train.py configs/vgg/vgg16bn_isqrt_8xb32_in1k.py --launcher pytorch
_base_ = [
    "mmpretrain::_base_/models/vgg16bn.py",
    "mmpretrain::_base_/datasets/imagenet_bs32.py",
    "../_base_/schedules/imagenet_bs256_60e.py",
    "mmpretrain::_base_/default_runtime.py",
]

model = dict(
    # Without the classifier that MMPretrain counts as backbone, and without the last pooling, as in main.py: 14x14 positions.
    backbone=dict(num_classes=-1, with_last_pool=False),
    neck=dict(_delete_=True, type="covpool_plugins.CovariancePooling", pool="isqrt", in_channels=512),
    head=dict(type="covpool_plugins.SecondOrderClsHead", num_classes=1000),
)
