# So-ViT-7 with Newton-Schulz iteration (iSQRT), on ImageNet.
# Paper: "Fast Differentiable Matrix Square Root", ICLR 2022
# Published: top-1 accuracy 76.50 (76.84 by MPA)
# Recipe: the script of ICLR 2022 (batch 512, learning rate 1e-3, weight decay 0.03, 310 epochs)
# Train: torchrun --nproc-per-node 8 tools/train.py configs/so_vit/so-vit-7_isqrt_8xb64_in1k.py --launcher pytorch --amp
_base_ = "./so-vit-7_mpa_8xb64_in1k.py"

model = dict(head=dict(pool="isqrt"))
