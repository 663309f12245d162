# So-ViT-7 with matrix Padé approximants (MPA), on ImageNet.
# Paper: "Fast Differentiable Matrix Square Root", ICLR 2022
# Published: top-1 accuracy 76.84 (76.50 by Newton-Schulz iteration)
# Recipe: the script of ICLR 2022 (batch 512, learning rate 1e-3, weight decay 0.03, 310 epochs)
# Train: torchrun --nproc-per-node 8 tools/train.py configs/so_vit/so-vit-7_mpa_8xb64_in1k.py --launcher pytorch --amp
_base_ = [
    "../_base_/models/tokens_in1k.py",
    "mmpretrain::_base_/datasets/imagenet_bs64_t2t_224.py",
    "../_base_/schedules/imagenet_bs512_310e_adamw.py",
    "mmpretrain::_base_/default_runtime.py",
]

model = dict(
    backbone=dict(model_name="so_vit_7"),
    neck=dict(pool="mpa", in_channels=256, reduce_channels=48, reduction="conv-bn-relu"),
)
