"""python -m tinygrad2 verify [PROPERTY...] [flags of train_gpt2.py]: test it here, with your own flags and data.

    resume        killed (SIGKILL) in the middle and resumed, a training arrives at the same bits
    accum         1, 2, 4, 8 micro-batches per batch have the same losses, with dropout and active clipping
    determinism   the same training twice has the same bits
    ranks         1, 2 and 4 ranks of mpirun have the same bits, with dropout, accumulation and active clipping
    kernels       compiled kernels and reference implementations have the same loss and gradients
    gradients     the gradient is the slope of the loss, measured in float64
    kvcache       texts generated with a cache of keys and values, several at once, are those generated without
    precision     the errors of each op, the loss and the gradient against float64, for --matmul-precision; the model is
                  that of --init-from, if it is given. Called by name, it also prints a table of the worst ops
    all           each of them (this is the default)

    hf MODEL                    the same logits, loss and text as transformers, if that is installed
    llmc MODEL DEBUG_STATE      the same logits, loss and gradients as in a debug state of llm.c

The first four run train_gpt2.py itself, for a few steps and in a temporary folder; none of your files is changed.
Exit code 0 if all pass, 1 if one fails, 2 if something is wrong with flags or data.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace

import numpy as np

import ops
import train_gpt2
from models.dropout import set_dropout
from models.families import make_model
from models.generation import generate
from models.pretrained import load_pretrained
from models.sampling import Sampling, sample
from tinygrad2.cli import explanation
from tinygrad2.commands import verify_models, verify_precision
from tinygrad2.datasets.dataloader import DataLoader
from tinygrad2.datasets.dataset import open_dataset
from tinygrad2.datasets.piped import file_of
from tinygrad2.dispatch import kernels
from tinygrad2.distributed.mpirun import environment, find_mpirun, have_mpi
from tinygrad2.distributed.world import World
from tinygrad2.errors import UserError
from tinygrad2.flat_buffers import FlatBuffers
from tinygrad2.io.open_file import open_file
from tinygrad2.io.weights import load_weights
from tinygrad2.system.installation import adapt_hint
from tinygrad2.system.streams import ERASE, can_overwrite
from tinygrad2.system.temporary import temporary_folder
from tinygrad2.tensor import no_grad

STEPS = 12
ROUNDING = 2e-5  # of a loss: float32 sums taken in another order, after a dozen steps of Adam
KERNELS_TOLERANCE = 1e-4  # relative, of a whole gradient in float32
GRADIENT_TOLERANCE = 1e-7  # relative, in float64
_SECONDS = 20  # that checks of single parameters may take


@dataclass
class Result:
    """The outcome of one property: `difference` must be at most `tolerance`."""

    difference: float
    tolerance: float
    text: str
    table: tuple = ()  # lines that follow if the property was asked for by name


def main(argv):
    words = list(_leading(argv))
    if words and words[0] in ("hf", "llmc"):
        return verify_models.main(words[0], argv[1:])
    flags = argv[len(words) :]
    if any(flag in ("--help", "-h") for flag in flags):
        print(explanation(__doc__))
        return 0
    unknown = [word for word in words if word not in (*PROPERTIES, "all")]
    if unknown:
        raise UserError(f"there is no property {unknown[0]!r}; choose among: {', '.join(PROPERTIES)}, all")
    names = [name for name in PROPERTIES if name in words or not words or "all" in words]
    config, model_config, _ = train_gpt2.parse(flags)
    if config.resume:
        raise UserError("--resume: a verification starts its own trainings")
    config = replace(config, data=file_of(config.data, print))
    flags = [*flags, "--data", config.data]                       # of a pipe: the file that several trainings can read
    failed, live = 0, can_overwrite(sys.stdout)
    start = ERASE if live else ""
    with temporary_folder(tempfile.gettempdir(), "verify") as folder:
        for name in names:
            if name not in words and (missing := _missing(name)):
                print(adapt_hint(f"{name:12s} not tried: {missing}"))
                continue
            if live:
                print(f"{name:12s} ...", end="", flush=True)
            begin = time.perf_counter()
            result = PROPERTIES[name](Trial(flags, config, model_config, folder))
            good = result.difference <= result.tolerance  # False for NaN
            failed += not good
            limit = f"{result.tolerance:.0e}" if 0 < result.tolerance < 1 else result.tolerance or "none"
            verdict = f"{'PASS' if good else 'FAIL'}  max difference {result.difference:.2g} ({limit} allowed)"
            seconds = time.perf_counter() - begin
            print(f"{start}{name:12s} {verdict}: {result.text}  [{seconds:.0f} s]", flush=True)
            if result.table and name in words:
                print("\n".join(result.table))
    return 1 if failed else 0


def _missing(name):
    """What this machine lacks to try a property, or ""."""
    if name == "ranks" and not have_mpi():
        return 'there is no mpirun, or no mpi4py (pip install -e ".[mpi]")'
    if name == "kernels" and not ops.have_cpu_kernels():
        return "there are no compiled kernels to compare: " + "; ".join(ops.why_no_cpu_kernels())
    return ""


def _leading(argv):
    for word in argv:
        if word.startswith("-"):
            return
        yield word


class Trial:
    """The user's flags, and trainings with them."""

    def __init__(self, flags, config, model_config, folder):
        self.flags, self.config, self.model_config, self.folder = flags, config, model_config, folder
        has_dropout = hasattr(model_config, "dropout")            # only a GPT
        self.dropout = ("--dropout", model_config.dropout or 0.1) if has_dropout else ()
        self.dropout_text = f"dropout {self.dropout[1]:g}, " if has_dropout else ""

    def command(self, name, *more):
        """train_gpt2.py with the user's flags, but few steps, and all files under this name in our folder."""
        ours = ["--steps", STEPS, "--eval-every", 5, "--eval-batches", 1, "--sample-every", 7, "--sample-tokens", 4,
                "--checkpoint-every", 4, "--run-dir", os.path.join(self.folder, name), "--metrics", self.metrics(name),
                "--weights-out", self.weights(name)]  # fmt: skip
        return [sys.executable, train_gpt2.__file__, *self.flags, *map(str, ours), *map(str, more)]

    def metrics(self, name):
        return os.path.join(self.folder, f"{name}.jsonl")

    def weights(self, name):
        return os.path.join(self.folder, f"{name}.bin")

    def run(self, name, *more, kill_after=None, ranks=1):
        """Run it to its end, or kill it after `kill_after` steps; returns the number of steps done."""
        streams = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace")
        launcher = [] if ranks == 1 else [find_mpirun(), "-n", str(ranks)]
        process = subprocess.Popen(launcher + self.command(name, *more), env=environment(), **streams)
        done, lines = 0, []
        with process:
            for line in process.stdout:
                lines.append(line.rstrip())
                if line.startswith("step"):
                    done = int(line[4:].split("/")[0])
                    if kill_after and done >= kill_after:
                        process.kill()  # SIGKILL: nothing can be cleaned up
                        return done
        if process.returncode:
            raise UserError(f"the training that was to be verified failed: {lines[-1] if lines else 'without output'}")
        return done

    def outcome(self, name):
        """({step: (loss, gradient norm, validation loss)}, {name: weights})"""
        records = {}
        with open_file(self.metrics(name), "r", encoding="utf-8") as file:
            for line in file:
                record = json.loads(line)
                records[record["step"]] = [record.get(key, 0.0) for key in ("loss", "grad_norm", "val_loss")]
        return records, load_weights(self.weights(name)).tensors

    def batch(self, rows, length, tokenizer=None):
        """Some rows of the user's data: x, y (rows, length). `tokenizer`: that of a model that has one."""
        c, world = self.config, World()
        data = open_dataset(
            c.data, c.dataset, c.tokenizer, self.model_config.vocab_size, c.val_fraction, world,
            known_tokenizer=tokenizer, may_train=not c.init_from,
        )  # fmt: skip
        loader = DataLoader(data.train, rows, min(length, self.model_config.block_size), 0, 1, c.order, c.seed)
        return loader.batch((0, 0))


