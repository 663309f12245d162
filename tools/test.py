"""Test a checkpoint on the test set of a config with MMEngine's runner, the plugin imported."""

from covpool_plugins.command_line import Parser, run_tool


def main() -> None:
    parser = Parser(
        description="Test a checkpoint with an MMPretrain config, as validation in training measured it.",
        example="python tools/test.py configs/resnet/resnet50_svdpade_8xb32_in1k.py epoch_60.pth --out metrics.json "
        "--cfg-options data_root=data/imagenet",
    )
    parser.add_runner_arguments()
    parser.add_argument("checkpoint", help="file with the weights, or with averages of them, which are then tested")
    parser.add_argument("--out", metavar="FILE.json", help="write the metrics to this file")
    parser.add_argument("--tta", action="store_true", help="mean score of each picture and its mirror image")
    args = parser.parse_args()

    from mmengine.dist import is_main_process

    from covpool_plugins.files import check_file, write_json
    from covpool_plugins.mmpretrain_plugin import runs
    from covpool_plugins.mmpretrain_plugin.safe_checkpoints import check_checkpoint

    with runs.one_run(args.config, args.launcher) as start:
        if args.out is not None:
            check_file(args.out)
        cfg = runs.configure(args, "model", "test_dataloader", "test_cfg", "test_evaluator")
        hooks = [start]
        if args.tta:
            data_set = cfg.test_dataloader.dataset
            *before, pack = data_set.pipeline
            flips = [dict(type="RandomFlip", prob=prob) for prob in (0.0, 1.0)]
            mirrored = [*before, dict(type="TestTimeAug", transforms=[flips, [pack]])]
            data_set.pipeline = cfg.get("tta_pipeline") or mirrored
            merge = cfg.get("tta_model") or dict(type="mmpretrain.AverageClsScoreTTA")
            # Last, so that other hooks see the model itself and not what merges its scores.
            hooks.append(dict(type="PrepareTTAHook", tta_cfg=merge, priority="LOWEST"))
        check_checkpoint(args.checkpoint)
        cfg.load_from, cfg.resume = args.checkpoint, False
        metrics = runs.build_runner(cfg, *hooks, strict=True).test()
        if args.out is not None and is_main_process():
            write_json(args.out, {name: float(value) for name, value in metrics.items()})


if __name__ == "__main__":
    run_tool(main)
