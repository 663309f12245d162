# "Why Approximate Matrix Square Root Outperforms Accurate SVD in Global Covariance Pooling?", ICCV 2021
# Published: ImageNet top-1/top-5 error 22.67/6.51 (average pooling 23.85/7.13). Recipe of the released scripts: batch
# 256, learning rate 0.0794, 60 epochs, divided by 10 after 30 and 45, the gradient norm clipped at 5.
# Train: torchrun --nproc-per-node 8 tools/train.py configs/resnet/resnet50_svdpade_8xb32_in1k.py --launcher pytorch
_base_ = "mmpretrain::resnet/resnet50_8xb32_in1k.py"

model = dict(
    neck=dict(_delete_=True, type="covpool_plugins.CovariancePooling", method="svdpade", in_channels=2048),
    head=dict(type="covpool_plugins.SecondOrderClsHead", in_channels=None),
)

optim_wrapper = dict(optimizer=dict(lr=0.0794), clip_grad=dict(max_norm=5))
param_scheduler = dict(milestones=[30, 45])
train_cfg = dict(max_epochs=60)
