# ResNet-101 with the exact square root (MPN-COV), on ImageNet.
# Paper: "Is Second-order Information Helpful for Large-scale Visual Recognition?", ICCV 2017
# Published: top-1/top-5 error 21.79/5.99 (average pooling 22.63/6.44; both in the comparison of ICCV 2021)
# Recipe: ICCV 2021 (batch 256, learning rate 0.0794, 60 epochs, divided by 10 after 30 and 45)
# Train: torchrun --nproc-per-node 8 tools/train.py configs/resnet/resnet101_exact_8xb32_in1k.py --launcher pytorch
_base_ = "./resnet101_svdpade_8xb32_in1k.py"

model = dict(neck=dict(pool="exact"))
