# ResNet-18 with decorrelated batch norm behind its first convolution, matrix Padé approximants (MPA), on CIFAR-10.
# Paper: "Fast Differentiable Matrix Square Root", ICLR 2022
# Published: top-1 error 4.39
# Recipe: batch 128, learning rate 0.1 as released; the epochs are those of NeurIPS 2019 (350 epochs, divided by 10 after
#   100, 200 and 300)
# Train: python tools/train.py configs/whitening/resnet18-stem_zca-mpa_1xb128_cifar10.py
_base_ = [
    "mmpretrain::_base_/models/resnet18_cifar.py",
    "mmpretrain::_base_/datasets/cifar10_bs16.py",
    "../_base_/schedules/cifar_bs128_350e.py",
    "mmpretrain::_base_/default_runtime.py",
]

model = dict(
    backbone=dict(
        _delete_=True,
        type="covpool_plugins.NormSwap",
        backbone=dict(type="ResNet_CIFAR", depth=18, num_stages=4, out_indices=(3,), style="pytorch"),
        rules=dict(bn1=dict(type="covpool_plugins.ZCANorm2d", groups=1, eps=1e-2, method="mpa")),
    ),
)
train_dataloader = dict(batch_size=128)
custom_hooks = [dict(type="covpool_plugins.WhiteningErrorHook", interval=100)]
