# ResNet-18 with one PCA denoising layer, gradient by power iteration (SVD-PI), on CIFAR-10.
# Paper: "Backpropagation-Friendly Eigendecomposition", NeurIPS 2019
# Published: none for this layer
# Recipe: NeurIPS 2019 (batch 128, learning rate 0.1, 350 epochs, divided by 10 after 100, 200 and 300)
# Train: python tools/train.py configs/whitening/resnet18_pca-svdpi_1xb128_cifar10.py
_base_ = "./resnet18_zca-svdpi_1xb128_cifar10.py"

# 16 of 64 components, as in the released code.
model = dict(
    backbone=dict(
        rules={"layer1.0.bn1": dict(_delete_=True, type="covpool_plugins.PCANorm2d", n_components=16, method="svdpi")}
    )
)
