# Swin-T with matrix Padé approximants (MPA), on ImageNet.
# Paper: "Fast Differentiable Matrix Square Root", ICLR 2022
# Published: none for this network
# Recipe: MMPretrain's for this network
# Train: torchrun --nnodes 2 --nproc-per-node 8 tools/train.py configs/swin_transformer/swin-tiny_mpa_16xb64_in1k.py --launcher pytorch
_base_ = "./swin-tiny_svdpade_16xb64_in1k.py"

model = dict(neck=dict(pool="mpa"))
