# ResNet-50 with bilinear pooling (B-CNN), on CUB-200-2011.
# Paper: "Bilinear CNN Models for Fine-grained Visual Recognition", ICCV 2015
# Published: accuracy 84.0 of VGG-D (as BMVC 2017 quotes it); none for this network
# Recipe: that of fine-tuning of CVPR 2018 (batch 10, learning rate 1.2e-3, 5 times that for the classifier, 100 epochs)
# Train: python tools/train.py configs/fine_grained/resnet50_bcnn_1xb10_cub.py
_base_ = "./resnet50_svdpade_1xb10_cub.py"

model = dict(neck=dict(pool="bcnn", reduce_channels=256))  # 2048 channels would make 4 million numbers
