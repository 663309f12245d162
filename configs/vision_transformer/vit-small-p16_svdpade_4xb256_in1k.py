# ViT-S/16 with SVD-Padé, on ImageNet.
# Paper: "Why Approximate Matrix Square Root Outperforms Accurate SVD in Global Covariance Pooling?", ICCV 2021
# Published: none for this network
# Recipe: MMPretrain's for DeiT-S
# Train: torchrun --nproc-per-node 4 tools/train.py configs/vision_transformer/vit-small-p16_svdpade_4xb256_in1k.py --launcher pytorch
_base_ = "mmpretrain::deit/deit-small_4xb256_in1k.py"

model = dict(
    backbone=dict(out_type="raw"),
    neck=dict(
        _delete_=True,
        type="covpool_plugins.CovariancePooling",
        pool="svdpade",
        in_channels=384,
        input_fmt="NLC",
        num_prefix_tokens=1,
        cls_token=True,  # its logits are added to those of the covariance
    ),
    head=dict(type="covpool_plugins.SecondOrderClsHead", in_channels=None),
)
