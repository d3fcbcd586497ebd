"""TrainConfig: every setting of a training. Its fields are the flags of train_gpt2.py."""

import math
from dataclasses import asdict, dataclass

from tinygrad2.backend import DEVICES
from tinygrad2.cli import build, flag, input_path, option, output_path
from tinygrad2.datasets.dataloader import ORDERS
from tinygrad2.distributed.reducer import COMM_DTYPES, REDUCE_ORDERS
from tinygrad2.errors import UserError
from tinygrad2.optim import SCHEDULES, learning_rate
from tinygrad2.precision import DTYPES, PRECISIONS, check_flags
from tinygrad2.system.installation import bundled

RECIPES = {  # steps, batch size and learning rate depend on the model
    "bigram":      dict(steps=1000,   batch_size=16,  lr=1e-1, weight_decay=0.0),
    "mlp":         dict(steps=1000,   batch_size=16,  lr=1e-2),
    "head":        dict(steps=1000,   batch_size=16,  lr=2e-2),
    "block":       dict(steps=1000,   batch_size=16,  lr=6e-3),
    "demo":        dict(steps=1000,   batch_size=16,  lr=6e-3),
    "baby":        dict(steps=2000,   batch_size=12,  lr=1e-3),
    "gpt2":        dict(steps=20000,  batch_size=8,   lr=6e-4),
    "gpt2-medium": dict(steps=20000,  batch_size=8,   lr=3e-4),
    "gpt2-large":  dict(steps=20000,  batch_size=8,   lr=2.5e-4),
    "gpt2-xl":     dict(steps=20000,  batch_size=8,   lr=2e-4),
    "--init-from": dict(steps=200,    batch_size=8,   lr=3e-5, warmup_steps=10),
}  # fmt: skip

_MOST_ROWS = 1 << 20  # of a batch; more is a typing error, and would take forever
_MOST_STEPS = 10**12  # and every other number of steps, tokens, checkpoints
LOGGERS = ("tensorboard", "wandb")
OF_THIS_START = ("resume", "run_dir", "threads", "ranks")  # flags that a resumed training does not inherit


def _by_model(name, text):
    """A flag whose default comes from RECIPES."""
    kind, values = type(RECIPES["demo"][name]), [f"{recipe[name]} for {model}" for model, recipe in RECIPES.items()]
    return flag(None, text, kind=kind, default=", ".join(values))


