"""Test a checkpoint on the test set of a config with MMEngine's runner, the plugin imported."""

from covpool_plugins.command_line import Parser, run_tool


def main() -> None:
    parser = Parser(
        description="Test a checkpoint with an MMPretrain config.",
        example="python tools/test.py configs/resnet/resnet50_svdpade_8xb32_in1k.py epoch_60.pth --out metrics.json "
        "--cfg-options data_root=data/imagenet",
    )
    parser.add_runner_arguments()
    parser.add_argument("checkpoint", help="file with the weights, or with averages of them, which are then tested")
    parser.add_argument("--out", metavar="FILE.json", help="write the metrics to this file")
    parser.add_argument("--tta", action="store_true", help="mean score of each picture and its mirror image")
    args = parser.parse_args()

    from covpool_plugins.mmpretrain_plugin.runner import test

    test(
        args.config,
        args.checkpoint,
        work_dir=args.work_dir,
        out=args.out,
        tta=args.tta,
        options=args.cfg_options,
        launcher=args.launcher,
    )


if __name__ == "__main__":
    run_tool(main)
