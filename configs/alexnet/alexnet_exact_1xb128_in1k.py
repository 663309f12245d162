# AlexNet with batch norm with the exact square root (MPN-COV), on ImageNet.
# Paper: "Is Second-order Information Helpful for Large-scale Visual Recognition?", ICCV 2017
# Published: none for this network
# Recipe: ICCV 2021 (batch 128, learning rate 0.0794, 30 epochs, divided by 10 after 10 and 20)
# Train: python tools/train.py configs/alexnet/alexnet_exact_1xb128_in1k.py
_base_ = "./alexnet_svdpade_1xb128_in1k.py"

model = dict(neck=dict(pool="exact"))
