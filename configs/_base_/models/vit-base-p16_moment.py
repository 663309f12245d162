# Moment probing of a frozen ViT-B/16: the class token and the cross-covariances of four heads of its tokens.
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
