# ResNet-50 with scaled eigen branch (SEB), on FGVC Aircraft.
# Paper: "On the Eigenvalues of Global Covariance Pooling for Fine-grained Visual Recognition", T-PAMI 2022
# Published: none for this network
# Recipe: T-PAMI 2022 (batch 8, learning rate 3e-3, 5 times that for the classifier, 50 epochs, divided by 10 after 21
#   and 40)
# Train: python tools/train.py configs/fine_grained/resnet50_seb_1xb8_aircraft.py
_base_ = [
    "../_base_/models/resnet50_in1k.py",
    "../_base_/datasets/aircraft_bs10_448.py",
    "../_base_/schedules/fine_tune_bs10_200e.py",
    "mmpretrain::_base_/default_runtime.py",
]

model = dict(
    neck=dict(_delete_=True, type="covpool_plugins.CovariancePooling", pool="seb", in_channels=2048),
    head=dict(type="covpool_plugins.SecondOrderClsHead", in_channels=None, num_classes=100),
)
train_dataloader = dict(batch_size=8)
optim_wrapper = dict(optimizer=dict(weight_decay=1e-3), paramwise_cfg=dict(custom_keys={"head.fc": dict(lr_mult=5)}))
param_scheduler = dict(milestones=[21, 40])
train_cfg = dict(max_epochs=50)
auto_scale_lr = dict(base_batch_size=8)