@dataclass(frozen=True)
class TrainConfig:
    """Every setting of a training, checked: raises ValueError, naming the flag, for values that cannot work.

    steps, batch_size, lr (RECIPES) and micro_batch_size (fit_batch) have defaults that depend on the model and ranks.
    """

    seed: int = flag(1337, "fixes the initial weights, the order of the data, the dropout masks and the samples")
    steps: int = _by_model("steps", "optimizer steps")
    data: str = input_path(bundled("dummy_data.txt"), default="the bundled stories",
                           text="what to train on: a text file, a token file, a folder, a pattern like "
                                "'shards/*.bin', or - for standard input")
    dataset: str = flag("", "which dataset, if --data holds several", default="the only one")
    init_from: str = input_path("", "start from this model instead of random weights (finetuning): one of tinygrad2's, "
                                    "or a Hugging Face folder or model.safetensors, an llm.c .bin, a nanoGPT ckpt.pt",
                                default="none")
    order: str = flag("shuffled", "order of the text: shuffled again in each epoch, sequential, or llmc: as llm.c "
                                  "reads it", choices=ORDERS)
    tokenizer: str = input_path("", "tokenizer file or folder (tinygrad2's, or GPT-2's in another format) to use "
                                    "instead of training one on the text", default="train one, or that of --init-from")
    batch_size: int = _by_model("batch_size", "sequences per optimizer step, over all ranks together")
    micro_batch_size: int = flag(None, "sequences per forward pass on one rank", kind=int, default="the rank's share")
    lr: float = _by_model("lr", "highest learning rate")
    final_lr: float = flag(0.1, "learning rate at the end, as a fraction of --lr")
    schedule: str = flag("cosine", "how the learning rate decays after the warmup", choices=SCHEDULES)
    decay_steps: int = flag(None, "for --schedule wsd: the last steps, over which the learning rate falls from --lr",
                            kind=int, default="a fifth of --steps")
    warmup_steps: int = flag(100, "steps over which the learning rate rises to --lr", default="100, 10 for --init-from")
    weight_decay: float = flag(0.1, "decoupled weight decay, on matrices only", default="0.1, 0 for bigram")
    beta1: float = flag(0.9, "Adam: decay rate of the first moment, the mean of the gradient")
    beta2: float = flag(0.99, "Adam: decay rate of the second moment, the mean of its square")
    grad_clip: float = flag(1.0, "largest norm of the gradient of all parameters; 0 means no clipping")
    val_fraction: float = flag(0.05, "fraction of the text, at its end, kept for validation")
    eval_every: int = flag(100, "steps between validations; 0 means none")
    eval_batches: int = flag(4, "batches of one validation (always the same ones)")
    sample_every: int = flag(200, "steps between samples; 0 means only the last")
    sample_tokens: int = flag(80, "tokens of one sample")
    prompt: str = flag("Once upon a time", "how the samples start")
    hellaswag: str = input_path("", "HellaSwag file (hellaswag_val.jsonl, or llm.c's .bin) to evaluate at every "
                                    "validation",
                                default="none")
    hellaswag_examples: int = flag(200, "how many of its examples")
    recompute: bool = flag(False, "keep only the inputs of blocks and compute the rest again in backward: less memory, "
                                  "a quarter more time")
    device: str = flag("cpu", "cpu, or cuda (an NVIDIA GPU)", choices=DEVICES)
    read_every: int = flag(10, "with --device cuda: wait for the GPU, and show the losses, every so many steps; steps "
                               "between are started without waiting")
    cuda_graph: str = flag("auto", "with --device cuda: launch a step by one call, as a CUDA graph: yes, no, or "
                                   "auto (where starting its kernels takes most of a step's time, as with small "
                                   "batches)", choices=("auto", "yes", "no"))
    gpu_attention: str = flag("own", "with --device cuda: whose kernels compute attention: own (the project's), warps "
                                     "(the same, without those that run on the H100 and H200 only) or cudnn (those of "
                                     "NVIDIA's library, for 16 bits without dropout; pip install -e \".[cudnn]\", or "
                                     "\".[cudnn12]\" for CUDA 12)", choices=("own", "warps", "cudnn"))
    tune_products: str = flag("auto", "with --device cuda: which algorithms of cuBLASLt compute products: auto (those "
                                      "that were measured on this GPU before, else its first choice), yes (what is "
                                      "missing is measured in the first steps, and kept in ~/.cache/tinygrad2) or no "
                                      "(its first choice)", choices=("auto", "yes", "no"))
    threads: int = flag(None, "threads of each rank, for BLAS and kernels", kind=int, default="all cores, shared out")
    reduce_order: str = flag("tree", "order in which gradients of micro-batches and ranks are summed: tree (the same "
                                     "bits for 1, 2, 4, ... ranks) or plain (a little faster, less memory)",
                             choices=REDUCE_ORDERS, former="sum")
    zero: int = flag(0, "1: each rank keeps Adam's state of its share of the weights only (ZeRO stage 1); the same "
                        "bits, less memory", choices=(0, 1))
    comm_dtype: str = flag("float32", "dtype in which gradients travel between ranks; bfloat16 halves the bytes and is "
                                      "less exact", choices=COMM_DTYPES, former="wire")
    gpu_allreduce: str = flag("auto", "how gradients of several GPUs are summed: host (in pinned memory, by MPI), nccl "
                                      "(from GPU to GPU), or auto (nccl if every rank has its own GPU)",
                              choices=("auto", "host", "nccl"), former="gpu_sum")
    overlap: str = flag("auto", "send gradients while backward is still running: yes, no, or auto (if there are "
                                "several hosts, or NCCL sums)", choices=("auto", "yes", "no"))
    timeout: float = flag(300.0, "seconds after which ranks that wait for another one end the job; 0 means never")
    ranks: int = flag(None, "refuse to start with another number of ranks than this", kind=int, default="any number")
    compare_every: int = flag(100, "steps between comparisons of the ranks' weights; 0 means only at the end")
    kernels: str = flag("auto", "auto: compiled kernels if there are any; reference: the reference implementations "
                                "only", choices=("auto", "reference"))
    dtype: str = flag("float32", "bfloat16: mixed precision. Products take bfloat16 numbers, and activations wait for "
                                 "backward as such, in half the memory; weights, sums and all else are float32. "
                                 "float16: the same for a GPU without bfloat16, with dynamic loss scaling",
                      choices=DTYPES)
    matmul_precision: str = flag("highest", "errors that matrix products may have: highest (those of float32), high "
                                            "(5e-6) or medium (3e-3, bfloat16): the fastest code within them computes. "
                                            "Without AMX, or AVX512-BF16 of AMD for medium, that is float32's; on a "
                                            "GPU both are TF32 (5e-4)",
                                 choices=PRECISIONS)
    weights_out: str = output_path("trained_weights.bin", "file for the trained weights")
    run_dir: str = output_path("run", "folder for metrics and checkpoints; what an earlier run left there is moved "
                                      "aside")
    resume: bool = flag(False, "continue from the newest intact checkpoint in --run-dir, with its flags; bit for bit "
                               "as if the training had never stopped. If there is none, start a new training")
    checkpoint_every: int = flag(100, "steps between checkpoints; 0 means only at the end, or when stopped")
    keep_checkpoints: int = flag(2, "how many of the newest checkpoints to keep, in addition to the best one")
    keep_every: int = flag(0, "write a checkpoint every N steps that is never removed; 0 means none")
    metrics: str = output_path("", "file for one JSON object per step", default="metrics.jsonl in --run-dir")
    tensorboard: bool = flag(False, "also write TensorBoard files into --run-dir")
    log_to: str = flag("", "also log to tensorboard (the same as --tensorboard) or to wandb (Weights & Biases: offline "
                           "into --run-dir, unless WANDB_MODE=online)", choices=LOGGERS, default="metrics only")
    outlier_z: float = flag(6.0, "report a loss or gradient norm this many standard deviations above those of the last "
                                 "128 steps; 0 means never")
    skip_outliers: bool = flag(False, "leave the weights as they are after a step with such an outlier")
    overfit_one_batch: bool = flag(False, "train on the first batch again and again: where the loss does not approach "
                                          "0, something is wrong")
    log_every: int = flag(10, "on a terminal and in a notebook, keep the line of every Nth step (a file gets "
                            "every line)")

    def __post_init__(self):
        for name, least in (("steps", 1), ("batch_size", 1), ("micro_batch_size", 1), ("warmup_steps", 0),
                            ("eval_every", 0), ("eval_batches", 1), ("sample_every", 0), ("sample_tokens", 0),
                            ("log_every", 1), ("read_every", 1), ("seed", 0), ("threads", 1), ("checkpoint_every", 0),
                            ("keep_checkpoints", 1), ("keep_every", 0), ("ranks", 1),
                            ("compare_every", 0), ("decay_steps", 1), ("hellaswag_examples", 1)):  # fmt: skip
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise ValueError(f"{option(name)} must be at least {least}, not {getattr(self, name)}")
            most = _MOST_ROWS if name in ("batch_size", "micro_batch_size") else _MOST_STEPS
            if (getattr(self, name) or 0) > most and name != "seed":  # any seed is hashed
                raise ValueError(f"{option(name)} must be at most {most}, not {getattr(self, name)}")
        for name in ("data", "weights_out", "run_dir"):
            if not getattr(self, name).strip():
                raise ValueError(f"{option(name)}: the path is empty; give one")
        for name, low, high in (("lr", 0, 1e38), ("final_lr", 0, 1), ("weight_decay", 0, 1e38), ("beta1", 0, 1),
                                ("beta2", 0, 1), ("grad_clip", 0, math.inf), ("val_fraction", 0, 0.9),
                                ("outlier_z", 0, math.inf), ("timeout", 0, 1e9)):  # fmt: skip
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{option(name)} must be in {low} .. {high}, not {getattr(self, name)}")
        check_flags(self)
        if max(self.beta1, self.beta2) == 1:
            raise ValueError("--beta1 and --beta2 must be below 1: at 1 Adam would never take in a gradient")
        if self.skip_outliers and not self.outlier_z:
            raise ValueError("--skip-outliers needs an --outlier-z above 0")
        if self.decay_steps and self.schedule != "wsd":
            raise ValueError(f"--decay-steps is for --schedule wsd, not {self.schedule}")
        if self.decay_steps and self.decay_steps > self.steps:
            raise ValueError(f"--decay-steps {self.decay_steps} is more than the {self.steps} of --steps")


def fit_batch(config, ranks, micro_is_given=False):
    """The config with a micro-batch size by which the batch splits evenly over so many ranks; one that is not given is
    chosen here. Raises UserError if that is impossible."""
    micro = config.micro_batch_size
    if micro is None or (not micro_is_given and config.batch_size % (micro * ranks)):
        micro = max(1, config.batch_size // ranks)
    if config.batch_size % (micro * ranks):
        raise UserError(
            f"--batch-size {config.batch_size} does not split evenly into --micro-batch-size {micro} "
            f"on {ranks} rank(s); make it a multiple of {micro * ranks}"
        )
    return build(TrainConfig, asdict(config) | {"micro_batch_size": micro})


def learning_rate_at(step, flags):
    """The learning rate of a step, counted from 0, by the schedule of these flags: a TrainConfig, or what has the names
    schedule, lr, final_lr, warmup_steps, steps and decay_steps."""
    decay_steps = flags.decay_steps or max(1, flags.steps // 5)
    final = flags.final_lr * flags.lr
    return learning_rate(step, flags.schedule, flags.lr, final, flags.warmup_steps, flags.steps, decay_steps)
