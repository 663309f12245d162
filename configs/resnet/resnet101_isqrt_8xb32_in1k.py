# ResNet-101 with Newton-Schulz iteration (iSQRT), on ImageNet.
# Paper: "Towards Faster Training of Global Covariance Pooling Networks by Iterative Matrix Square Root Normalization",
#   CVPR 2018
# Published: top-1/top-5 error 21.60/5.88 (average pooling 22.63/6.44; both in the comparison of ICCV 2021)
# Recipe: ICCV 2021 (batch 256, learning rate 0.0794, 60 epochs, divided by 10 after 30 and 45)
# Train: torchrun --nproc-per-node 8 tools/train.py configs/resnet/resnet101_isqrt_8xb32_in1k.py --launcher pytorch
_base_ = "./resnet101_svdpade_8xb32_in1k.py"

model = dict(neck=dict(pool="isqrt"))
