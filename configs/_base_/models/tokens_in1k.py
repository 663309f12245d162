# A transformer of this package whose class token and second-order tokens are classified; configs name network and pool.
model = dict(
    type="ImageClassifier",
    backbone=dict(type="covpool_plugins.TIMMBackbone", global_pool="", drop_path_rate=0.1),
    neck=dict(type="covpool_plugins.CovariancePooling", input_fmt="NLC", num_prefix_tokens=1, cls_token=True),
    head=dict(
        type="covpool_plugins.SecondOrderClsHead",
        num_classes=1000,
        loss=dict(type="LabelSmoothLoss", label_smooth_val=0.1, mode="original"),
        topk=(1, 5),
    ),
    train_cfg=dict(augments=[dict(type="Mixup", alpha=0.8), dict(type="CutMix", alpha=1.0)]),
)
