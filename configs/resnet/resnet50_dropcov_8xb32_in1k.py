# ResNet-50 with DropCov, on ImageNet.
# Paper: "DropCov: A Simple yet Effective Method for Improving Deep Architectures", NeurIPS 2022
# Published: top-1 accuracy 78.19; the paper's recipe is not known here
# Recipe: ICCV 2021 (batch 256, learning rate 0.0794, 60 epochs, divided by 10 after 30 and 45)
# Train: torchrun --nproc-per-node 8 tools/train.py configs/resnet/resnet50_dropcov_8xb32_in1k.py --launcher pytorch
_base_ = "./resnet50_svdpade_8xb32_in1k.py"

model = dict(neck=dict(pool="dropcov"))
