# ResNet-18 with ZCA whitening instead of every batch norm, on CIFAR-10.
# Paper: "Backpropagation-Friendly Eigendecomposition", NeurIPS 2019
# Published: none for this layer
# Recipe: NeurIPS 2019 (batch 128, learning rate 0.1, 350 epochs, divided by 10 after 100, 200 and 300)
# Train: python tools/train.py configs/whitening/resnet18_zca-exact-all_1xb128_cifar10.py
_base_ = [
    "mmpretrain::_base_/models/resnet18_cifar.py",
    "mmpretrain::_base_/datasets/cifar10_bs16.py",
    "../_base_/schedules/cifar_bs128_350e.py",
    "mmpretrain::_base_/default_runtime.py",
]

# Without `eps`, MMEngine would set 1e-5.
norm_cfg = dict(type="covpool_plugins.ZCANorm2d", groups=16, eps=1e-4, method="exact")
model = dict(backbone=dict(norm_cfg=norm_cfg))
train_dataloader = dict(batch_size=128)
custom_hooks = [dict(type="covpool_plugins.WhiteningErrorHook", interval=100)]
