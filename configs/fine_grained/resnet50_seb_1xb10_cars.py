# ResNet-50 with scaled eigen branch (SEB), on Stanford Cars.
# Paper: "On the Eigenvalues of Global Covariance Pooling for Fine-grained Visual Recognition", T-PAMI 2022
# Published: none for this network
# Recipe: T-PAMI 2022 (batch 10, learning rate 3e-3, 10 times that for the classifier, 200 epochs, divided by 10 after
#   50 and 100)
# Train: python tools/train.py configs/fine_grained/resnet50_seb_1xb10_cars.py
_base_ = [
    "../_base_/models/resnet50_in1k.py",
    "../_base_/datasets/cars_bs10_448.py",
    "../_base_/schedules/fine_tune_bs10_200e.py",
    "mmpretrain::_base_/default_runtime.py",
]

model = dict(
    neck=dict(_delete_=True, type="covpool_plugins.CovariancePooling", pool="seb", in_channels=2048),
    head=dict(type="covpool_plugins.SecondOrderClsHead", in_channels=None, num_classes=196),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={"head.fc": dict(lr_mult=10)}))
