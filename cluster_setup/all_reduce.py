"""Time all-reduces over all processes, as in training; rank 0 prints one line of JSON.

doctor.py starts it through node_launch.sh, so it has the network settings of a real job.
Bus bandwidth is 2 (n - 1) / n times the bytes over the time, as NVIDIA's nccl-tests define it.
"""

import json
import os
import time

import torch
import torch.distributed as dist

MEGABYTES, REPEATS = 64, 5


def main() -> None:
    """Warm up once, then time `REPEATS` all-reduces of 64 MB."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)  # what the barriers use, too
    dist.init_process_group("nccl" if on_gpu else "gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    values = torch.ones(MEGABYTES * 1_000_000 // 4, device=device)
    dist.all_reduce(values)
    right = bool((values == size).all())
    dist.barrier()
    started = time.perf_counter()
    for _ in range(REPEATS):
        dist.all_reduce(values)
    if on_gpu:
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - started) / REPEATS
    if rank == 0:
        bandwidth = 2 * (size - 1) / size * MEGABYTES / 1000 / seconds
        print(json.dumps({"all_reduce": right, "processes": size, "gb_per_second": bandwidth}), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
