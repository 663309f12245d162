# ResNet-18 with one ZCA whitening layer, exact gradient, on CIFAR-100.
# Paper: "Backpropagation-Friendly Eigendecomposition", NeurIPS 2019
# Published: none for this layer
# Recipe: NeurIPS 2019 (batch 128, learning rate 0.1, 350 epochs, divided by 10 after 100, 200 and 300)
# Train: python tools/train.py configs/whitening/resnet18_zca-exact_1xb128_cifar100.py
_base_ = "./resnet18_zca-svdpi_1xb128_cifar100.py"

model = dict(backbone=dict(rules={"layer1.0.bn1": dict(method="exact")}))
