# VGG-16 with batch norm with MMPretrain's ImageNet weights: without its classifier and its last pooling, 28x28 positions at 448.
_base_ = "mmpretrain::_base_/models/vgg16bn.py"

checkpoint = "https://download.openmmlab.com/mmclassification/v0/vgg/vgg16_bn_batch256_imagenet_20210208-7e55cd29.pth"
model = dict(
    backbone=dict(
        num_classes=-1, with_last_pool=False, init_cfg=dict(type="Pretrained", checkpoint=checkpoint, prefix="backbone")
    ),
    neck=dict(_delete_=True, type="covpool_plugins.CovariancePooling", in_channels=512),
    head=dict(type="covpool_plugins.SecondOrderClsHead", topk=(1,)),
)
