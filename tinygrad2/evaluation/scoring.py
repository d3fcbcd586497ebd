"""The probabilities a model assigns to given tokens: for multiple choice, perplexity, and lm-evaluation-harness.

Rows with a common context share the work. Four endings of one context go through the model as one sequence,

    context e1 e1 e1 e2 e2 e3 e3 e3 e3 e4 e4

in which only positions and attention depend on the order: every ending has the positions after the context, and attends
to the context and itself. The matrix products run over the tokens of many such questions at once, and none is padding.
So HellaSwag takes less than half the work of four padded rows per question.

The last token of a row is only predicted, not an input: a row may have block_size + 1 tokens.
"""

import numpy as np

from tinygrad2.backend import xp_of
from tinygrad2.errors import UserError
from tinygrad2.system.threads import POOL
from tinygrad2.tensor import Tensor, no_grad

BATCH_TOKENS = 2048  # per pass through the model
_LOGITS = 64 << 20  # bytes that logits, of all ids of the vocabulary, may take at a time


def windows(n, begin, block_size, stride=None):
    """Cut n tokens into rows of at most block_size + 1: yields (start, first, stop), a row and its first token to be
    scored.

    Every token from `begin` >= 1 on is scored once. A row after the first scores `stride` new tokens (default:
    block_size), the rest of it is context; the last row is as long as the others.

        windows(9, 1, 4) -> (0, 1, 5), (4, 5, 9)              windows(9, 1, 4, 2) -> (0, 1, 5), (2, 5, 7), (4, 7, 9)
    """
    stride = stride or block_size
    stop = max(begin + stride, block_size + 1)
    while begin < n:
        stop = min(n, stop)
        yield max(0, stop - block_size - 1), begin, stop
        begin, stop = stop, stop + stride


def score_long(model, rows, begins, batch_tokens=BATCH_TOKENS):
    """As score_rows, for rows of any length: in one that is too long, tokens are given what fits (see `windows`)."""
    pieces = []
    for n, (row, begin) in enumerate(zip(rows, begins)):
        for start, first, stop in windows(len(row), begin, model.config.block_size):
            pieces.append((n, row[start:stop], first - start))
    scores = [([np.empty(0)], [np.empty(0, bool)]) for _ in rows]
    _, parts, firsts = zip(*pieces) if pieces else ((), (), ())
    for (n, _, _), (logprobs, greedy) in zip(pieces, score_rows(model, parts, firsts, batch_tokens)):
        scores[n][0].append(logprobs)
        scores[n][1].append(greedy)
    return [tuple(map(np.concatenate, of_row)) for of_row in scores]


def score_rows(model, rows, begins, batch_tokens=BATCH_TOKENS):
    """For each row, a list of token ids, its tokens from begins[i] >= 1 on, each given all before it:

        (ln of the model's probability, float64 (n,);  is the token the most likely of all?, bool (n,))

    batch_tokens   tokens per pass through the model; more only if a single row has more

    Besides these, logits take 64 MB. Raises ValueError for a row without context or with more than block_size + 1
    tokens, UserError if the model's scores are not finite.
    """
    longest = model.config.block_size + 1
    for row, begin in zip(rows, begins):
        if not 1 <= begin <= len(row) <= longest:
            raise ValueError(f"a row of {len(row)} tokens, scored from {begin}: its length may be up to {longest}, and "
                             "the first token cannot be scored")
    results = [(np.empty(0), np.empty(0, bool)) for _ in rows]    # for rows without tokens to score
    for batch in _batches(rows, begins, batch_tokens):
        for n, scores in _score_batch(model, batch):
            results[n] = scores
    return results


class _Group:
    """Rows with the same context: `context`, and (number of the row, tokens after the context) of each."""

    def __init__(self, context):
        self.context, self.endings = context, []


def _batches(rows, begins, budget):
    """Yields lists of _Groups within the budget of tokens; few contexts are in two of the lists."""
    members = {}
    for n, (row, begin) in enumerate(zip(rows, begins)):
        if len(row) > begin:
            members.setdefault(tuple(row[:begin]), []).append((n, row[begin:]))
    batch, size = [], 0
    for context, endings in members.items():
        group, total = None, len(context) + sum(len(ending) - 1 for _, ending in endings)
        if batch and size + total > budget:
            yield batch
            batch, size = [], 0
        for n, ending in endings:
            more = len(ending) - 1
            if group and size + more > budget:                    # one context with very many endings
                yield batch
                batch, size, group = [], 0, None
            if group is None:
                group = _Group(context)
                batch.append(group)
                size += len(context)
            group.endings.append((n, ending))
            size += more
    if batch:
        yield batch


