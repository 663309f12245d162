# Moment probing of a frozen ViT-B/16, on ImageNet.
# Paper: "Tuning Pre-trained Model via Moment Probing", ICCV 2023
# Published: top-1 accuracy 83.15 (82.04 by linear probing, 83.58 by fine-tuning)
# Recipe: ICCV 2023 (batch 256, learning rate 1e-4, weight decay 0.05, 30 epochs)
# Train: torchrun --nproc-per-node 4 tools/train.py configs/vision_transformer/vit-base-p16_moment_4xb64_in1k.py --launcher pytorch --amp
_base_ = [
    "mmpretrain::_base_/datasets/imagenet_bs64_pil_resize.py",
    "../_base_/models/vit-base-p16_moment.py",
    "../_base_/schedules/moment_bs256_30e.py",
    "mmpretrain::_base_/default_runtime.py",
]

model = dict(backbone=dict(drop_path_rate=0.1))
data_preprocessor = dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5], to_rgb=True)
custom_hooks = [dict(type="EMAHook", momentum=8e-5, priority="ABOVE_NORMAL")]
