# ResNet-50 with no stride in its last stage and Newton-Schulz iteration (iSQRT), on ImageNet.
# Paper: "Towards Faster Training of Global Covariance Pooling Networks by Iterative Matrix Square Root Normalization",
#   CVPR 2018
# Published: top-1 error 22.14 (21.71 in the authors' README)
# Recipe: CVPR 2018 (batch 160, learning rate 0.1, 65 epochs, divided by 10 after 30, 45 and 60)
# Train: torchrun --nproc-per-node 8 tools/train.py configs/resnet/resnet50-stride1_isqrt_8xb20_in1k.py --launcher pytorch
_base_ = [
    "mmpretrain::_base_/models/resnet50.py",
    "mmpretrain::_base_/datasets/imagenet_bs32.py",
    "../_base_/schedules/imagenet_bs160_65e.py",
    "mmpretrain::_base_/default_runtime.py",
]

model = dict(
    backbone=dict(strides=(1, 2, 2, 1)),
    neck=dict(_delete_=True, type="covpool_plugins.CovariancePooling", pool="isqrt", in_channels=2048),
    head=dict(type="covpool_plugins.SecondOrderClsHead", in_channels=None),
)
train_dataloader = dict(batch_size=20)
