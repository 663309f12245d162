# VGG-16 with batch norm with Newton-Schulz iteration (iSQRT), on CUB-200-2011.
# Paper: "Towards Faster Training of Global Covariance Pooling Networks by Iterative Matrix Square Root
#   Normalization", CVPR 2018
# Published: accuracy 87.2 of VGG-D (in the authors' README)
# Recipe: fine-tuning of VGG of CVPR 2018 (batch 10, learning rate 3e-3, 20 times that for the classifier, 40 epochs,
#   divided by 10 after 20)
# Train: python tools/train.py configs/fine_grained/vgg16bn_isqrt_1xb10_cub.py
_base_ = [
    "../_base_/models/vgg16bn_in1k.py",
    "../_base_/datasets/cub_bs10_448.py",
    "../_base_/schedules/fine_tune_bs10_40e.py",
    "mmpretrain::_base_/default_runtime.py",
]

model = dict(neck=dict(pool="isqrt"), head=dict(num_classes=200))
