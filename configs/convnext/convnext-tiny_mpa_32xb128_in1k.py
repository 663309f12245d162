# ConvNeXt-T with matrix Padé approximants (MPA), on ImageNet.
# Paper: "Fast Differentiable Matrix Square Root", ICLR 2022
# Published: none for this network
# Recipe: MMPretrain's for this network
# Train: torchrun --nnodes 4 --nproc-per-node 8 tools/train.py configs/convnext/convnext-tiny_mpa_32xb128_in1k.py --launcher pytorch
_base_ = "./convnext-tiny_svdpade_32xb128_in1k.py"

model = dict(neck=dict(pool="mpa"))
