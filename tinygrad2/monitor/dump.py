"""Dumps: all that is needed to reproduce a value that is not finite, under a debugger.

    run/nonfinite_step_00000123/
        weights.bin     the model before the step, with its config and tokenizer
        batch.bin       x and y, the rows that were computed when it appeared
        dump.json       step, flags, and the finding; written last

    python -m tinygrad2 replay run/nonfinite_step_00000123
"""

import math
import os

import numpy as np

from tinygrad2.backend import to_host
from tinygrad2.errors import UserError, short
from tinygrad2.function import observe
from tinygrad2.io.files import atomic_write, read_json, write_json
from tinygrad2.io.weights import load_weights, read_tensors, save_weights, write_tensors
from tinygrad2.monitor.nonfinite import NonFinite, NonFiniteObserver, describe, ranges
from tinygrad2.precision import MIXED, PRECISIONS, precision_of
from tinygrad2.system.shell import command_line

FORMAT, VERSION = "tinygrad2-dump", 1


def raise_nonfinite(trainer, loader, loss, norm, run_dir, tokenizer, log):
    """Raises UserError: a step returned a loss or a gradient norm that is not finite. Searches where it began, reports
    that by log(line), and writes a dump into the folder `run_dir`. A collective: every rank calls it.

    `trainer` must not have changed since before the step, which is computed again.
    """
    world, step = trainer.world, trainer.done + 1
    own = _search(trainer, loader)
    path = _free_path(os.path.join(run_dir, f"nonfinite_step_{step:08d}"))
    findings, paths = zip(*world.all_gather_object((own and own[0], path)))
    first = next((rank for rank, finding in enumerate(findings) if finding), None)
    headline = f"step {step}: loss {loss}, gradient norm {norm}: the training has diverged and was stopped"
    remedy = "try a smaller --lr or a longer --warmup-steps; the checkpoints before it are kept"
    if first is None and math.isfinite(loss) and norm == math.inf:
        raise UserError(f"{headline}. Each value of the gradient is finite, but they are so large that the sum of "
                        f"their squares is not; {remedy}")
    if first is None:
        raise UserError(f"{headline}. Computed again, all values of the step were finite: something in it does not "
                        "depend on its inputs alone, or the memory of this machine is faulty")
    finding, path = findings[first], paths[first]
    log(f"\nfirst value that is not finite: {describe(finding)}")
    for line in ranges(finding):
        log(f"    {line}")
    if world.rank == first:
        _, first_row, x, y = own
        text = _text(x, tokenizer)
        print(f"    batch     rows from {first_row} on; the first: {text!r}", flush=True)
        _write(path, trainer, tokenizer, x, y, step=step, finding=finding, first_row=first_row, loss=str(loss),
               grad_norm=str(norm), text=text)  # fmt: skip
    world.barrier()
    raise UserError(f"{headline}. It began in the {describe(finding)}. See it again: "
                    f"{command_line('python -m tinygrad2 replay', path)}; {remedy}")


def _free_path(path):
    """The path, with a number after it if something is there, for example a dump of this step before a resumption."""
    n, free = 1, path
    while os.path.lexists(free):
        n += 1
        free = f"{path}.{n}"
    return free


def _write(path, trainer, tokenizer, x, y, **fields):
    c = trainer.config
    flags = dict(batch_size=c.batch_size, seed=c.seed, recompute=c.recompute, kernels=c.kernels)
    flags["matmul_precision"] = precision_of(c)
    flags["frozen"] = trainer.flat.frozen
    dump = dict(format=FORMAT, version=VERSION) | fields | flags
    write_dump(path, trainer.model, tokenizer, x, y, dump)


@np.errstate(all="ignore")
def _search(trainer, loader):
    """(finding, number of the first row, x, y) of this rank's rows, or None if all values are finite."""
    observer = NonFiniteObserver(trainer.model)
    trainer.flat.zero_grad()
    batches = loader.micro_batches(trainer.position, trainer.config.micro_batch_size)
    for first_row, x, y in batches:
        try:
            with observe(observer):
                observer.check_parameters(trainer.model)
                trainer.micro_step(first_row, x, y)
        except NonFinite as error:
            return error.finding, first_row, to_host(x), to_host(y)
    return None


def _text(x, tokenizer):
    row = to_host(x)[0].tolist()
    try:
        return (tokenizer.decode(row) if tokenizer else " ".join(map(str, row)))[:200]
    except ValueError:  # ids that the tokenizer does not have
        return " ".join(map(str, row))[:200]


def write_dump(path, model, tokenizer, x, y, dump):
    """Write a dump folder; dump.json comes last, so a folder without it is not a dump."""
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be created ({error.strerror}); choose another --run-dir") from None
    text = tokenizer.to_json() if tokenizer else ""
    save_weights(os.path.join(path, "weights.bin"), model.state_dict(), model.config.to_dict(), text, {})
    with atomic_write(os.path.join(path, "batch.bin")) as file:
        write_tensors(file, {"x": x, "y": y})
    write_json(os.path.join(path, "dump.json"), dump)


def read_dump(path):
    """(dump.json as a dict, Weights, x, y), checked; x, y (rows, T) int64. Raises UserError if it is not valid."""
    name = os.path.join(path, "dump.json")
    dump = read_json(name)
    if not isinstance(dump, dict) or dump.get("format") != FORMAT or dump.get("version") != VERSION:
        raise UserError(f"{name}: is not a dump of this version of tinygrad2")
    for field, kind in (("step", int), ("first_row", int), ("batch_size", int), ("seed", int), ("recompute", bool),
                        ("kernels", str), ("finding", dict)):  # fmt: skip
        if type(dump.get(field)) is not kind:
            raise UserError(f"{name}: field {field!r} is {str(dump.get(field))[:40]}; the dump is damaged")
    for field, kind in (("phase", str), ("op", str), ("layer", str), ("value", str), ("nan", int), ("inf", int),
                        ("size", int)):  # fmt: skip
        if type(dump["finding"].get(field)) is not kind:
            found = short(dump["finding"].get(field))
            raise UserError(f"{name}: field {field!r} of 'finding' is {found}; the dump is damaged")
    dump.setdefault("frozen", [])  # earlier versions did not write it
    precision = dump.setdefault("matmul_precision", "highest")  # nor this
    if precision not in (*PRECISIONS, *MIXED):
        raise UserError(f"{name}: field 'matmul_precision' is {short(precision)}; the dump is damaged")
    if not isinstance(dump["frozen"], list) or not all(isinstance(entry, str) for entry in dump["frozen"]):
        raise UserError(f"{name}: field 'frozen' is {str(dump['frozen'])[:40]}; the dump is damaged")
    tensors, _ = read_tensors(os.path.join(path, "batch.bin"))
    x, y = (tensors.get(key) for key in "xy")
    if x is None or y is None or x.shape != y.shape or x.ndim != 2 or x.dtype != np.int64:
        raise UserError(f"{path}: batch.bin does not hold x and y of one shape and of int64; the dump is damaged")
    return dump, load_weights(os.path.join(path, "weights.bin")), x, y
