# Inception-v3 with SVD-Padé, on ImageNet.
# Paper: "Why Approximate Matrix Square Root Outperforms Accurate SVD in Global Covariance Pooling?", ICCV 2021
# Published: none for this network
# Recipe: MMPretrain's for this network
# Train: torchrun --nproc-per-node 8 tools/train.py configs/inception_v3/inception-v3_svdpade_8xb32_in1k.py --launcher pytorch
_base_ = "mmpretrain::inception_v3/inception-v3_8xb32_in1k.py"

model = dict(
    backbone=dict(_delete_=True, type="TIMMBackbone", model_name="inception_v3"),  # MMPretrain's own returns logits
    neck=dict(_delete_=True, type="covpool_plugins.CovariancePooling", pool="svdpade", in_channels=2048),
    head=dict(
        _delete_=True,
        type="covpool_plugins.SecondOrderClsHead",
        num_classes=1000,
        loss=dict(type="CrossEntropyLoss"),
        topk=(1, 5),
    ),
)
