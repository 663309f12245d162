# Moment probing of a frozen ViT-B/16, on ImageNet.
# Paper: "Tuning Pre-trained Model via Moment Probing", ICCV 2023
# Published: top-1 accuracy 83.15 (82.04 by linear probing)
# Recipe: ours; the paper's recipe and the weights it probes are not known here
# Train: torchrun --nnodes 2 --nproc-per-node 8 tools/train.py configs/vision_transformer/vit-base-p16_moment_16xb64_in1k.py --launcher pytorch
_base_ = [
    "mmpretrain::_base_/datasets/imagenet_bs64_pil_resize.py",
    "mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py",
    "mmpretrain::_base_/default_runtime.py",
]

checkpoint = "https://download.openmmlab.com/mmclassification/v0/vit/pretrain/vit-base-p16_3rdparty_pt-64xb64_in1k-224_20210928-02284250.pth"
model = dict(
    type="ImageClassifier",
    backbone=dict(
        type="VisionTransformer",
        arch="b",
        img_size=224,
        patch_size=16,
        out_type="raw",
        frozen_stages=12,
        init_cfg=dict(type="Pretrained", checkpoint=checkpoint, prefix="backbone"),
    ),
    neck=dict(
        type="covpool_plugins.CovariancePooling",
        pool="moment",
        in_channels=768,
        input_fmt="NLC",
        num_prefix_tokens=1,
        first_order="token",
    ),
    head=dict(
        type="covpool_plugins.SecondOrderClsHead", num_classes=1000, loss=dict(type="CrossEntropyLoss"), topk=(1, 5)
    ),
)
data_preprocessor = dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5], to_rgb=True)
optim_wrapper = dict(paramwise_cfg=None)  # it would name each frozen parameter in the log
train_cfg = dict(max_epochs=50)
