"""Lab bpe_merge: replace a pair of neighbours by a new token, from left to right."""

from tinygrad2.labs.lab import Lab, Wrong
from tinygrad2.tokenizers.bpe import train_merges

LAB = Lab(
    "bpe_merge", "tinygrad2/tokenizers/bpe.py", "one merge of byte pair encoding",
    "ids is a tuple of integers, pair is (left, right). Return a tuple in which each occurrence of the pair, from "
    "left to right, has become new_id. Occurrences do not overlap: a token is used once.",
    (
        "Go through the ids once, and build a new list.",
        "After a match the next token to look at comes two places later: (7, 7, 7) with the pair (7, 7) has one match.",
        "Two ways: an index i that moves on by 2 or by 1; or a list `merged` whose last element is replaced when it is "
        "`left` and the token is `right`. A match must not use new_id itself as `left`.",
    ),
)  # fmt: skip


def _right(ids, pair, new_id):
    merged, i = [], 0
    while i < len(ids):
        match = tuple(ids[i : i + 2]) == tuple(pair)
        merged.append(new_id if match else ids[i])
        i += 2 if match else 1
    return tuple(merged)


def _mistakes(ids, pair, new_id):
    """{what somebody has done: what comes out}"""
    ids = tuple(ids)
    first = next((i for i in range(len(ids) - 1) if ids[i : i + 2] == pair), None)
    matches = [i for i in range(len(ids) - 1) if ids[i : i + 2] == pair]
    once = ids if first is None else (*ids[:first], new_id, *ids[first + 2 :])
    backwards = _right(ids[::-1], pair[::-1], new_id)[::-1]
    kept = [new_id if i in matches else token for i, token in enumerate(ids)]
    both = tuple(new for i, new in enumerate(kept) if i in matches or i - 1 not in matches)
    greedy = []
    for token in ids:
        if greedy and greedy[-1] in (pair[0], new_id) and token == pair[1]:
            greedy[-1] = new_id
        else:
            greedy.append(token)
    removed = tuple(token for token in _right(ids, pair, None) if token is not None)
    left, i = [], 0
    while i < len(ids):
        left.append(new_id if ids[i] == pair[0] else ids[i])
        i += 2 if ids[i] == pair[0] else 1
    left = tuple(left)
    return {
        "nothing was replaced": ids,
        "the left token alone decides, and the right one is not compared": left,
        "each token of the pair is replaced alone": tuple(new_id if token in pair else token for token in ids),
        "only the first occurrence is replaced": once,
        "the matches are taken from the right; where they overlap, that is another result": backwards,
        "the right token of the pair stays": tuple(kept),
        "matches overlap: a token is used twice": both,
        "the last token is lost": _right(ids, pair, new_id)[:-1],
        "the loop ends one token early, and a pair at the end is not seen":
            _right(ids[:-1], pair, new_id) + ids[-1:] if ids else (),
        "the order of the pair does not matter, (right, left) is merged as well":
            tuple(_right(_right(ids, pair, new_id), pair[::-1], new_id)),
        "new_id itself is taken as the left token of the pair": tuple(greedy),
        "256 stands where new_id belongs": _right(ids, pair, 256),
        "the pair is removed, and no new token put in its place": removed,
    }  # fmt: skip


def _check(student, rng, ids, pair):
    new_id = int(rng.integers(256, 1000))
    ids, pair = tuple(map(int, ids)), tuple(map(int, pair))
    right, call = _right(ids, pair, new_id), f"merge_pair({ids}, {pair}, {new_id})"
    found = student.merge_pair(ids, pair, new_id)
    if not isinstance(found, (tuple, list)):
        raise Wrong(f"{call} returns {type(found).__name__} {str(found)[:60]}; it must be a tuple of integers")
    if tuple(found) == right:
        return
    reasons = [text for text, wrong in _mistakes(ids, pair, new_id).items() if wrong == tuple(found)]
    reason = f"\nthat is what one gets if {', or if '.join(reasons[:3])}" if reasons else ""
    raise Wrong(f"{call} is {tuple(found)}, not {right}{reason}")


def _draw(rng, n, alphabet=3):
    return rng.integers(0, alphabet, n), rng.integers(0, alphabet, 2)


@LAB.case(3, "pairs in the middle, at the start and at the end")
def _(student, rng):
    a, b, c = rng.permutation(50)[:3]
    _check(student, rng, (c, a, b, c), (a, b))
    _check(student, rng, (a, b, c, a, b), (a, b))
    _check(student, rng, (c, a, b), (a, b))


@LAB.case(2, "occurrences that would overlap")
def _(student, rng):
    a, b = rng.permutation(50)[:2]
    for n in (2, 3, 4, 5):
        _check(student, rng, (a,) * n, (a, a))
    _check(student, rng, (a, a, a, b, a, a), (a, a))


@LAB.case(2, "no occurrence, the pair in the other order, one token, no token")
def _(student, rng):
    a, b, c = rng.permutation(50)[:3]
    _check(student, rng, (a, c, b), (a, b))
    _check(student, rng, (b, a, c, b, a, a), (a, b))
    _check(student, rng, (a,), (a, b))
    _check(student, rng, (), (a, b))


@LAB.case(1, "200 random texts")
def _(student, rng):
    for _ in range(200):
        ids, pair = _draw(rng, int(rng.integers(0, 12)))
        _check(student, rng, ids, pair)


@LAB.case(2, "a training with it learns the right merges, so the result is a tuple")
def _(student, rng):
    lengths, counts = rng.integers(2, 9, 12).tolist(), rng.integers(1, 9, 12).tolist()
    words = {tuple(rng.integers(0, 4, n).tolist()): count for n, count in zip(lengths, counts)}
    kinds = {type(student.merge_pair(word, word[:2], 256)) for word in words}
    if kinds != {tuple}:
        raise Wrong("merge_pair must return a tuple: the words are keys of a dict, and a list cannot be one")
    found, right = student.train_merges_plain(words, 6), train_merges(words, 6)
    if found != right:
        raise Wrong(f"a training with this merge_pair learns {found}, not {right}")
