"""Which steps on a GPU need not wait for it, and which can be a CUDA graph; flags that are refused where they cannot.

Each answer is the reason why not, in words, or "". Flags are refused before a training begins, and by all commands that
take them, such as `python -m tinygrad2 plan`.
"""

from tinygrad2.errors import UserError


def why_each_waits(config, ranks=1, is_nccl=True):
    """Why a step must be read before the next one starts.

    config    TrainConfig
    is_nccl   the gradients of several ranks are summed by NCCL
    """
    if config.device == "cpu":
        return "it is for --device cuda"
    if config.kernels == "reference":
        return "with --kernels reference each step waits for the GPU"
    if config.read_every == 1:
        return "with --read-every 1 each step waits for the GPU"
    if config.skip_outliers:
        return "with --skip-outliers each step waits for the loss"
    if config.zero or (ranks > 1 and not is_nccl):
        return "the gradients of the ranks are summed by the host"
    return ""


def why_no_graph(ranks=1):
    """Why a step that need not wait cannot be a graph."""
    return "a graph is for one rank" if ranks > 1 else ""


def refuse_gpu_flags(config, ranks=1):
    """Raises UserError for --cuda-graph yes, --tune-products yes and --gpu-allreduce nccl beside other flags with which
    they would do nothing."""
    refuse_graph(config, why_each_waits(config, ranks) or why_no_graph(ranks))
    if config.tune_products == "yes" and (config.device == "cpu" or config.kernels == "reference"):
        raise UserError("--tune-products yes: it is for the kernels of --device cuda; use --tune-products auto")
    if config.gpu_allreduce == "nccl" and config.comm_dtype != "float32" and ranks > 1 and config.device != "cpu":
        raise UserError(f"--gpu-allreduce nccl: --comm-dtype {config.comm_dtype} is for sums by the host; "
                        "use --gpu-allreduce auto")  # fmt: skip


def refuse_graph(config, reason):
    """Raises UserError if there is a reason, and --cuda-graph yes."""
    if reason and config.cuda_graph == "yes":
        raise UserError(f"--cuda-graph yes: {reason}; use --cuda-graph auto")
