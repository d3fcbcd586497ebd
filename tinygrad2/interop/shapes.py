"""The names and shapes of the tensors of a GPT, by its config alone."""

from tinygrad2.errors import UserError


def shapes_of(config):
    """{our name: shape} of all parameters of a config (fields of GPTConfig), in the order of GPT-2's state dict."""
    C, L = config["n_embd"], config["n_layer"]
    H = config.get("n_inner") or 4 * C
    shapes = {"wte.weight": (config["vocab_size"], C), "wpe.weight": (config["block_size"], C)}
    for i in range(L):
        shapes |= {f"h.{i}.ln_1.weight": (C,), f"h.{i}.ln_1.bias": (C,)}
        shapes |= {f"h.{i}.attn.c_attn.weight": (C, 3 * C), f"h.{i}.attn.c_attn.bias": (3 * C,)}
        shapes |= {f"h.{i}.attn.c_proj.weight": (C, C), f"h.{i}.attn.c_proj.bias": (C,)}
        shapes |= {f"h.{i}.ln_2.weight": (C,), f"h.{i}.ln_2.bias": (C,)}
        shapes |= {f"h.{i}.mlp.c_fc.weight": (C, H), f"h.{i}.mlp.c_fc.bias": (H,)}
        shapes |= {f"h.{i}.mlp.c_proj.weight": (H, C), f"h.{i}.mlp.c_proj.bias": (C,)}
    shapes |= {"ln_f.weight": (C,), "ln_f.bias": (C,)}
    shapes = {name: shape for name, shape in shapes.items() if config["bias"] or name.endswith("weight")}
    return shapes if config["tied_head"] else shapes | {"lm_head.weight": (C, config["vocab_size"])}


def check_shapes(tensors, config, path):
    """Raise UserError if tensors {our name: anything with a shape} are not those of a ModelConfig.

    It is called before a model is made: a config may claim a terabyte, tensors cannot be larger than their file.
    """
    if config.n_layer > len(tensors):
        problem = f"n_layer is {config.n_layer:,}, but there are {len(tensors)} tensors"
        raise UserError(f"{path}: {problem}; copy it again")
    shapes = config.shapes()
    problems = [f"{name} is missing" for name in shapes if name not in tensors]
    problems += [f"{name} is not a parameter of this model" for name in tensors if name not in shapes]
    for name, shape in shapes.items():
        if name in tensors and tuple(tensors[name].shape) != shape:
            problems.append(f"{name} has shape {tuple(tensors[name].shape)}, the model's has {shape}")
    if problems:
        more = "" if len(problems) <= 3 else f"; and {len(problems) - 3} more"
        what = "; ".join(problem if len(problem) < 150 else problem[:147] + "..." for problem in problems[:3])
        raise UserError(f"{path}: its tensors are not those of its config: {what}{more}; copy both again")
