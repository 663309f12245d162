# ResNet-50 with SVD-Taylor, on ImageNet.
# Paper: "Why Approximate Matrix Square Root Outperforms Accurate SVD in Global Covariance Pooling?", ICCV 2021
# Published: top-1/top-5 error 22.91/6.67 (average pooling 23.85/7.13; both in the comparison of ICCV 2021)
# Recipe: ICCV 2021 (batch 256, learning rate 0.0794, 60 epochs, divided by 10 after 30 and 45)
# Train: torchrun --nproc-per-node 8 tools/train.py configs/resnet/resnet50_svdtaylor_8xb32_in1k.py --launcher pytorch
_base_ = "./resnet50_svdpade_8xb32_in1k.py"

model = dict(neck=dict(pool="svdtaylor"))
