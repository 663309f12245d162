# Stanford Dogs, cut as the aircraft.
_base_ = "./aircraft_bs10_448.py"

dataset_type = "covpool_plugins.StanfordDogs"
data_root = "data/stanford_dogs"
data_preprocessor = dict(num_classes=120)
train_dataloader = dict(dataset=dict(type=dataset_type, data_root=data_root, split="train"))
val_dataloader = dict(dataset=dict(type=dataset_type, data_root=data_root, split="test"))
test_dataloader = val_dataloader
