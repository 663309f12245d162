# ResNet-50 with no stride in its last stage and DropCov, on ImageNet.
# Paper: "DropCov: A Simple yet Effective Method for Improving Deep Architectures", NeurIPS 2022
# Published: top-1 accuracy 78.19 (76.02 by average pooling)
# Recipe: NeurIPS 2022 (batch 256, learning rate 0.1, 100 epochs, divided by 10 after 30, 60 and 90)
# Train: torchrun --nproc-per-node 8 tools/train.py configs/resnet/resnet50-stride1_dropcov_8xb32_in1k.py --launcher pytorch
_base_ = "mmpretrain::resnet/resnet50_8xb32_in1k.py"

model = dict(
    backbone=dict(strides=(1, 2, 2, 1)),
    neck=dict(_delete_=True, type="covpool_plugins.CovariancePooling", pool="dropcov", in_channels=2048),
    head=dict(type="covpool_plugins.SecondOrderClsHead", in_channels=None),
)
