# So-ViT-10 with matrix Padé approximants (MPA), on ImageNet.
# Paper: "Fast Differentiable Matrix Square Root", ICLR 2022
# Published: top-1 accuracy 78.83 (78.44 by Newton-Schulz iteration)
# Recipe: the script of ICLR 2022 (batch 512, learning rate 1e-3, weight decay 0.03, 310 epochs)
# Train: torchrun --nproc-per-node 8 tools/train.py configs/so_vit/so-vit-10_mpa_8xb64_in1k.py --launcher pytorch --amp
_base_ = "./so-vit-7_mpa_8xb64_in1k.py"

model = dict(backbone=dict(model_name="so_vit_10"))
