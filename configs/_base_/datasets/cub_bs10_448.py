# Birds at 448: the shorter side is resized, then the middle cut out, in training too.
_base_ = "mmpretrain::_base_/datasets/cub_bs8_448.py"

square = [
    dict(type="LoadImageFromFile"),
    dict(type="ResizeEdge", scale=448, edge="short"),
    dict(type="CenterCrop", crop_size=448),
]
train_pipeline = [*square, dict(type="RandomFlip", prob=0.5, direction="horizontal"), dict(type="PackInputs")]
test_pipeline = [*square, dict(type="PackInputs")]
train_dataloader = dict(batch_size=10, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=10, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
