# So-ViT-14 with matrix Padé approximants (MPA), on ImageNet.
# Paper: "Fast Differentiable Matrix Square Root", ICLR 2022
# Published: none for this network
# Recipe: the script of ICLR 2022 (batch 512, learning rate 1e-3, weight decay 0.05, 310 epochs)
# Train: torchrun --nproc-per-node 8 tools/train.py configs/so_vit/so-vit-14_mpa_8xb64_in1k.py --launcher pytorch --amp
_base_ = "./so-vit-7_mpa_8xb64_in1k.py"

model = dict(backbone=dict(model_name="so_vit_14"), neck=dict(in_channels=384, reduce_channels=64))
optim_wrapper = dict(optimizer=dict(weight_decay=0.05))
