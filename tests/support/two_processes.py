"""Whitening layers in two gloo processes, and the same in one with the joined batch."""

import torch
import torch.distributed as dist
import torch.multiprocessing as processes

from covpool_plugins.whitening import PCANorm2d, ZCANorm1d, ZCANorm2d

from .whitening import correlated

STEPS = 2
LAYERS = {
    "zca": lambda: ZCANorm2d(8, 2, momentum=0.3),
    "zca last": lambda: ZCANorm2d(8, 2, momentum=0.3),
    "average": lambda: ZCANorm2d(8, momentum=None, energy=0.9),
    "newton_schulz": lambda: ZCANorm2d(8, 2, method="newton_schulz"),
    "pca": lambda: PCANorm2d(8, 3, groups=2),
    "covariance": lambda: ZCANorm2d(8, 2, average="covariance"),
    "pca covariance": lambda: PCANorm2d(8, 3, groups=2, average="covariance"),
    "float64": lambda: ZCANorm2d(8, dtype=torch.float64),
    "apart": lambda: ZCANorm2d(8, 2, sync=False),
    "vectors": lambda: ZCANorm1d(8, 4),
}
SIZES = {"equal": (3, 3), "unequal": (5, 1), "empty": (4, 0)}


def inputs(layer, size):
    """Joined batches, their upstream gradients and where the second process's share begins."""
    torch.manual_seed(3)
    count, first = sum(SIZES[size]), SIZES[size][0]
    batches = []
    for _ in range(STEPS):
        x = correlated(count, 8, 6, torch.float64 if layer == "float64" else torch.float32)
        x = x[..., 0, 0] if layer == "vectors" else x
        batches.append((x, torch.randn_like(x)))
    return batches, first


def run(layer, batches):
    """Outputs and input gradients of all steps, summed parameter gradients, buffers, and evaluation."""
    module = LAYERS[layer]()
    torch.manual_seed(4)
    for p in module.parameters():
        torch.nn.init.normal_(p)
    results = {"output": [], "grad_input": []}
    for x, g in batches:
        x = x.contiguous(memory_format=torch.channels_last) if layer.endswith("last") else x
        x = x.requires_grad_()
        y = module(x)
        y.backward(g)
        results["output"].append(y.detach())
        results["grad_input"].append(x.grad)
    results["grad_param"] = [p.grad for p in module.parameters()]
    results["buffers"] = dict(module.named_buffers())
    results["evaluated"] = module.eval()(batches[0][0]).detach()
    return results


def _worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    results = {}
    for layer in LAYERS:
        for size in SIZES:
            if layer == "apart" and size == "empty":
                continue
            batches, first = inputs(layer, size)
            share = slice(None, first) if rank == 0 else slice(first, None)
            results[layer, size] = run(layer, [(x[share].clone(), g[share].clone()) for x, g in batches])
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def in_two_processes(folder):
    """What both processes computed, by layer and sizes."""
    processes.spawn(_worker, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]
