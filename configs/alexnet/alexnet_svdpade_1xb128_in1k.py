# AlexNet with batch norm with SVD-Padé, on ImageNet.
# Paper: "Why Approximate Matrix Square Root Outperforms Accurate SVD in Global Covariance Pooling?", ICCV 2021
# Published: none for this network
# Recipe: ICCV 2021 (batch 128, learning rate 0.0794, 30 epochs, divided by 10 after 10 and 20)
# Train: python tools/train.py configs/alexnet/alexnet_svdpade_1xb128_in1k.py
_base_ = [
    "mmpretrain::_base_/datasets/imagenet_bs32.py",
    "../_base_/schedules/imagenet_bs128_30e.py",
    "mmpretrain::_base_/default_runtime.py",
]

model = dict(
    type="ImageClassifier",
    backbone=dict(type="covpool_plugins.TIMMBackbone", model_name="alexnet"),
    neck=dict(type="covpool_plugins.CovariancePooling", pool="svdpade", in_channels=256),
    head=dict(
        type="covpool_plugins.SecondOrderClsHead", num_classes=1000, loss=dict(type="CrossEntropyLoss"), topk=(1, 5)
    ),
)
train_dataloader = dict(batch_size=128)
