# ResNet-50 with SVD-Padé, on Stanford Cars.
# Paper: "Why Approximate Matrix Square Root Outperforms Accurate SVD in Global Covariance Pooling?", ICCV 2021
# Published: final/best accuracy 92.55/92.99 in the comparison of ICCV 2021
# Recipe: ICCV 2021 (batch 10, learning rate 1.2e-3, 5 times that for the classifier, 100 epochs)
# Train: python tools/train.py configs/fine_grained/resnet50_svdpade_1xb10_cars.py
_base_ = "./resnet50_isqrt_1xb10_cars.py"

model = dict(neck=dict(pool="svdpade"))
optim_wrapper = dict(clip_grad=dict(max_norm=5))
