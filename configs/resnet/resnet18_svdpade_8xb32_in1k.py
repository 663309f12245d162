# ResNet-18 with SVD-Padé, on ImageNet.
# Paper: "Why Approximate Matrix Square Root Outperforms Accurate SVD in Global Covariance Pooling?", ICCV 2021
# Published: none for this network
# Recipe: that of the SVD heads for ResNet-50 in ICCV 2021 (batch 256, learning rate 0.0794, 60 epochs, divided by 10
#   after 30 and 45)
# Train: torchrun --nproc-per-node 8 tools/train.py configs/resnet/resnet18_svdpade_8xb32_in1k.py --launcher pytorch
_base_ = [
    "mmpretrain::_base_/models/resnet18.py",
    "mmpretrain::_base_/datasets/imagenet_bs32.py",
    "../_base_/schedules/imagenet_bs256_60e.py",
    "mmpretrain::_base_/default_runtime.py",
]

model = dict(
    neck=dict(_delete_=True, type="covpool_plugins.CovariancePooling", pool="svdpade", in_channels=512),
    head=dict(type="covpool_plugins.SecondOrderClsHead", in_channels=None),
)
