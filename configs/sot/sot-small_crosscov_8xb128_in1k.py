# SoT-Small: the class token and cross-covariances of the other tokens, on ImageNet.
# Paper: "SoT: Delving Deeper into Classification Head for Transformer", arXiv 2021
# Published: top-1 accuracy 82.7
# Recipe: that of DropCov's transformers, NeurIPS 2022 (batch 1024, learning rate 1e-3, weight decay 0.03, 310 epochs); its
#   own was not seen
# Train: torchrun --nproc-per-node 8 tools/train.py configs/sot/sot-small_crosscov_8xb128_in1k.py --launcher pytorch --amp
_base_ = "./sot-tiny_crosscov_8xb128_in1k.py"

model = dict(
    backbone=dict(model_name="sot_small"),
    neck=dict(in_channels=384, reduce_channels=144, entry_dropout=0.5),
)
