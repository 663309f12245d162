"""tools/train.py and tools/test.py in two processes, and the group that they form."""

import json
import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from mmengine.config import Config
from support.small_configs import seen, small_config
from support.small_runs import load

from covpool_plugins.errors import OptionError
from covpool_plugins.mmpretrain_plugin import processes, runner

ROOT = Path(__file__).parents[2]
BATCH = 6


def free_port():
    with socket.socket() as bound:
        bound.bind(("localhost", 0))
        return bound.getsockname()[1]


def as_rank(rank, port, function):
    """Run a function in one of two processes that torchrun would have started; all its calls share one group."""
    variables = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=2, MASTER_ADDR="localhost", MASTER_PORT=port)
    os.environ.update({name: str(value) for name, value in variables.items()})
    dist.init_process_group("gloo")
    function()
    dist.destroy_process_group()


def in_two_processes(function):
    """In copies of this process, which has imported everything."""
    port, context = free_port(), multiprocessing.get_context("fork")
    ranks = [context.Process(target=as_rank, args=(rank, port, function)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    assert [process.exitcode for process in ranks] == [0, 0]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with runs of one process (one) and of two with half its batch (two), and with their tests' metrics."""
    folder = tmp_path_factory.mktemp("runs")
    config = small_config(folder / "config.py", batch_size=BATCH)
    checkpoint = folder / "one" / "epoch_3.pth"
    runner.train(config, work_dir=folder / "one")
    runner.test(config, checkpoint, work_dir=folder / "one", out=folder / "one.json")

    def train_and_test():
        half = [f"train_dataloader.batch_size={BATCH // 2}"]
        odd = ["train_dataloader.dataset.size=11", "train_dataloader.num_workers=1"]
        runner.train(config, work_dir=folder / "two", options=half, launcher="pytorch")
        runner.test(config, checkpoint, work_dir=folder / "two", out=folder / "two.json", launcher="pytorch")
        runner.train(config, work_dir=folder / "odd", options=odd, launcher="pytorch")

    in_two_processes(train_and_test)
    return folder


def test_two_processes_train_as_one_with_twice_the_batch(runs):
    alone, *ranks = seen(runs / "one"), seen(runs / "two", 0), seen(runs / "two", 1)
    assert len(alone) == len(ranks[0]) == len(ranks[1]) == 6
    assert any(first["loss"] != second["loss"] for first, second in zip(*ranks, strict=True))
    mean = [(first["loss"] + second["loss"]) / 2 for first, second in zip(*ranks, strict=True)]
    assert mean == pytest.approx([step["loss"] for step in alone], rel=1e-6)
    first, last = (load(runs / "one" / f"epoch_{n}.pth")["state_dict"] for n in (1, 3))
    together = load(runs / "two" / "epoch_3.pth")["state_dict"]
    for name, weight in last.items():
        torch.testing.assert_close(together[name], weight, rtol=1e-6, atol=1e-7)
        assert not torch.equal(first[name], weight)


def test_two_processes_test_as_one(runs):
    one, two = (json.loads((runs / f"{name}.json").read_text()) for name in ("one", "two"))
    assert one == two
    assert 0 < one["accuracy/top1"] < 100  # of 9 images, which is no even number


def test_a_data_set_of_odd_size(runs):
    """Every process gets 6 of 11 images, one of them twice."""
    first, second = seen(runs / "odd", 0), seen(runs / "odd", 1)
    assert len(first) == len(second) == 3
    assert load(runs / "odd" / "epoch_3.pth")["meta"]["iter"] == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "option, status, expected", [("train_cfg.max_epochs=1", 0, None), ("model.neck.pool=svdpad", 1, "'svdpad'")]
)
def test_torchrun(option, status, expected, tmp_path):
    """A failure is one line of one process, and torchrun's own report of it."""
    config = small_config(tmp_path / "config.py")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    tool = [ROOT / "tools" / "train.py", config, "--launcher", "pytorch", "--work-dir", tmp_path / "run"]
    paths = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "-1"}
    command = [str(part) for part in (*launch, *tool, "--cfg-options", option)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert result.returncode == status, result.stderr
    assert (tmp_path / "run" / "epoch_1.pth").is_file() == (status == 0)
    if expected:
        assert result.stderr.count(f"unknown pool {expected}") == 1
        assert "covpool_plugins/" not in result.stderr  # no traceback of ours


@pytest.mark.parametrize("gpu", [False, True])
def test_how_a_model_is_wrapped(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    cfg = Config(dict(find_unused_parameters=True))
    processes.wrap_model(cfg)
    without_device = dict(type="MMDistributedDataParallel", find_unused_parameters=True, broadcast_buffers=False)
    # With a GPU MMEngine wraps the model for the device of each process.
    assert cfg.get("model_wrapper_cfg") == (None if gpu else dict(without_device, device_ids=None))
    own = dict(type="MMDistributedDataParallel", broadcast_buffers=True)
    cfg = Config(dict(model_wrapper_cfg=own))
    processes.wrap_model(cfg)
    assert cfg.model_wrapper_cfg == (own if gpu else dict(own, device_ids=None))


@pytest.mark.parametrize("gpu", [False, True])
def test_which_group_the_processes_form(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    for name, value in dict(RANK=0, WORLD_SIZE=1, MASTER_ADDR="localhost", MASTER_PORT=0).items():
        monkeypatch.setenv(name, str(value))
    for _ in range(2):
        with processes.process_group("pytorch"):
            assert dist.is_initialized() == (not gpu)  # with a GPU MMEngine is to find none, and takes nccl
            assert gpu or dist.get_backend() == "gloo"
        assert not dist.is_initialized()
    with processes.process_group("none"):
        assert not dist.is_initialized()


def test_bad_launchers(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(OptionError, match="launcher must be one of none, pytorch, got 'slurm'"):
        runner.train("config.py", launcher="slurm")
    with pytest.raises(OptionError, match=r"needs processes that torchrun starts, for example: python -m torch\."):
        runner.train("config.py", launcher="pytorch")
