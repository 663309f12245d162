# ResNet-50 with the hybrid protocol: Newton-Schulz until the last decay of the learning rate, then SVD-Newton.
# Paper: "Why Approximate Matrix Square Root Outperforms Accurate SVD in Global Covariance Pooling?", ICCV 2021
# Published: top-1/top-5 error 22.72/6.55 (average pooling 23.85/7.13)
# Recipe: ICCV 2021 (batch 256, learning rate 0.0794, 60 epochs, divided by 10 after 30 and 45)
# Train: torchrun --nproc-per-node 8 tools/train.py configs/resnet/resnet50_svdnewton-hybrid_8xb32_in1k.py --launcher pytorch
_base_ = "./resnet50_isqrt_8xb32_in1k.py"

custom_hooks = [dict(type="covpool_plugins.SwitchMethodHook", begin=45, method="svdnewton")]
