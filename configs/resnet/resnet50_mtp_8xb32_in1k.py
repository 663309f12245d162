# ResNet-50 with matrix Taylor polynomials (MTP), on ImageNet.
# Paper: "Fast Differentiable Matrix Square Root", ICLR 2022
# Published: none for this network
# Recipe: ICCV 2021 (batch 256, learning rate 0.0794, 60 epochs, divided by 10 after 30 and 45)
# Train: torchrun --nproc-per-node 8 tools/train.py configs/resnet/resnet50_mtp_8xb32_in1k.py --launcher pytorch
_base_ = "./resnet50_svdpade_8xb32_in1k.py"

model = dict(neck=dict(pool="mtp"))
