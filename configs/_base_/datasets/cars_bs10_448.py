# Stanford Cars at 448x448, whatever the shape of the picture.
_base_ = "./cub_bs10_448.py"

dataset_type = "StanfordCars"
data_root = "data/stanford_cars"
data_preprocessor = dict(num_classes=196)
square = [dict(type="LoadImageFromFile"), dict(type="Resize", scale=(448, 448))]
train_pipeline = [*square, dict(type="RandomFlip", prob=0.5, direction="horizontal"), dict(type="PackInputs")]
test_pipeline = [*square, dict(type="PackInputs")]
train_dataloader = dict(dataset=dict(type=dataset_type, data_root=data_root, split="train", pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(type=dataset_type, data_root=data_root, split="test", pipeline=test_pipeline))
test_dataloader = val_dataloader
