# "Towards Faster Training of Global Covariance Pooling Networks by Iterative Matrix Square Root Normalization",
# CVPR 2018. Published: ImageNet top-1/top-5 error 22.81/6.60 in the comparison of ICCV 2021, whose recipe this is. The
# paper itself has top-1 22.14, with no stride in the last stage, batch 160, learning rate 0.1, 65 epochs, divided by 10
# after 30, 45 and 60.
# Train: torchrun --nproc-per-node 8 tools/train.py configs/resnet/resnet50_isqrt_8xb32_in1k.py --launcher pytorch
_base_ = "./resnet50_svdpade_8xb32_in1k.py"

model = dict(neck=dict(method="isqrt"))
