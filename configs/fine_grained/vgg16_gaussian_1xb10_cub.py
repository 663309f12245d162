# VGG-16 with the square root of the Gaussian embedding (G2DeNet), on CUB-200-2011.
# Paper: "G2DeNet: Global Gaussian Distribution Embedding Network and Its Application to Visual Recognition", CVPR
#   2017
# Published: accuracy 87.1 of VGG-D (as the authors of CVPR 2018 quote it)
# Recipe: that of fine-tuning of VGG of CVPR 2018; its own was not seen (batch 10, learning rate 3e-3, 20 times that
#   for the classifier, 40 epochs, divided by 10 after 20)
# Train: python tools/train.py configs/fine_grained/vgg16_gaussian_1xb10_cub.py
_base_ = [
    "../_base_/models/vgg16_in1k.py",
    "../_base_/datasets/cub_bs10_448.py",
    "../_base_/schedules/fine_tune_bs10_40e.py",
    "mmpretrain::_base_/default_runtime.py",
]

model = dict(neck=dict(pool="gaussian", reduce_channels=None, vectorize="full"), head=dict(num_classes=200))
