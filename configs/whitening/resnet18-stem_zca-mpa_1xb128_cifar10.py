# ResNet-18 with decorrelated batch norm behind its first convolution, matrix Padé approximants (MPA), on CIFAR-10.
# Paper: "Fast Differentiable Matrix Square Root", ICLR 2022
# Published: top-1 error 4.39
# Recipe: ICLR 2022 (batch 128, learning rate 0.1, weight decay 5e-4, 350 epochs, divided by 10 after 100, 200 and 300)
# Train: python tools/train.py configs/whitening/resnet18-stem_zca-mpa_1xb128_cifar10.py
_base_ = "./resnet18_zca-svdpi_1xb128_cifar10.py"

model = dict(
    backbone=dict(
        rules=dict(_delete_=True, bn1=dict(type="covpool_plugins.ZCANorm2d", groups=1, eps=1e-2, method="mpa"))
    )
)
