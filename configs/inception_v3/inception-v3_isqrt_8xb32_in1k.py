# Inception-v3 with Newton-Schulz iteration (iSQRT), on ImageNet.
# Paper: "Towards Faster Training of Global Covariance Pooling Networks by Iterative Matrix Square Root Normalization",
#   CVPR 2018
# Published: none for this network
# Recipe: MMPretrain's for this network
# Train: torchrun --nproc-per-node 8 tools/train.py configs/inception_v3/inception-v3_isqrt_8xb32_in1k.py --launcher pytorch
_base_ = "./inception-v3_svdpade_8xb32_in1k.py"

model = dict(neck=dict(pool="isqrt"))
