# SoT-Base: the class token and cross-covariances of the other tokens, on ImageNet.
# Paper: "SoT: Delving Deeper into Classification Head for Transformer", arXiv 2021
# Published: top-1 accuracy 83.5
# Recipe: that of DropCov's DeiT-B, NeurIPS 2022 (batch 512, learning rate 5e-4, weight decay 0.065, 310 epochs); its own was not
#   seen
# Train: torchrun --nproc-per-node 8 tools/train.py configs/sot/sot-base_crosscov_8xb64_in1k.py --launcher pytorch --amp
_base_ = "./sot-tiny_crosscov_8xb128_in1k.py"

model = dict(
    backbone=dict(model_name="sot_base"),
    neck=dict(in_channels=528, reduce_channels=228, entry_dropout=0.7),
)
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(optimizer=dict(lr=5e-4, weight_decay=0.065))
auto_scale_lr = dict(base_batch_size=512)
