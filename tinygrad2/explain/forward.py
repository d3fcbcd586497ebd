"""What a GPT computes for one text, from the embeddings to the probabilities of the next token.

Nothing here is a second implementation of the model. The residual stream, q, k and v are what the ops of the model
have been given and have returned; a layer's prediction is the model's own ln_f and head, applied to the stream there.
"""

from dataclasses import dataclass

import numpy as np

from tinygrad2.dispatch import OPS
from tinygrad2.explain.recorder import Recorder
from tinygrad2.explain.text import fractions, rounded, signed_bytes
from tinygrad2.function import observe
from tinygrad2.tensor import Tensor, no_grad

_OPS = ("embedding", "add", "add_layernorm", "attention")
_TOP, _TOP_OF_LAYER = 10, 5  # tokens shown of a prediction, of the model and of a layer
_CHANNELS = 128  # of an embedding
_OFF = 1e-3  # from 1, of a sum of weights: more than rounding
_VALUES = 1_000_000  # attention weights on a page: 2.7 bytes each


@dataclass
class Block:
    """The residual stream (T, C) before a block, what attention and MLP add to it, and after it."""

    before: np.ndarray
    attn: np.ndarray
    mlp: np.ndarray
    after: np.ndarray


@dataclass
class Attention:
    """The attention of a layer: q, k, v (nh, T, hs), and from them weights (nh, T, T), whose rows sum to 1.

    out      what the op returned (nh, T, hs)
    error    largest difference between out and weights v
    """

    weights: np.ndarray
    out: np.ndarray
    error: float


class Forward:
    """A forward pass of a GPT over one text, recorded.

    model    on the CPU, in evaluation mode
    tokens   ids of the text, T of them
    layers   numbers of the blocks whose attention weights are kept (they take T x T for each head)

    tokens_part, positions_part   rows of wte and wpe (T, C)
    blocks                        a Block for each layer
    attention                     {layer: Attention}
    logits, probabilities         of the next token at each position (T, V), float32 and float64
    """

    def __init__(self, model, tokens, layers):
        self.model, self.tokens = model, np.asarray(tokens)
        recorder = Recorder(model, _OPS)
        with no_grad(), observe(recorder):
            logits, _ = model(self.tokens[None])                  # (1, T, V)
        self.logits = logits.numpy()[0]
        self.probabilities = softmax(self.logits)
        self.tokens_part = recorder.one("embedding", "wte").results[0][0]
        self.positions_part = recorder.one("embedding", "wpe").results[0]
        self.blocks, self.attention = [], {}
        for i in range(model.config.n_layer):
            middle, end = recorder.one("add_layernorm", f"h.{i}"), recorder.one("add", f"h.{i}")
            (before, attn), mlp, after = middle.inputs[:2], end.inputs[1], end.results[0]    # (1, T, C)
            self.blocks.append(Block(before[0], attn[0], mlp[0], after[0]))
            if i in layers:
                self.attention[i] = attention_of(recorder.one("attention", f"h.{i}.attn.head"))

    def lens(self):
        """What each layer would say: (n_layer + 1, T, V) probabilities, one layer at a time, float64.

        The model's ln_f and head applied to the residual stream in front of the first block, and after each block. The
        last ones are the model's own. nostalgebraist, "interpreting GPT: the logit lens", 2020.
        """
        for stream in [self.blocks[0].before, *(block.after for block in self.blocks)]:
            with no_grad():
                logits = self.model.logits(self.model.ln_f(Tensor(stream[None])))
            yield softmax(logits.numpy()[0])


def attention_of(use):
    """The Attention of a recorded use of the op. Kernels never hold the weights: the op's reference implementation
    computes them from the same q, k and v."""
    q, k, v = use.inputs
    reference = OPS[use.op](np, (True, True, True))
    again = reference.forward(q, k, v, **use.options)
    weights, out = reference.saved[3], use.results[0]             # (1, nh, T, T), (1, nh, T, hs)
    return Attention(weights[0], out[0], float(np.abs(again - out).max(initial=0)))


def softmax(logits):
    """Probabilities (..., V) in float64."""
    e = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def choose_layers(config, n_tokens):
    """The layers whose attention fits onto a page: all of them, or the first, some between, and the last."""
    most = max(1, _VALUES // (config.n_head * n_tokens * (n_tokens + 1) // 2))
    if most >= config.n_layer:
        return list(range(config.n_layer))
    return sorted({round(i * (config.n_layer - 1) / max(1, most - 1)) for i in range(most)})


def page_of_forward(forward):
    """The Forward as JSON values for the page (forward.js): numbers with four significant digits, attention weights
    in steps of 1/65535, embeddings in steps of 1/127 of the largest of a row."""
    config, n_tokens = forward.model.config, len(forward.tokens)
    below = np.tril_indices(n_tokens)                             # row t has t + 1 weights: no token sees a later one
    sums = forward.tokens_part + forward.positions_part
    parts = {"token": forward.tokens_part, "position": forward.positions_part, "sum": sums}
    return {
        "embedding": {name: _embedding(part) for name, part in parts.items()},
        "channels": [min(_CHANNELS, config.n_embd), config.n_embd],
        "blocks": [{name: norms(getattr(block, name)) for name in ("before", "attn", "mlp", "after")}
                   for block in forward.blocks],
        "attention": [
            {"layer": layer, "error": rounded(one.error, 2), "weights": [fractions(w[below]) for w in one.weights]}
            for layer, one in forward.attention.items()
        ],
        "wrong": wrong_weights(forward),
        "lens": [top_tokens(probabilities, _TOP_OF_LAYER) for probabilities in forward.lens()],
        "top": top_tokens(forward.probabilities, _TOP),
        "next": rounded(forward.probabilities[np.arange(n_tokens - 1), forward.tokens[1:]]),
    }  # fmt: skip


def wrong_weights(forward):
    """Sentences about layers whose attention weights are none of a causal attention: what the page does not draw."""
    found = []
    for layer, one in forward.attention.items():
        later, sums = np.triu(one.weights, 1).sum(-1), one.weights.sum(-1)                           # (nh, T) both
        if later.max() > 0:
            found.append(f"layer {layer}: positions look ahead, with up to {later.max():.1%} of their weights, "
                         "which are not drawn")  # fmt: skip
        if np.abs(sums - 1).max() > _OFF:
            worst = sums.flat[np.abs(sums - 1).argmax()]
            found.append(f"layer {layer}: the weights of a position sum to {worst:.3f}, not to 1")
    return found


def _embedding(rows):
    return signed_bytes(rows[:, :_CHANNELS]) | {"norm": norms(rows)}


def norms(rows):
    """The Euclidean norm of each row (T, C), rounded."""
    return rounded(np.linalg.norm(rows.astype(np.float64), axis=-1))


def top_tokens(probabilities, n):
    """For each position (T, V) the n most probable tokens, the largest first, and the sum of all others:
    [{"ids", "p", "rest"}]."""
    n = min(n, probabilities.shape[-1])
    rows = []
    for row in probabilities:
        ids = np.argpartition(row, -n)[-n:]
        ids = ids[np.lexsort((ids, -row[ids]))]
        rest = np.delete(row, ids).sum()
        rows.append({"ids": ids.tolist(), "p": rounded(row[ids]), "rest": rounded(rest)})
    return rows


def ids_on_page(page):
    """The ids of all tokens that page_of_forward names."""
    return {id for rows in [page["top"], *page["lens"]] for row in rows for id in row["ids"]}
