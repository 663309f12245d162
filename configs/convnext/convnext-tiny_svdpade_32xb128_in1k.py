# ConvNeXt-T with SVD-Padé, on ImageNet.
# Paper: "Why Approximate Matrix Square Root Outperforms Accurate SVD in Global Covariance Pooling?", ICCV 2021
# Published: none for this network
# Recipe: MMPretrain's for this network
# Train: torchrun --nnodes 4 --nproc-per-node 8 tools/train.py configs/convnext/convnext-tiny_svdpade_32xb128_in1k.py --launcher pytorch
_base_ = "mmpretrain::convnext/convnext-tiny_32xb128_in1k.py"

model = dict(
    backbone=dict(gap_before_final_norm=False),
    neck=dict(type="covpool_plugins.CovariancePooling", pool="svdpade", in_channels=768),
    head=dict(type="covpool_plugins.SecondOrderClsHead", in_channels=None),
)
