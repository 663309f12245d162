# SoT-Tiny: the class token and cross-covariances of the other tokens, on ImageNet.
# Paper: "SoT: Delving Deeper into Classification Head for Transformer", arXiv 2021
# Published: top-1 accuracy 80.3
# Recipe: that of DropCov's transformers, NeurIPS 2022 (batch 1024, learning rate 1e-3, weight decay 0.03, 310 epochs); its
#   own was not seen
# Train: torchrun --nproc-per-node 8 tools/train.py configs/sot/sot-tiny_crosscov_8xb128_in1k.py --launcher pytorch --amp
_base_ = [
    "../_base_/models/tokens_in1k.py",
    "mmpretrain::_base_/datasets/imagenet_bs64_t2t_224.py",
    "../_base_/schedules/imagenet_bs512_310e_adamw.py",
    "mmpretrain::_base_/default_runtime.py",
]

model = dict(
    backbone=dict(model_name="sot_tiny"),
    neck=dict(
        pool="crosscov",
        in_channels=240,
        reduce_channels=84,  # of queries and of keys, in six heads
        heads=6,
    ),
)
train_dataloader = dict(batch_size=128)
auto_scale_lr = dict(base_batch_size=1024)
