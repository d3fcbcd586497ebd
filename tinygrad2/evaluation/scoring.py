"""How likely a model finds given tokens: for multiple-choice questions, perplexity, and lm-evaluation-harness.

Rows that begin alike share the work. Four endings of one text go through the model as one sequence,

    context e1 e1 e1 e2 e2 e3 e3 e3 e3 e4 e4

in which positions and attention, and nothing else, know who follows whom: every ending stands behind the context and
sees it and itself. All matrix products get the tokens of many such questions at once, and none is padding. So
HellaSwag takes less than half the work of four padded rows per question.

The last token of a row is only predicted, it need not go in: a row may have block_size + 1 tokens.
"""

import numpy as np

from tinygrad2.backend import xp_of
from tinygrad2.errors import UserError
from tinygrad2.system.threads import POOL
from tinygrad2.tensor import Tensor, no_grad

BATCH_TOKENS = 2048  # that go through the model at a time
_LOGITS = 64 << 20  # bytes that scores of the whole vocabulary may take


def windows(n, begin, block_size, stride=None):
    """Cut n tokens into rows of at most block_size + 1: yields (start, first, stop), a row and its first token that is
    to be scored.

    Every token from `begin` >= 1 on is scored once. A row after the first scores `stride` new tokens (default:
    block_size), the rest of it is context; the last one reaches as far back as any.

        windows(9, 1, 4) -> (0, 1, 5), (4, 5, 9)              windows(9, 1, 4, 2) -> (0, 1, 5), (2, 5, 7), (4, 7, 9)
    """
    stride = stride or block_size
    stop = max(begin + stride, block_size + 1)
    while begin < n:
        stop = min(n, stop)
        yield max(0, stop - block_size - 1), begin, stop
        begin, stop = stop, stop + stride


def score_long(model, rows, begins, batch_tokens=BATCH_TOKENS):
    """As score_rows, for rows of any length: where one is too long, its tokens see what fits (see `windows`)."""
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

        (ln of the model's probability, float64 (n,);  is the token the likeliest of all?, bool (n,))

    batch_tokens   so many tokens go through the model at a time, and more only where a single row has more

    Besides these, logits take 64 MB. Raises ValueError for a row without context or with more than block_size + 1
    tokens, UserError where the model's scores are not finite.
    """
    longest = model.config.block_size + 1
    for row, begin in zip(rows, begins):
        if not 1 <= begin <= len(row) <= longest:
            raise ValueError(f"a row of {len(row)} tokens, scored from {begin}: its length may be up to {longest}, and "
                             "the first token cannot be scored")
    results = [(np.empty(0), np.empty(0, bool)) for _ in rows]    # of a context alone
    for batch in _batches(rows, begins, batch_tokens):
        for n, scores in _score_batch(model, batch):
            results[n] = scores
    return results


class _Group:
    """Rows that begin alike: `context`, and (number of the row, tokens behind the context) of each."""

    def __init__(self, context):
        self.context, self.endings = context, []


def _batches(rows, begins, budget):
    """Lists of _Groups, such that few contexts are in two of them."""
    members = {}
    for n, (row, begin) in enumerate(zip(rows, begins)):
        if len(row) > begin:
            members.setdefault(tuple(row[:begin]), []).append((n, row[begin:]))
    batch, size = [], 0
    for context, endings in members.items():
        group, whole = None, len(context) + sum(len(ending) - 1 for _, ending in endings)
        if batch and size + whole > budget:
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
    """Yields (number of the row, its scores)."""
    layout = _Layout(groups)
    with no_grad():
        x = model.hidden(np.array([layout.tokens]), layout).data[0]      # (T, C)
        places = np.concatenate([places for _, places, _ in layout.scored])
        targets = np.concatenate([ending for _, _, ending in layout.scored])
        logprobs, greedy = np.empty(len(places)), np.empty(len(places), bool)
        step = max(1, _LOGITS // (4 * model.config.vocab_size))
        for i in range(0, len(places), step):
            part = slice(i, i + step)
            logits = model.logits(Tensor(x[xp_of(x).asarray(places[part])]))     # (step, V)
            _log_softmax_at(logits.data, targets[part], logprobs[part], greedy[part])
    if not np.isfinite(logprobs).all():
        raise UserError("the model's scores are not finite: its weights are damaged, or its training went wrong")
    start = 0
    for n, places, _ in layout.scored:
        stop = start + len(places)
        yield n, (logprobs[start:stop], greedy[start:stop])
        start = stop


def _log_softmax_at(logits, targets, logprobs, greedy):
    """ln softmax(logits)[targets] -> logprobs (n,); is it the largest? -> greedy (n,). logits (n, V), on any device."""
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

    def row_by_row(lo, hi):                                       # a row stays in the cache, all of them would not
        for i in range(lo, hi):
            part(i, i + 1)

    if xp is np:
        POOL.split(row_by_row, len(logits), grain=1 + (1 << 16) // logits.shape[1])
    else:
        part(0, len(logits))


class _Layout:
    """Where the tokens of groups stand in one long sequence; stands where a KVCache stands (models/kv_cache.py).

    tokens    of all groups, (T,)
    scored    (number of the row, places whose outputs predict its ending, ending), a list
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
                places = [start + n - 1, *range(first, len(self.tokens))]
                self.scored.append((number, np.array(places), np.array(ending)))
            self._pieces.append((start, start + n, pieces))
        self._positions = np.array([positions])

    def places(self, B, T):
        """Positions of all tokens, (1, T)."""
        return self._positions

    def advance(self, T):
        """Nothing is kept for later."""

    def layer(self, i):
        """The same for all layers."""
        return self

    def attend(self, head, q, k, v):
        """What each token finds in those before it, (1, nh, T, hs)."""
        q, k, v = q.data, k.data, v.data
        xp = xp_of(q)
        B, nh, T, hs = q.shape
        out = xp.empty((B, T, nh, hs), q.dtype).transpose(0, 2, 1, 3)    # as merge_heads likes it

        def answer(first, stop, keys, values):
            out[:, :, first:stop] = head(Tensor(q[:, :, first:stop]), Tensor(keys), Tensor(values)).data

        for start, end, endings in self._pieces:
            if len(endings) == 1:                                 # one row: an ordinary sequence
                end, endings = endings[0][1], []
            answer(start, end, k[:, :, start:end], v[:, :, start:end])
            for first, stop in endings:
                keys, values = (_joined(x, start, end, first, stop) for x in (k, v))
                answer(first, stop, keys, values)
        return Tensor(out)


def _joined(x, start, end, first, stop):
    """Two ranges of tokens of x (1, nh, T, hs), one behind the other."""
    return xp_of(x).concatenate((x[:, :, start:end], x[:, :, first:stop]), axis=2)
