# ViT-S/16 with matrix Padé approximants (MPA), on ImageNet.
# Paper: "Fast Differentiable Matrix Square Root", ICLR 2022
# Published: none for this network
# Recipe: MMPretrain's for DeiT-S
# Train: torchrun --nproc-per-node 4 tools/train.py configs/vision_transformer/vit-small-p16_mpa_4xb256_in1k.py --launcher pytorch
_base_ = "./vit-small-p16_svdpade_4xb256_in1k.py"

model = dict(neck=dict(pool="mpa"))
