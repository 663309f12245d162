# ResNet-50 with compact bilinear pooling (CBP), on FGVC Aircraft.
# Paper: "Compact Bilinear Pooling", CVPR 2016
# Published: none for this network
# Recipe: that of fine-tuning of CVPR 2018 (batch 10, learning rate 1.2e-3, 5 times that for the classifier, 100 epochs)
# Train: python tools/train.py configs/fine_grained/resnet50_cbp_1xb10_aircraft.py
_base_ = "./resnet50_svdpade_1xb10_aircraft.py"

model = dict(neck=dict(pool="cbp"))
