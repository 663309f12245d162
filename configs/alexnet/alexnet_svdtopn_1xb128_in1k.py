# AlexNet with batch norm with SVD-TopN, on ImageNet.
# Paper: "Why Approximate Matrix Square Root Outperforms Accurate SVD in Global Covariance Pooling?", ICCV 2021
# Published: none for this network
# Recipe: ICCV 2021 (batch 128, learning rate 0.0794, 30 epochs, divided by 10 after 10 and 20)
# Train: python tools/train.py configs/alexnet/alexnet_svdtopn_1xb128_in1k.py
_base_ = "./alexnet_svdpade_1xb128_in1k.py"

model = dict(neck=dict(pool="svdtopn"))
