"""Train a model of a config with MMEngine's runner, the plugin imported."""

from covpool_plugins.command_line import Parser, run_tool


def main() -> None:
    parser = Parser(
        description="Train the model of an MMPretrain config.",
        example="python tools/train.py configs/resnet/resnet50_svdpade_8xb32_in1k.py "
        "--cfg-options data_root=data/imagenet",
    )
    parser.add_runner_arguments()
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CHECKPOINT",
        help="continue from this checkpoint, or from the latest one in the folder when none is named; from the end of "
        "an epoch a run goes on bit for bit as if it had never stopped",
    )
    parser.add_argument("--amp", action="store_true", help="train in mixed precision")
    parser.add_argument(
        "--auto-scale-lr", action="store_true", help="scale the learning rate to the batch of all processes"
    )
    parser.add_argument("--no-validate", action="store_true", help="do not evaluate while training")
    args = parser.parse_args()

    import torch

    from covpool_plugins.errors import OptionError
    from covpool_plugins.mmpretrain_plugin import runs
    from covpool_plugins.mmpretrain_plugin.active_method import ConfiguredMethodHook
    from covpool_plugins.mmpretrain_plugin.safe_checkpoints import load_or_resume

    with runs.one_run(args.config, args.launcher) as start:
        cfg = runs.configure(args, "model", "train_dataloader", "train_cfg", "optim_wrapper")
        if args.amp:
            if not torch.cuda.is_available():
                raise OptionError("--amp needs a GPU, and none is available")
            cfg.optim_wrapper.type = "AmpOptimWrapper"
            cfg.optim_wrapper.setdefault("loss_scale", "dynamic")
        if args.auto_scale_lr:
            if "base_batch_size" not in (cfg.get("auto_scale_lr") or {}):
                raise OptionError(f"{args.config}: --auto-scale-lr needs auto_scale_lr=dict(base_batch_size=…)")
            cfg.auto_scale_lr.enable = True
        if args.no_validate:
            cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
        load_or_resume(cfg, args.resume)
        hooks = start, runs.EpochSeedHook(), ConfiguredMethodHook()
        runs.build_runner(cfg, *hooks, strict=bool(cfg.get("resume"))).train()


if __name__ == "__main__":
    run_tool(main)
