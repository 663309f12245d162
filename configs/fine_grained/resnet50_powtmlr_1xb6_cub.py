# ResNet-50 from scratch with the tangent classifier of matrix powers (Pow-TMLR), on CUB-200-2011.
# Paper: "Understanding Matrix Function Normalizations in Covariance Pooling through the Lens of Riemannian Geometry",
#   ICLR 2025
# Published: top-1/top-5 accuracy 52.97/77.80 (63.29/84.66 by Newton-Schulz iteration), trained from scratch
# Recipe: ICLR 2025 (batch 6, learning rate 5e-3, 100 epochs, divided by 10 after 50)
# Train: python tools/train.py configs/fine_grained/resnet50_powtmlr_1xb6_cub.py
_base_ = "./resnet50_scalepow_1xb10_cub.py"

model = dict(neck=dict(pool="powtmlr"))
train_dataloader = dict(batch_size=6)
auto_scale_lr = dict(base_batch_size=6)
optim_wrapper = dict(optimizer=dict(lr=5e-3), paramwise_cfg=dict(_delete_=True))
