# So-ViT-7 with singular value power normalisation (svPN), on ImageNet.
# Paper: "So-ViT: Mind Visual Tokens for Vision Transformer", arXiv 2021
# Published: none for this network
# Recipe: the script of ICLR 2022 (batch 512, learning rate 1e-3, weight decay 0.03, 310 epochs)
# Train: torchrun --nproc-per-node 8 tools/train.py configs/so_vit/so-vit-7_svpn_8xb64_in1k.py --launcher pytorch --amp
_base_ = "./so-vit-7_mpa_8xb64_in1k.py"

model = dict(head=dict(pool="svpn"))