def _score_batch(model, groups):
    """Yields (number of the row, its scores: see score_rows)."""
    layout = _Layout(groups)
    with no_grad():
        x = model.hidden(np.array([layout.tokens]), layout).data[0]      # (T, C)
        outputs = np.concatenate([outputs for _, outputs, _ in layout.scored])
        targets = np.concatenate([ending for _, _, ending in layout.scored])
        logprobs, greedy = np.empty(len(outputs)), np.empty(len(outputs), bool)
        step = max(1, _LOGITS // (4 * model.config.vocab_size))
        for i in range(0, len(outputs), step):
            part = slice(i, i + step)
            logits = model.logits(Tensor(x[xp_of(x).asarray(outputs[part])]))     # (step, V)
            _log_softmax_at(logits.data, targets[part], logprobs[part], greedy[part])
    if not np.isfinite(logprobs).all():
        raise UserError("the model's scores are not finite: its weights are damaged, or its training went wrong")
    start = 0
    for n, outputs, _ in layout.scored:
        stop = start + len(outputs)
        yield n, (logprobs[start:stop], greedy[start:stop])
        start = stop


def _log_softmax_at(logits, targets, logprobs, greedy):
    """Writes ln softmax(logits)[targets] into logprobs (n,), and whether it is the largest into greedy (n,). logits
    (n, V), on any device; targets (n,), on the host."""
    xp = xp_of(logits)

    def part(lo, hi):
        some, rows = logits[lo:hi], xp.arange(hi - lo)
        top = some.argmax(-1)
        largest = some[rows, top]
        total = xp.exp(some - largest[:, None]).sum(-1).astype(xp.float64)
        at_target = some[rows, xp.asarray(targets[lo:hi])]
        values = (at_target - largest).astype(xp.float64) - xp.log(total)
        logprobs[lo:hi] = values if xp is np else xp.asnumpy(values)
        top = top if xp is np else xp.asnumpy(top)
        greedy[lo:hi] = top == targets[lo:hi]

    def row_by_row(lo, hi):                                       # a row fits into the CPU's cache, all do not
        for i in range(lo, hi):
            part(i, i + 1)

    if xp is np:
        POOL.split(row_by_row, len(logits), grain=1 + (1 << 16) // logits.shape[1])
    else:
        part(0, len(logits))


class _Layout:
    """The tokens of groups as one long sequence; takes the role of a KVCache (models/kv_cache.py).

    tokens    of all groups, (T,)
    scored    (number of the row, indices of the outputs that predict its ending, ending), a list
    """

    def __init__(self, groups):
        self.tokens, self.scored, positions, self._pieces = [], [], [], []
        for group in groups:
            n, start = len(group.context), len(self.tokens)
            self.tokens += group.context
            positions += range(n)
            pieces = []
            for number, ending in group.endings:
                first, inside = len(self.tokens), ending[:-1]
                self.tokens += inside
                positions += range(n, n + len(inside))
                if inside:
                    pieces.append((first, len(self.tokens)))
                outputs = [start + n - 1, *range(first, len(self.tokens))]
                self.scored.append((number, np.array(outputs), np.array(ending)))
            self._pieces.append((start, start + n, pieces))
        self._positions = np.array([positions])

    def positions(self, B, T):
        """Positions of all tokens, (1, T)."""
        return self._positions

    def contexts(self, tokens, window):                           # (1, T) integers
        """What a TokenCache returns (models/last_tokens.py): each ending follows its context."""
        parts = []
        for start, end, endings in self._pieces:
            parts.append(window(tokens[:, start:end], end - start))
            for first, stop in endings:
                row = np.concatenate((tokens[:, start:end], tokens[:, first:stop]), axis=1)
                parts.append(window(row, stop - first))
        return np.concatenate(parts, axis=1)

    def advance(self, T):
        """Does nothing: no keys and values are kept."""

    def layer(self, i):
        """This layout, which is the same for all layers."""
        return self

    def attend(self, head, q, k, v):
        """Attention of each token to its context and the tokens of its ending before it, (1, nh, T, hs)."""
        q, k, v = q.data, k.data, v.data
        xp = xp_of(q)
        B, nh, T, hs = q.shape
        out = xp.empty((B, T, nh, hs), q.dtype).transpose(0, 2, 1, 3)    # so that merging the heads copies nothing

        def attend(first, stop, keys, values):
            out[:, :, first:stop] = head(Tensor(q[:, :, first:stop]), Tensor(keys), Tensor(values)).data

        for start, end, endings in self._pieces:
            if len(endings) == 1:                                 # one row: an ordinary sequence
                end, endings = endings[0][1], []
            attend(start, end, k[:, :, start:end], v[:, :, start:end])
            for first, stop in endings:
                keys, values = (_joined(x, start, end, first, stop) for x in (k, v))
                attend(first, stop, keys, values)
        return Tensor(out)


def _joined(x, start, end, first, stop):
    """Two ranges of tokens of x (1, nh, T, hs), concatenated."""
    return xp_of(x).concatenate((x[:, :, start:end], x[:, :, first:stop]), axis=2)
