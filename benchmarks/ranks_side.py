"""One side of benchmarks.ranks: python -m benchmarks.ranks_side SIDE CONFIG_JSON [RANK]; ours also under mpirun.

Rank 0 reads the requests and broadcasts them to the others.
"""

import contextlib
import json
import os
import subprocess
import sys
import time

from benchmarks.train_side import BETAS, GRAD_CLIP, LR, WEIGHT_DECAY, tokens


class Batches:
    """Replaces the DataLoader: this rank's rows of the random batch of each step."""

    def __init__(self, config, rank, size):
        self.config, share = config, config["batch_size"] // size
        self.first = rank * share
        self.rows = slice(self.first, self.first + share)

    def micro_batches(self, position, rows):
        x, y = (side[self.rows] for side in tokens(self.config, position))
        for i in range(0, len(x), rows):
            yield self.first + i, x[i : i + rows], y[i : i + rows]

    def after(self, position):
        return position + 1


def ours(config):
    """Returns (function that does one step and returns its loss, World, function that returns the timings so far)."""
    from tinygrad2.distributed.world import World

    world = World.join(config["threads"])

    import train_gpt2
    from models import GPTConfig
    from tinygrad2.system.memory import keep_freed_memory
    from tinygrad2.training.config import TrainConfig
    from tinygrad2.training.snapshot import synchronize

    rows = config["micro_batch_size"] or config["batch_size"] // world.size
    training = TrainConfig(
        batch_size=config["batch_size"], micro_batch_size=rows, steps=10**6, lr=LR, schedule="constant", warmup_steps=0,
        beta1=BETAS[0], beta2=BETAS[1], weight_decay=WEIGHT_DECAY, grad_clip=GRAD_CLIP, seed=config["seed"],
        **config["flags"],
    )  # fmt: skip
    trainer = train_gpt2.Trainer(training, GPTConfig(**config["model"]), world)
    trainer.position = 0
    synchronize(trainer)
    keep_freed_memory()
    batches = Batches(config, world.rank, world.size)

    def figures():
        count, begin = 200, time.perf_counter()
        for _ in range(count):
            world.barrier("nothing")
        empty = (time.perf_counter() - begin) / count             # the cost of World.collective
        return dict(comm_seconds=world.comm_seconds, wait_seconds=world.wait_seconds, watchdog_us=1e6 * empty)

    return lambda: trainer.step(batches)[0], world, figures


def ddp(config, rank):
    """PyTorch's DistributedDataParallel over gloo: (step, broadcast of an object, mean over ranks)."""
    import torch
    import torch.distributed as dist

    from benchmarks.torch_gpt import trainer

    size = config["ranks"]
    torch.set_num_threads(config["threads"])
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(config["port"])}
    os.environ.update(environment)
    if rank == 0:                                                 # it starts the other ranks
        for other in range(1, size):
            command = [sys.executable, "-m", "benchmarks.ranks_side", "ddp", json.dumps(config), str(other)]
            subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
    dist.init_process_group("gloo", rank=rank, world_size=size)
    parallel = torch.nn.parallel.DistributedDataParallel
    one = trainer(config["model"], config["seed"], False, LR, BETAS, WEIGHT_DECAY, GRAD_CLIP, parallel)
    batches, done = Batches(config, rank, size), 0

    def step():
        nonlocal done
        ((_, x, y),) = batches.micro_batches(done, config["batch_size"])
        done += 1
        return one(x, y)

    def everyone(value):
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def mean(loss):
        total = torch.tensor(loss)
        dist.all_reduce(total)
        return total.item() / size

    return step, everyone, mean


def main():
    side, config = sys.argv[1], json.loads(sys.argv[2])
    rank = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    if side == "ours":
        step, world, figures = ours(config)
        rank = world.rank

        def everyone(value):
            value = world.on_rank_0("waiting for a request", requests)  # the other ranks sleep meanwhile
            return world.broadcast_object(value)

        def mean(loss):
            return loss
    else:
        step, share, mean = ddp(config, rank)
        figures = dict

        def everyone(value):
            return share(requests() if rank == 0 else None)

    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def requests():
        line = sys.stdin.readline()
        return json.loads(line) if line else None

    while (request := everyone(None)) is not None:
        ms, losses, before = [], [], figures()
        for _ in range(request["steps"]):
            start = time.perf_counter()
            loss = step()
            ms.append((time.perf_counter() - start) * 1e3)
            losses.append(mean(loss))
        after = figures()
        if rank == 0:
            more = {name: after[name] - before[name] for name in ("comm_seconds", "wait_seconds") if name in after}
            out.write(json.dumps(dict(ms=ms, losses=losses, **more, watchdog_us=after.get("watchdog_us", 0))) + "\n")
            out.flush()
    if side == "ours":
        world.run(lambda: 0)
    with contextlib.suppress(Exception):
        import torch.distributed as dist

        dist.destroy_process_group()


if __name__ == "__main__":
    main()
