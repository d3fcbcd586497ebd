"""The reading order: from one number to the trained model, each step with its lessons, ops and files."""

STEPS = (  # title, what it is about, numbers of lessons, ops to read, files to read
    ("Look first", "Train a model, let it write, and see one step of the training from inside.", [0], [],
     ["train_gpt2.py", "inference.py"]),
    ("The engine", "How a number remembers where it came from, and the walk back.", [1, 2, 3, 4],
     ["add", "mul", "matmul"],
     ["tinygrad2/tensor.py", "tinygrad2/function.py", "tinygrad2/autograd.py", "ops/broadcast.py",
      "tinygrad2/grad_check.py"]),
    ("First models", "Counting pairs, then a network that sees more than one token.", [5, 6, 7],
     ["softmax", "log_softmax", "cross_entropy"], ["models/bigram.py", "models/mlp_lm.py"]),
    ("The parts of a GPT", "Embedding, layernorm, attention, and what holds them together.", [8, 9, 10, 11],
     ["embedding", "layernorm", "attention", "gelu", "linear", "mlp"],
     ["models/head.py", "models/multihead_attention.py", "models/mlp.py", "models/block.py", "models/gpt.py"]),
    ("Training", "Is it healthy, does it learn at all, is the loss normal?", [12, 13, 14, 16, 17],
     ["dropout", "linear_cross_entropy"], ["tinygrad2/optim.py", "tinygrad2/datasets/dataloader.py"]),
    ("Text", "Bytes, merges, and why a model cannot spell.", [15], [],
     ["tinygrad2/tokenizers/bpe.py", "tinygrad2/tokenizers/pretokenizer.py"]),
    ("Use", "The real GPT-2; generating with a KV cache; finetuning.", [18, 19, 20], [],
     ["models/kv_cache.py", "models/sampling.py"]),
    ("Speed and scale", "Operations, bytes, kernels, 16 bits, several processes.", [21, 22, 23, 24],
     ["linear_bfloat16", "linear_int8", "add_layernorm"],
     ["tinygrad2/monitor/op_costs.py", "tinygrad2/distributed/allreduce.py"]),
)  # fmt: skip

OPS_BY_KIND = {  # every op once
    "A GPT": ["embedding", "layernorm", "add_layernorm", "linear", "split_heads", "attention", "merge_heads", "gelu",
              "gelu_erf", "mlp", "dropout", "softmax", "log_softmax", "cross_entropy", "linear_cross_entropy",
              "linear_bfloat16", "linear_int8"],
    "Arithmetic": ["add", "sub", "mul", "div", "neg", "pow", "matmul"],
    "Elementwise": ["abs", "clip", "cos", "exp", "log", "maximum", "minimum", "relu", "sigmoid", "sin", "sqrt", "tanh"],
    "Along axes": ["sum", "mean", "var", "std", "max", "min", "argmax", "argmin", "cumsum"],
    "Shape": ["reshape", "transpose", "expand", "index", "split", "stack", "concatenate"],
    "Truth and copies": ["compare", "logical", "all", "any", "where", "cast", "clone"],
}  # fmt: skip
