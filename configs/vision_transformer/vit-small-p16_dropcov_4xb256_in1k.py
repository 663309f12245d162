# ViT-S/16 with DropCov, on ImageNet.
# Paper: "DropCov: A Simple yet Effective Method for Improving Deep Architectures", NeurIPS 2022
# Published: top-1 accuracy 82.4 of DeiT-S (79.8 without); the paper's recipe is not known here
# Recipe: MMPretrain's for DeiT-S
# Train: torchrun --nproc-per-node 4 tools/train.py configs/vision_transformer/vit-small-p16_dropcov_4xb256_in1k.py --launcher pytorch
_base_ = "./vit-small-p16_svdpade_4xb256_in1k.py"

model = dict(neck=dict(pool="dropcov"))
