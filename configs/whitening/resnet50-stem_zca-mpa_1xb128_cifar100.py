# ResNet-50 with decorrelated batch norm behind its first convolution, matrix Padé approximants (MPA), on CIFAR-100.
# Paper: "Fast Differentiable Matrix Square Root", ICLR 2022
# Published: top-1 error 19.55
# Recipe: ICLR 2022 (batch 128, learning rate 0.1, weight decay 5e-4, 350 epochs, divided by 10 after 100, 200 and 300)
# Train: python tools/train.py configs/whitening/resnet50-stem_zca-mpa_1xb128_cifar100.py
_base_ = "./resnet18_zca-svdpi_1xb128_cifar100.py"

model = dict(
    backbone=dict(
        backbone=dict(depth=50),
        rules=dict(_delete_=True, bn1=dict(type="covpool_plugins.ZCANorm2d", groups=1, eps=1e-2, method="mpa")),
    ),
    head=dict(in_channels=2048),
)
