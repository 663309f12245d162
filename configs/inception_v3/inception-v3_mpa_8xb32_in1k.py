# Inception-v3 with matrix Padé approximants (MPA), on ImageNet.
# Paper: "Fast Differentiable Matrix Square Root", ICLR 2022
# Published: none for this network
# Recipe: MMPretrain's for this network
# Train: torchrun --nproc-per-node 8 tools/train.py configs/inception_v3/inception-v3_mpa_8xb32_in1k.py --launcher pytorch
_base_ = "./inception-v3_svdpade_8xb32_in1k.py"

model = dict(neck=dict(pool="mpa"))
