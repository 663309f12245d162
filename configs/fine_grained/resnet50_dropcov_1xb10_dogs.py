# ResNet-50 with DropCov, on Stanford Dogs.
# Paper: "DropCov: A Simple yet Effective Method for Improving Deep Architectures", NeurIPS 2022
# Published: none for this network
# Recipe: that of fine-tuning of CVPR 2018 (batch 10, learning rate 1.2e-3, 5 times that for the classifier, 100 epochs)
# Train: python tools/train.py configs/fine_grained/resnet50_dropcov_1xb10_dogs.py
_base_ = "./resnet50_svdpade_1xb10_dogs.py"

model = dict(neck=dict(pool="dropcov"))
