# ResNet-18 with one ZCA whitening layer, gradient by power iteration (SVD-PI), on CIFAR-100.
# Paper: "Backpropagation-Friendly Eigendecomposition", NeurIPS 2019
# Published: none for this layer
# Recipe: NeurIPS 2019 (batch 128, learning rate 0.1, 350 epochs, divided by 10 after 100, 200 and 300)
# Train: python tools/train.py configs/whitening/resnet18_zca-svdpi_1xb128_cifar100.py
_base_ = [
    "mmpretrain::_base_/models/resnet18_cifar.py",
    "mmpretrain::_base_/datasets/cifar100_bs16.py",
    "../_base_/schedules/cifar_bs128_350e.py",
    "mmpretrain::_base_/default_runtime.py",
]

model = dict(
    backbone=dict(
        _delete_=True,
        type="covpool_plugins.NormSwap",
        backbone=dict(type="ResNet_CIFAR", depth=18, num_stages=4, out_indices=(3,), style="pytorch"),
        # Four channels to a group, after the first convolution of the first residual block.
        rules={"layer1.0.bn1": dict(type="covpool_plugins.ZCANorm2d", groups=16, method="svdpi")},
    ),
    head=dict(num_classes=100),
)
train_dataloader = dict(batch_size=128)
custom_hooks = [dict(type="covpool_plugins.WhiteningErrorHook", interval=100)]
