# DropCov's DeiT-S: SoT's head with dropout for its norm of singular values, on ImageNet.
# Paper: "DropCov: A Simple yet Effective Method for Improving Deep Architectures", NeurIPS 2022
# Published: top-1 accuracy 82.4 (79.8 of DeiT-S)
# Recipe: NeurIPS 2022 (batch 1024, learning rate 1e-3, weight decay 0.03, 310 epochs)
# Train: torchrun --nproc-per-node 8 tools/train.py configs/sot/deit-small-dropcov_crosscov_8xb128_in1k.py --launcher pytorch --amp
_base_ = "./sot-tiny_crosscov_8xb128_in1k.py"

model = dict(
    backbone=dict(model_name="dropcov_deit_small"),
    neck=dict(in_channels=384, reduce_channels=144, normalization="none", token_dropout=0.2, entry_dropout=0.5),
)
