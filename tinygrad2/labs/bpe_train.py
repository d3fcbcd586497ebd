"""Lab bpe_train: which pair is merged next, and when learning ends."""

from tinygrad2.labs.lab import Lab, Wrong
from tinygrad2.tokenizers.bpe import count_pairs, merge_pair, train_merges_plain

LAB = Lab(
    "bpe_train", "tinygrad2/tokenizers/bpe.py", "learning the merges of byte pair encoding",
    "chunk_counts is {tuple of ids: how often this word occurs}. Return a list of up to n_merges pairs, in the order "
    "in which they were learned: each time the pair that occurs most often (of several the smallest), which becomes "
    "token N_BYTES + (number of merges before) in all words. Stop when no pair occurs MIN_COUNT times. After each "
    "merge call progress(done, n_merges), if progress is given. count_pairs and merge_pair are above.",
    (
        "One round: count the pairs, choose one, replace it in every word, append it to the list.",
        "The most frequent, then the smallest: min(counts, key=lambda p: (-counts[p], p)), with default=None for words "
        "that have no pairs left.",
        "The first new id is N_BYTES, 256; the words of the next round are those in which the pair has been replaced: "
        "{merge_pair(word, pair, new_id): count for word, count in words.items()}.",
    ),
)  # fmt: skip


def _check(student, words, n_merges, call="the merges"):
    before = dict(words)
    found = student.train_merges_plain(words, n_merges)
    if words != before:
        raise Wrong("chunk_counts was changed: it is the caller's; work on a copy, dict(chunk_counts)")
    right = train_merges_plain(words, n_merges)
    if not isinstance(found, (list, tuple)):
        raise Wrong(f"{call}: {type(found).__name__} was returned; it must be a list of pairs")
    for i, pair in enumerate(found, 1):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise Wrong(f"{call}: merge {i} is {str(pair)[:60]}; it must be a pair of ids, (left, right)")
    found = [tuple(pair) for pair in found]
    if found == right:
        return
    k = next((k for k, (a, b) in enumerate(zip(found, right)) if a != b), min(len(found), len(right)))
    raise Wrong(f"{call}: {_explain(words, found, right, k, n_merges)}")


def _explain(words, found, right, k, n_merges):
    """What is wrong with merge number k, the first that differs."""
    for i, pair in enumerate(right[:k]):
        words = {merge_pair(word, pair, 256 + i): count for word, count in words.items()}
    counts, plain = count_pairs(words), count_pairs(dict.fromkeys(words, 1))
    if k >= len(found):
        more = counts[right[k]]
        return (f"it ends after {k} of {min(n_merges, len(right))} merges, although the pair {right[k]} still occurs "
                f"{more} times")  # fmt: skip
    pair = found[k]
    if k >= len(right):
        if k >= n_merges:
            return f"{len(found)} merge{'s were' if len(found) > 1 else ' was'} learned, n_merges is {n_merges}"
        return f"merge {k + 1} is {pair}, which occurs {counts[pair]} time(s): learning stops below MIN_COUNT = 2"
    start = f"merge {k + 1} is {pair} ({counts[pair]} times), not {right[k]} ({counts[right[k]]} times)"
    if counts[pair] == counts[right[k]]:
        return f"{start}: of equal counts the smaller pair comes first"
    if pair not in counts and k:
        return f"{start}: is the pair of merge {k} replaced in the words, by token {255 + k}, before the next count?"
    if plain[pair] == max(plain.values()):
        return f"{start}: a word that occurs n times counts n times"
    return start


def _draw(rng, n=14, alphabet=4):
    lengths, counts = rng.integers(2, 8, n).tolist(), rng.integers(1, 20, n).tolist()
    return {tuple(rng.integers(97, 97 + alphabet, m).tolist()): count for m, count in zip(lengths, counts)}


@LAB.case(3, "the first merge, and words that occur several times")
def _(student, rng):
    a, b, c = map(int, rng.permutation(200)[:3])
    _check(student, {(a, b): 3, (a, b, c): 2}, 1)
    _check(student, {(a, b): 1, (a, b, c): 1, (c, a): 9}, 1)


@LAB.case(3, "the merges after it, of random words")
def _(student, rng):
    _check(student, {(64, 65): 3, (64, 65, 66): 2}, 2)
    for _ in range(8):
        _check(student, _draw(rng), 8)


@LAB.case(1, "of pairs that occur equally often the smallest")
def _(student, rng):
    a, b, c, d = map(int, rng.permutation(200)[:4])
    _check(student, {(a, b): 4, (c, d): 4, (b, c): 4, (a, d): 4}, 4)


@LAB.case(2, "the end: a pair that occurs once, no words, n_merges = 0")
def _(student, rng):
    a, b, c = map(int, rng.permutation(200)[:3])
    _check(student, {(a, b): 2, (b, c): 1}, 10)
    _check(student, {(a,): 5}, 3)
    _check(student, {}, 3)
    _check(student, _draw(rng), 0)


@LAB.case(1, "progress is called after each merge")
def _(student, rng):
    words, calls = _draw(rng), []
    merges = student.train_merges_plain(words, 4, lambda *numbers: calls.append(numbers))
    if not isinstance(merges, (list, tuple)):
        raise Wrong(f"{type(merges).__name__} was returned; it must be a list of pairs")
    right = [(i + 1, 4) for i in range(len(merges))]
    if calls != right:
        raise Wrong(f"progress was called with {calls}, not with {right}")
