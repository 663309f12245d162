# Swin-T with SVD-Padé, on ImageNet.
# Paper: "Why Approximate Matrix Square Root Outperforms Accurate SVD in Global Covariance Pooling?", ICCV 2021
# Published: none for this network
# Recipe: MMPretrain's for this network
# Train: torchrun --nnodes 2 --nproc-per-node 8 tools/train.py configs/swin_transformer/swin-tiny_svdpade_16xb64_in1k.py --launcher pytorch
_base_ = "mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py"

model = dict(
    neck=dict(_delete_=True, type="covpool_plugins.CovariancePooling", pool="svdpade", in_channels=768),
    head=dict(type="covpool_plugins.SecondOrderClsHead", in_channels=None),
)
