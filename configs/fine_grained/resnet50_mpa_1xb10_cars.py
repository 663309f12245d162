# ResNet-50 with matrix Padé approximants (MPA), on Stanford Cars.
# Paper: "Fast Differentiable Matrix Square Root", ICLR 2022
# Published: none for this network
# Recipe: that of fine-tuning of CVPR 2018 (batch 10, learning rate 1.2e-3, 5 times that for the classifier, 100 epochs)
# Train: python tools/train.py configs/fine_grained/resnet50_mpa_1xb10_cars.py
_base_ = "./resnet50_svdpade_1xb10_cars.py"

model = dict(neck=dict(pool="mpa"))
