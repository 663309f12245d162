# DropCov's T2T-ViT-14: SoT's head with dropout for its norm of singular values, on ImageNet.
# Paper: "DropCov: A Simple yet Effective Method for Improving Deep Architectures", NeurIPS 2022
# Published: top-1 accuracy 82.7 (81.5 of T2T-ViT-14)
# Recipe: NeurIPS 2022 (batch 1024, learning rate 1e-3, weight decay 0.03, 310 epochs)
# Train: torchrun --nproc-per-node 8 tools/train.py configs/sot/t2t-vit-14-dropcov_crosscov_8xb128_in1k.py --launcher pytorch --amp
_base_ = "./sot-tiny_crosscov_8xb128_in1k.py"

model = dict(
    backbone=dict(model_name="dropcov_t2t_vit_14"),
    neck=dict(in_channels=384, reduce_channels=144, normalization="none", token_dropout=0.2, entry_dropout=0.5),
)
