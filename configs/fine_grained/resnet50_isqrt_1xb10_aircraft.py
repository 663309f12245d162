# ResNet-50 with Newton-Schulz iteration (iSQRT), on FGVC Aircraft.
# Paper: "Towards Faster Training of Global Covariance Pooling Networks by Iterative Matrix Square Root Normalization",
#   CVPR 2018
# Published: accuracy 90.0 (90.3 in the authors' README)
# Recipe: fine-tuning of CVPR 2018 (batch 10, learning rate 1.2e-3, 5 times that for the classifier, 100 epochs)
# Train: python tools/train.py configs/fine_grained/resnet50_isqrt_1xb10_aircraft.py
_base_ = "./resnet50_svdpade_1xb10_aircraft.py"

model = dict(neck=dict(pool="isqrt"))
