"""python -m tinygrad2 explain: look into a forward pass or a training step on your text, as an HTML page.

    python -m tinygrad2 explain --prompt "Once upon a time"                        writes explain.html
    python -m tinygrad2 explain --prompt "Once upon a time" --step                 writes explain_step.html
    python -m tinygrad2 explain --weights data/gpt2/gpt2 --prompt "The cat sat" --layers 0,5,11

A page has the numbers of this very run. Of a forward pass: tokens, embeddings, where each attention head looks, what
each block adds to the residual stream, what each layer would predict, the most probable next tokens. Of a step: the
graph, the loss of each position, the gradient of every tensor, and the update of every parameter.
"""

import math
import os
from dataclasses import dataclass, replace

import numpy as np

import ops
from models.pretrained import load_pretrained
from tinygrad2.cli import Parser, add_flags, flag, from_flags, input_path, output_path, summary
from tinygrad2.commands.explain_run import checkpoint_of, optimizer_of, weights_of
from tinygrad2.dispatch import kernels
from tinygrad2.errors import UserError, one_line, short
from tinygrad2.explain.forward import Forward, choose_layers, ids_on_page, page_of_forward
from tinygrad2.explain.maps import gradient_maps
from tinygrad2.explain.memory import page_of_memory
from tinygrad2.explain.numeric import choose_elements, largest_difference, measure, samples
from tinygrad2.explain.page import is_page, write_page
from tinygrad2.explain.pulls import choose_targets, page_of_pulls, pulls
from tinygrad2.explain.step import Step, page_of_step
from tinygrad2.explain.text import token_text
from tinygrad2.io.outputs import check_output
from tinygrad2.system.streams import print_error
from tinygrad2.tokenizers.tokenizer import SPECIAL
from tinygrad2.training.memory_plan import MemoryPlan

_MOST_TOKENS = 256  # of a text: a page has numbers for every pair of them


@dataclass(frozen=True)
class ExplainConfig:
    """The flags, checked. Raises ValueError, naming the flag, for values that are not possible."""

    weights: str = input_path("trained_weights.bin", "what train_gpt2.py has written: weights, a checkpoint, or the "
                                                     "folder of a run; or a third-party model")
    tokenizer: str = input_path("", "tokenizer file or folder, for weights that do not include one",
                                default="that of the weights")
    prompt: str = flag("Once upon a time", f"the text, at most {_MOST_TOKENS} tokens and the model's block_size")
    special: str = flag("refused", "<|endoftext|> in the prompt: refused is an error; allowed is the end-of-text "
                                   "token; ordinary is plain characters", choices=SPECIAL)
    step: bool = flag(False, "one training step on the text, instead of a forward pass")
    lr: float = flag(None, "of the step", kind=float, default="what the run's schedule has next, without its "
                                                              "checkpoint its highest, else 6e-4")
    layers: str = flag("", "blocks whose attention is shown, or of a step what is measured: all, or numbers such as "
                           "0,5,11", default="all, or as many as fit onto a page")
    out: str = output_path("", "the page", default="explain.html, explain_step.html")
    kernels: str = flag("auto", "auto: fast kernels if there are any; reference: the reference implementations only",
                        choices=("auto", "reference"))
    threads: int = flag(None, "for BLAS and kernels", kind=int, default="all cores")

    def __post_init__(self):
        if not self.prompt:
            raise ValueError('--prompt is empty: give a text, for example --prompt "Once upon a time"')
        if self.lr is not None and not 0 <= self.lr < float("inf"):
            raise ValueError(f"--lr must be at least 0 and finite, not {self.lr}")
        if self.lr is not None and not self.step:
            raise ValueError("--lr is for --step: a forward pass changes no weight")


def main(argv):
    parser = Parser(prog="tinygrad2 explain", description=summary(__doc__))
    add_flags(parser, ExplainConfig)
    config = from_flags(ExplainConfig, parser.parse_args(argv))
    config = replace(config, weights=weights_of(config.weights, print_error))
    out = config.out or ("explain_step.html" if config.step else "explain.html")
    inputs = [("--weights", config.weights), ("--tokenizer", config.tokenizer)]
    replaced = check_output("--out", out, "a page of tinygrad2 explain", is_page, [pair for pair in inputs if pair[1]])
    model, tokenizer, pretrained = load(config)
    tokens = encode(config, pretrained)
    with kernels(config.kernels), np.errstate(over="ignore", invalid="ignore"):
        try:
            explained = explain_step if config.step else explain_forward
            data, line = explained(config, model, tokenizer, pretrained, tokens)
        except LookupError as error:
            raise UserError(f"{config.weights}: the forward pass is not the one that the page shows: {error}") from None
    size = write_page(out, "step" if config.step else "forward", data | about(config, model))
    if replaced:
        print(f"note      {out}: the page that was there is replaced")
    print(line)
    print(f"page      {out}, {size / 1e6:.2f} MB: open it in a browser")
    return 0


def explain_forward(config, model, tokenizer, pretrained, tokens):
    """(data of the page, a line for the terminal) of a forward pass."""
    layers = read_layers(config.layers, model.config, len(tokens))
    forward = Forward(model, tokens, layers)
    page = page_of_forward(forward) | {"layers": layers, "tokens": tokens}
    page["texts"] = {id: token_text(tokenizer, id) for id in sorted({*tokens, *ids_on_page(page)})}
    last = forward.probabilities[-1]
    best = (-last).argsort(kind="stable")[:3].tolist()
    guesses = ", ".join(f"{token_text(tokenizer, id)} {share(last[id])}" for id in best)
    if not np.isfinite(last).all():
        guesses = "its probabilities are not finite numbers"
    lines = [f"tokens    {len(tokens)}; after the last one: {guesses}"]
    return page, "\n".join(lines + [f"attention {sentence}" for sentence in page["wrong"]])


