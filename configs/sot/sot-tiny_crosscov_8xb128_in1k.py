# SoT-Tiny: the class token and cross-covariances of the other tokens, on ImageNet.
# Paper: "SoT: Delving Deeper into Classification Head for Transformer", arXiv 2021
# Published: top-1 accuracy 80.3
# Recipe: that of DropCov's transformers, NeurIPS 2022 (batch 1024, learning rate 1e-3, weight decay 0.03, 310 epochs); its
#   own was not seen
# Train: torchrun --nproc-per-node 8 tools/train.py configs/sot/sot-tiny_crosscov_8xb128_in1k.py --launcher pytorch --amp
_base_ = [
    "mmpretrain::_base_/datasets/imagenet_bs64_t2t_224.py",
    "../_base_/schedules/imagenet_bs512_310e_adamw.py",
    "mmpretrain::_base_/default_runtime.py",
]

model = dict(
    type="ImageClassifier",
    backbone=dict(type="covpool_plugins.TIMMBackbone", model_name="sot_tiny", global_pool="", drop_path_rate=0.1),
    neck=dict(
        type="covpool_plugins.CovariancePooling",
        pool="crosscov",
        in_channels=240,
        reduce_channels=84,  # of queries and of keys, in six heads
        heads=6,
        input_fmt="NLC",
        num_prefix_tokens=1,
        cls_token=True,
    ),
    head=dict(
        type="covpool_plugins.SecondOrderClsHead",
        num_classes=1000,
        loss=dict(type="LabelSmoothLoss", label_smooth_val=0.1, mode="original"),
        topk=(1, 5),
    ),
    train_cfg=dict(augments=[dict(type="Mixup", alpha=0.8), dict(type="CutMix", alpha=1.0)]),
)
train_dataloader = dict(batch_size=128)
auto_scale_lr = dict(base_batch_size=1024)
