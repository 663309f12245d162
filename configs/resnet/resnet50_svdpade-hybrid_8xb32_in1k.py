# ResNet-50 with the hybrid protocol: Newton-Schulz until the last decay of the learning rate, then SVD-Padé.
# Paper: "Why Approximate Matrix Square Root Outperforms Accurate SVD in Global Covariance Pooling?", ICCV 2021
# Published: top-1/top-5 error 22.60/6.44 (average pooling 23.85/7.13)
# Recipe: ICCV 2021 (batch 256, learning rate 0.0794, 60 epochs, divided by 10 after 30 and 45)
# Train: torchrun --nproc-per-node 8 tools/train.py configs/resnet/resnet50_svdpade-hybrid_8xb32_in1k.py --launcher pytorch
_base_ = "./resnet50_svdpade_8xb32_in1k.py"

model = dict(neck=dict(pool="isqrt"))
custom_hooks = [dict(type="covpool_plugins.SwitchMethodHook", begin=45, method="svdpade")]
