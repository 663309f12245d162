# ViT-S/16 with Newton-Schulz iteration (iSQRT), on ImageNet.
# Paper: "Towards Faster Training of Global Covariance Pooling Networks by Iterative Matrix Square Root Normalization",
#   CVPR 2018
# Published: none for this network
# Recipe: MMPretrain's for DeiT-S
# Train: torchrun --nproc-per-node 4 tools/train.py configs/vision_transformer/vit-small-p16_isqrt_4xb256_in1k.py --launcher pytorch
_base_ = "./vit-small-p16_svdpade_4xb256_in1k.py"

model = dict(neck=dict(pool="isqrt"))