def share(p):
    """A probability for the terminal: 12.3%, and one that is small is not 0.0%."""
    return "<0.1%" if 0 < p < 5e-4 else f"{p:.1%}"


def explain_step(config, model, tokenizer, pretrained, tokens):
    """The same of a training step."""
    if len(tokens) < 2:
        raise UserError("--prompt: one token has no next one to learn; give a longer text")
    checkpoint = checkpoint_of(config.weights, pretrained)
    optimizer, moments = optimizer_of(config.lr, pretrained, checkpoint)
    layers = read_layers(config.layers or "all", model.config, len(tokens))
    try:
        step = Step(model, tokens, optimizer, moments)
    except ValueError as error:                                   # moments that are not this model's
        raise UserError(f"{config.weights}: {error}") from None
    if not math.isfinite(step.loss + step.norm):
        raise UserError(f"{config.weights}: the loss is {step.loss}, the norm of its gradient {step.norm}: these "
                        "weights cannot be trained; python -m tinygrad2 replay finds where a training broke")
    wanted = {name: grad for name, grad in step.grads.items() if in_layers(name, layers)}
    elements = choose_elements(model.config, wanted, len(tokens) - 1)
    numeric = samples(model, step.grads, elements, measure(model, step.x, step.y, elements))
    page = page_of_step(step) | {"optimizer": optimizer, "tokens": tokens[:-1], "samples": numeric,
                                 "maps": gradient_maps(wanted)}  # fmt: skip
    if model.config.family == "gpt":                              # the others have no residual stream
        targets = choose_targets(model.config, len(tokens) - 1)
        found = pulls(model, step.x, step.y, targets)
        page["pulls"] = page_of_pulls({name: part for name, part in found.items() if in_layers(name, layers)}, targets)
    reference = ops.runs_reference(config.kernels)
    plan = MemoryPlan(model.config, 1, len(tokens) - 1, reference=reference, keeps_copies=False, base=0)
    page["memory"] = page_of_memory(step.memory, {"parts": plan.parts, "layer": plan.layer}, step.fixed)
    page["texts"] = {id: token_text(tokenizer, id) for id in sorted(set(tokens))}
    mean = f"the mean of {len(tokens) - 1} positions" if len(tokens) > 2 else "of one position"
    line = f"loss      {step.loss:.4f}, {mean}; norm of the gradient {step.norm:.4g}"
    line += f"\nmoments   {said_of_moments(optimizer)}"
    count, worst = sum(map(len, elements.values())), largest_difference(numeric)
    return page, f"{line}\ngradient  {count} elements measured in float64: they differ by {worst:.1e} at most, relative"


def said_of_moments(optimizer):
    """Whose moments the update is made with, for the terminal."""
    if run := optimizer["run"]:
        return f"Adam's after {run['t']:,} steps, from {run['path']}"
    return "zero: the first step of a new Adam; --weights of a run's checkpoint takes those of the run"


def in_layers(name, layers):
    """Is a module or parameter ("h.3.attn") of one of these layers, or of none?"""
    return not name.startswith("h.") or int(name.split(".")[1]) in layers


def load(config):
    """(model in evaluation mode, tokenizer, Pretrained); prints notes to stderr. Raises UserError."""
    model, tokenizer, pretrained = load_pretrained(config.weights, tokenizer=config.tokenizer)
    if not config.step:
        model.config.require_gpt(config.weights, "give a GPT, or --step, which takes any model")
    for note in pretrained.notes:
        print_error(f"note      {note}")
    if tokenizer is None:
        raise UserError(f"{config.weights}: its tokenizer is not known; pass it with --tokenizer (GPT-2's: python "
                        "data/gpt2/prepare.py --tokenizer-only)")
    return model, tokenizer, pretrained


def encode(config, pretrained):
    """The ids of the prompt, for a model trained here after the token that begins a text. Raises UserError."""
    for token in getattr(pretrained.tokenizer, "special", ()) if config.special == "refused" else ():
        if token in config.prompt:
            raise UserError(f"{token} is in the prompt; --special allowed reads it as the token of that name, "
                            "--special ordinary as plain characters")
    start = [pretrained.start] if pretrained.trained_here and pretrained.start is not None else []
    tokens = start + pretrained.tokenizer.encode(os.fsencode(config.prompt), config.special)
    most = min(_MOST_TOKENS, pretrained.config["block_size"])
    if len(tokens) > most:
        limit = "the model's block_size" if most < _MOST_TOKENS else "the most that a page shows"
        raise UserError(f"--prompt: {len(tokens):,} tokens are more than {most}, {limit}; give a shorter text")
    if not tokens:
        raise UserError("--prompt: has no tokens; give another text")
    return tokens


def read_layers(text, config, n_tokens):
    """The numbers of the layers that --layers names. Raises UserError for others."""
    if not text:
        return choose_layers(config, n_tokens)
    if text == "all":
        return list(range(config.n_layer))
    try:
        layers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise UserError(f"--layers {short(text)}: give all, or numbers from 0 on, such as 0,1") from None
    for layer in layers:
        if not 0 <= layer < config.n_layer:
            raise UserError(f"--layers {short(text)}: there is no layer {layer}; the model has 0 .. "
                            f"{config.n_layer - 1}")
    return layers


def about(config, model):
    """What the head of the page says of the model."""
    c = model.config
    return {"weights": one_line(config.weights, 200), "parameters": c.count_parameters(), "config": c.to_dict(),
            "describe": c.describe()}  # fmt: skip
