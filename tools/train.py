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

    from covpool_plugins.mmpretrain_plugin.runner import train

    train(
        args.config,
        work_dir=args.work_dir,
        resume=args.resume,
        amp=args.amp,
        auto_scale_lr=args.auto_scale_lr,
        validate=not args.no_validate,
        options=args.cfg_options,
        launcher=args.launcher,
    )


if __name__ == "__main__":
    run_tool(main)
