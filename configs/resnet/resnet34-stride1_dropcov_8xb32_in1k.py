# ResNet-34 with no stride in its last stage and DropCov, on ImageNet.
# Paper: "DropCov: A Simple yet Effective Method for Improving Deep Architectures", NeurIPS 2022
# Published: top-1 accuracy 76.81 (74.19 by average pooling)
# Recipe: NeurIPS 2022 (batch 256, learning rate 0.1, 100 epochs, divided by 10 after 30, 60 and 90)
# Train: torchrun --nproc-per-node 8 tools/train.py configs/resnet/resnet34-stride1_dropcov_8xb32_in1k.py --launcher pytorch
_base_ = "./resnet50-stride1_dropcov_8xb32_in1k.py"

model = dict(backbone=dict(depth=34), neck=dict(in_channels=512))
