# ConvNeXt-T with Newton-Schulz iteration (iSQRT), on ImageNet.
# Paper: "Towards Faster Training of Global Covariance Pooling Networks by Iterative Matrix Square Root Normalization",
#   CVPR 2018
# Published: none for this network
# Recipe: MMPretrain's for this network
# Train: torchrun --nnodes 4 --nproc-per-node 8 tools/train.py configs/convnext/convnext-tiny_isqrt_32xb128_in1k.py --launcher pytorch
_base_ = "./convnext-tiny_svdpade_32xb128_in1k.py"

model = dict(neck=dict(pool="isqrt"))