def _largest_difference(first, second):
    """Over losses, norms and weights; infinite if they are not of the same steps and parameters."""
    (records_1, weights_1), (records_2, weights_2) = first, second
    if records_1.keys() != records_2.keys() or weights_1.keys() != weights_2.keys():
        return np.inf
    if not records_1 or not weights_1:
        raise UserError("the trainings have recorded nothing that could be compared")
    curves = np.abs(np.array(list(records_1.values())) - np.array([records_2[step] for step in records_1])).max()
    different = [np.abs(weights_1[name] - weights_2[name]).max() for name in weights_1
                 if weights_1[name].tobytes() != weights_2[name].tobytes()]  # fmt: skip
    return float(max([curves, *different]))


def _resume(trial):
    trial.run("uncut")
    killed = trial.run("cut", kill_after=STEPS // 2 + 1)
    if os.path.exists(trial.weights("cut")):
        why = "the training had ended before it was killed; use a larger model"
        return Result(np.inf, 0, f"nothing was compared: {why}")
    trial.run("cut", "--resume")
    difference = _largest_difference(trial.outcome("uncut"), trial.outcome("cut"))
    how = f"{STEPS} steps, one training killed after step {killed} and resumed"
    return Result(difference, 0, f"{how}: losses, norms, validation, weights")


def _determinism(trial):
    trial.run("once")
    trial.run("twice")
    difference = _largest_difference(trial.outcome("once"), trial.outcome("twice"))
    return Result(difference, 0, f"{STEPS} steps, twice: losses, norms, validation, weights")


def _accum(trial):
    B = trial.config.batch_size
    pieces = [n for n in (1, 2, 4, 8) if B % n == 0]
    if len(pieces) == 1:
        raise UserError(f"--batch-size {B} does not split into micro-batches; verify accum needs an even one")
    clip = min(trial.config.grad_clip or 0.5, 0.5)
    curves = []
    for n in pieces:
        trial.run(f"pieces-{n}", "--micro-batch-size", B // n, *trial.dropout, "--grad-clip", clip)
        records, _ = trial.outcome(f"pieces-{n}")
        curves.append([records[step] for step in sorted(records)])
    curves = np.array(curves)  # (len(pieces), STEPS, 3)
    losses, norms = curves[:, :, 0], curves[:, 0, 1]  # norms of the first step: later ones grow apart with the weights
    clipped = int((curves[0, :, 1] > clip).sum())
    of_losses = np.abs(losses - losses[0]) / np.maximum(1, losses[0])
    difference = float(max(of_losses.max(), (np.abs(norms - norms[0]) / np.maximum(1e-30, norms[0])).max()))
    how = f"{', '.join(map(str, pieces))} micro-batches, {trial.dropout_text}clipped at {clip:g}"
    return Result(difference, ROUNDING, f"{STEPS} steps with {how} in {clipped} of them: losses, first norm")


def _ranks(trial):
    B = trial.config.batch_size
    counts = [n for n in (1, 2, 4) if B % n == 0]
    if len(counts) == 1:
        raise UserError(f"--batch-size {B} cannot be shared by 2 ranks; verify ranks needs an even one")
    micro = B // (2 * counts[-1]) or 1 if B % (2 * counts[-1]) == 0 else B // counts[-1]
    clip = min(trial.config.grad_clip or 0.5, 0.5)
    reference = ops.runs_reference(trial.config.kernels)
    threads = ("--threads", 1) if reference and trial.config.threads is None else ()  # BLAS: other threads, other bits
    for n in counts:
        flags = ("--micro-batch-size", micro, *trial.dropout, "--grad-clip", clip, *threads)
        trial.run(f"ranks-{n}", *flags, ranks=n)
    outcomes = [trial.outcome(f"ranks-{n}") for n in counts]
    difference = max(_largest_difference(outcomes[0], other) for other in outcomes[1:])
    clipped = sum(norm > clip for _, norm, _ in outcomes[0][0].values())
    how = f"{B // micro} micro-batches of {micro}, {trial.dropout_text}clipped at {clip:g} in {clipped} of them"
    ranks = ", ".join(map(str, counts))
    return Result(difference, 0, f"{STEPS} steps with {ranks} ranks; {how}: losses, norms, validation, weights")


def _kernels(trial):
    if not ops.have_cpu_kernels():
        return Result(np.inf, 0, f"nothing was compared: {_missing('kernels')}")
    x, y = trial.batch(min(4, trial.config.batch_size), 256)
    results = []
    for mode in ("auto", "reference"):
        with kernels(mode):
            model = make_model(trial.model_config, seed=trial.config.seed)
            set_dropout(model, trial.config.seed, 0)
            loss = model.loss(x, y)
            loss.backward()
            results.append((loss.item(), {name: p.grad for name, p in model.named_parameters()}))
    (loss, fast), (reference_loss, reference) = results
    differences = {name: _relative(fast[name], reference[name]) for name in reference}
    worst = max(differences, key=differences.get)
    difference = max(abs(loss - reference_loss) / reference_loss, differences[worst])
    text = f"loss {loss:.6f} and {reference_loss:.6f}; gradients of {len(reference)} parameters, the worst of {worst}"
    return Result(difference, KERNELS_TOLERANCE, text)


def _relative(a, b):
    scale = float(np.linalg.norm(b))
    return float(np.linalg.norm(a - b)) / scale if scale else float(np.linalg.norm(a))


def _gradients(trial):
    """(L(p + h v) - L(p - h v)) / 2h against dL/dp . v, with five points, along random directions v."""
    x, y = trial.batch(2, 64)
    model = make_model(trial.model_config, seed=trial.config.seed)
    for parameter in model.parameters():
        parameter.data = parameter.data.astype(np.float64)
    flat = FlatBuffers(model)
    set_dropout(model, trial.config.seed, 0)
    model.loss(x, y).backward()
    grad, start, rng = flat.grad.copy(), flat.data.copy(), np.random.default_rng(trial.config.seed)

    def loss_at(step):
        flat.data[...] = start + step
        with no_grad():
            return model.loss(x, y).item()

    def error(part):
        v = np.zeros_like(grad)
        v[part] = rng.standard_normal(v[part].shape)
        v[part] *= 1 / np.linalg.norm(v[part])
        v[part] += grad[part] / (np.linalg.norm(grad[part]) + 1e-30)  # so that the slope is not zero by chance
        smallest = math.inf
        for h in (1e-3, 2e-4):  # where the loss of a small model bends within the first
            near, far = loss_at(h * v) - loss_at(-h * v), loss_at(2 * h * v) - loss_at(-2 * h * v)
            slope = (8 * near - far) / (12 * h)
            smallest = min(smallest, abs(slope - grad @ v) / (abs(grad @ v) + 1e-12))
            if smallest <= GRADIENT_TOLERANCE:
                break
        return smallest

    everything, begin = slice(None), time.perf_counter()
    errors = {"all parameters": max(error(everything) for _ in range(3))}
    for name, part in flat.slices.items():
        if time.perf_counter() - begin > _SECONDS:
            break
        if np.linalg.norm(grad[part]) > 1e-6:  # of a smaller one only rounding would be seen
            errors[name] = error(part)
    worst = max(errors, key=errors.get)
    text = f"three directions of all {flat.size:,} values, and {len(errors) - 1} parameters alone; the worst: {worst}"
    return Result(errors[worst], GRADIENT_TOLERANCE, text)


def _kvcache(trial):
    """Three texts of different lengths, together and with caches, beyond the context; then each alone and without."""
    T = min(max(48, getattr(trial.model_config, "n_context", 1)), trial.model_config.block_size)
    if trial.config.init_from:
        model = load_pretrained(trial.config.init_from, T)[0]
    else:
        model = make_model(replace(trial.model_config, block_size=T), seed=trial.config.seed).eval()
    V, new = model.config.vocab_size, T + 8
    rng = np.random.default_rng(trial.config.seed)
    prompts = [rng.integers(0, V, length).tolist() for length in (1, T // 2 or 1, T + 3)]
    different, sampling = 0, Sampling(temperature=1.0, top_k=50)
    for draws in (False, True):
        rngs = [np.random.default_rng(n) if draws else None for n in range(3)]
        texts = [list(prompt) for prompt in prompts]
        for step in generate(model, prompts, new, rngs, sampling):
            texts[step.text].append(step.token)
        for n, prompt in enumerate(prompts):
            rng, text = np.random.default_rng(n) if draws else None, list(prompt)
            for _ in range(new):
                with no_grad():
                    logits = model(np.array([text[-T:]]))[0].numpy()[0, -1]
                text.append(sample(logits, rng, **vars(sampling)))
            different += sum(a != b for a, b in zip(text, texts[n]))
    how = f"prompts of {', '.join(str(len(prompt)) for prompt in prompts)} tokens in a context of {T}"
    return Result(different, 0, f"6 texts of {new} tokens, greedy and drawn, {how}: tokens")


def _precision(trial):
    parts, text, table = verify_precision.measure(trial)
    found = [f"{what} {error:.1e} of {allowed:.0e}" for what, (error, allowed) in parts.items()]
    largest = max(error / allowed for error, allowed in parts.values())
    return Result(largest, 1, f"of what is allowed: {', '.join(found)}; {text}", table)


PROPERTIES = {
    "resume": _resume,
    "accum": _accum,
    "determinism": _determinism,
    "ranks": _ranks,
    "kernels": _kernels,
    "gradients": _gradients,
    "kvcache": _kvcache,
    "precision": _precision,
}
