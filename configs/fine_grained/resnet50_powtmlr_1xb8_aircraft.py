# ResNet-50 from scratch with the tangent classifier of matrix powers (Pow-TMLR), on FGVC Aircraft.
# Paper: "Understanding Matrix Function Normalizations in Covariance Pooling through the Lens of Riemannian Geometry",
#   ICLR 2025
# Published: top-1/top-5 accuracy 69.58/88.68 (72.07/89.83 by Newton-Schulz iteration), trained from scratch
# Recipe: ICLR 2025 (batch 8, learning rate 5e-3, 5 times that for the classifier, 50 epochs, divided by 10 after 21)
# Train: python tools/train.py configs/fine_grained/resnet50_powtmlr_1xb8_aircraft.py
_base_ = "./resnet50_cholesky_1xb8_aircraft.py"

model = dict(neck=dict(pool="powtmlr"))
