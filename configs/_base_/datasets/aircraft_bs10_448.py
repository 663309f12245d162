# FGVC Aircraft: resized to 512x512, of which the middle 448x448, in training too.
_base_ = "./cub_bs10_448.py"

dataset_type = "FGVCAircraft"
data_root = "data/fgvc-aircraft-2013b"
data_preprocessor = dict(num_classes=100)
square = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(512, 512)),
    dict(type="CenterCrop", crop_size=448),
]
train_pipeline = [*square, dict(type="RandomFlip", prob=0.5, direction="horizontal"), dict(type="PackInputs")]
test_pipeline = [*square, dict(type="PackInputs")]
train_dataloader = dict(dataset=dict(type=dataset_type, data_root=data_root, split="trainval", pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(type=dataset_type, data_root=data_root, split="test", pipeline=test_pipeline))
test_dataloader = val_dataloader
