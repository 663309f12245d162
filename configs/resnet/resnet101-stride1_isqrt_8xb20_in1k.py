# ResNet-101 with no stride in its last stage and Newton-Schulz iteration (iSQRT), on ImageNet.
# Paper: "Towards Faster Training of Global Covariance Pooling Networks by Iterative Matrix Square Root Normalization",
#   CVPR 2018
# Published: top-1 error 21.21 (20.99 in the authors' README)
# Recipe: CVPR 2018 (batch 160, learning rate 0.1, 65 epochs, divided by 10 after 30, 45 and 60)
# Train: torchrun --nproc-per-node 8 tools/train.py configs/resnet/resnet101-stride1_isqrt_8xb20_in1k.py --launcher pytorch
_base_ = "./resnet50-stride1_isqrt_8xb20_in1k.py"

model = dict(backbone=dict(depth=101))
