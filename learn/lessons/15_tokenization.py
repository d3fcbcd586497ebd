# %% [markdown]
# # 15 · Tokenization
#
# Why can a language model not spell, not reverse a word, stumble over arithmetic, and answer worse in other
# languages? Much of it is decided before the first matrix product: by how text becomes numbers. You take GPT-2's
# own tokenizer apart.
#
# ## Read
#
# A model reads integers. One per character makes texts long; one per word never knows every word. *Byte pair
# encoding* (BPE) lies in between and needs three steps:
#
# 1. **bytes**: a text in UTF-8 is a sequence of bytes, of which there are 256. Every text in every script can be
#    written with 256 tokens, so nothing is ever unknown;
# 2. **merges**: training counts neighbouring pairs in a large text, makes the most frequent one a new token, counts
#    again, and so on: 50,000 times for GPT-2. The list of merges, in this order, is the tokenizer;
# 3. **the split**: before any of that the text is cut into words *with the space in front of them*, numbers,
#    punctuation. Merges stay inside such a chunk.
#
# Encoding a chunk applies the merge that was **learned first** among those that fit, until none fits:

# %%
import numpy as np

from learn import show, small
from tinygrad2.tokenizers.bpe import apply_merges_plain, merge_pair, train_merges_plain
from tinygrad2.tokenizers.pretokenizer import PATTERN, SPLIT
from tinygrad2.tokenizers.tokenizer import chunk_to_ids

plt = show.pyplot()
show.source(train_merges_plain)
show.source(apply_merges_plain)
show.source(merge_pair)

# %% [markdown]
# This lesson wants GPT-2's real vocabulary: two files of 1.5 MB. `python data/gpt2/prepare.py --tokenizer-only`
# fetches them. Without them everything below runs with the small tokenizer of these lessons, and shows other
# pieces.
#
# ## Predict
#
# こんにちは is a Japanese greeting of 5 characters, each 3 bytes in UTF-8. **How many tokens is it for GPT-2?** ("
# Hello" is one.)

# %%
my_guess = None

# %% [markdown]
# ## Run

# %%
tokenizer, is_gpt2 = small.gpt2_tokenizer()
print(f"{tokenizer.n_vocab:,} tokens: 256 bytes, {tokenizer.n_vocab - 257:,} merges, <|endoftext|>")


def pieces(text):
    """The tokens of a text as strings; a piece of a character is shown as its bytes."""
    shown = []
    for i in tokenizer.encode(text):
        b = tokenizer.token_bytes(i)
        try:
            shown.append(b.decode())
        except UnicodeDecodeError:
            shown.append(b.hex(" "))
    return shown


greeting = tokenizer.encode("こんにちは")
show.guess(my_guess, len(greeting), "tokens of こんにちは")
print(pieces("こんにちは"))
assert tokenizer.decode(greeting) == "こんにちは" and len(greeting) <= 15

# %% [markdown]
# ### Bytes, merges, split
#
# First the split, then bytes, then one merge after the other:

# %%
print("pattern:", PATTERN)
print(SPLIT.findall("I'll pay 25 euros,  or so!"))
print("é is the bytes", list("é".encode()), "\n")


def steps(chunk):
    """Print the pieces of a chunk after each merge."""
    ids = chunk_to_ids(chunk)
    while True:
        print("  ", " | ".join(tokenizer.token_bytes(i).decode("utf-8", "replace") for i in ids))
        fits = [(tokenizer.merges[p], p) for p in zip(ids, ids[1:]) if p in tokenizer.merges]
        if not fits:
            return ids
        new, pair = min(fits)
        ids = merge_pair(ids, pair, new)


assert list(steps(" understanding")) == tokenizer.encode(" understanding")

# %% [markdown]
# ### Spelling and reversing
#
# The model never sees letters, only the number of a piece. The same word has different numbers at the beginning of
# a text, after a space, with a capital. To spell " strawberry" it must have learned, from texts, which letters that
# number stands for.

# %%
for word in ("strawberry", " strawberry", "Strawberry", "STRAWBERRY", " yrrebwarts"):
    print(f"{word!r:14} {pieces(word)} {tokenizer.encode(word)}")

# %% [markdown]
# Reversed, the word is made of other pieces; "reverse the letters" is a task of memory, not of moving things around.
#
# ### Arithmetic
#
# Numbers are cut wherever frequent digits happened to stand together. Column by column, as on paper, is not
# possible if the columns do not line up:

# %%
for number in ("127+677=804", "1275+6773=8048", "12756+67731=80487"):
    print(f"{number:20} {pieces(number)}")
lengths = np.array([len(tokenizer.encode(str(n))) for n in range(10_000)])
four_digits = lengths[1000:]
print(f"of the 9,000 numbers with four digits {np.mean(four_digits == 1):.0%} are one token, "
      f"{np.mean(four_digits == 2):.0%} two, {np.mean(four_digits > 2):.0%} more")

# %% [markdown]
# ### Other languages
#
# Merges were learned from mostly English text. The same sentence costs more tokens elsewhere, so the model sees
# less of the text at a time, learns fewer words per step, and a provider who counts tokens charges more.

# %%
sentences = {
    "English": "The girl went into the forest with her dog.",
    "German": "Das Mädchen ging mit seinem Hund in den Wald.",
    "Turkish": "Kız köpeğiyle birlikte ormana gitti.",
    "Greek": "Το κορίτσι πήγε στο δάσος με τον σκύλο του.",
    "Hindi": "लड़की अपने कुत्ते के साथ जंगल में गई।",
    "Japanese": "女の子は犬と一緒に森へ行きました。",
}
counts = {language: len(tokenizer.encode(text)) for language, text in sentences.items()}
for language, text in sentences.items():
    assert tokenizer.decode(tokenizer.encode(text)) == text
    print(f"{language:9} {len(text):3} characters, {len(text.encode()):3} bytes, {counts[language]:3} tokens")

# %% [markdown]
# ### The trailing space
#
# A prompt that ends with a space has a token for that space alone. In the training text a space is nearly always
# the beginning of the *next* token, " there", so after a lonely space the model is asked for something it has
# hardly ever seen. Do not end prompts with a space.

# %%
for prompt in ("Once upon a time", "Once upon a time ", "Once upon a time there"):
    print(f"{prompt!r:26} {pieces(prompt)}")
assert pieces("Once upon a time ")[-1] == " " and pieces("Once upon a time there")[-1] != " "

# %% [markdown]
# ### <|endoftext|>
#
# One token separates documents. It is a number that no text should produce by itself, or everybody who writes those
# characters into a chat could end a document. So `encode` treats it as ordinary text unless it is told otherwise:

# %%
print("ordinary:", pieces("<|endoftext|>"))
print("allowed: ", tokenizer.encode("<|endoftext|>", special="allowed"), "=", tokenizer.eot)
assert tokenizer.encode("<|endoftext|>", special="allowed") == [tokenizer.eot] != tokenizer.encode("<|endoftext|>")

# %% [markdown]
# ### Code, and a famous token
#
# GPT-2 has no tokens for several spaces, so indented code is expensive. And some tokens come from text that was
# used to train the *tokenizer* but hardly occurs in the text that trained the *model*: " SolidGoldMagikarp", a user
# name, is one token of GPT-2. Its embedding was hardly ever updated, and models answered strangely when they saw
# it.

# %%
print(pieces("    if x:\n        return y"))
print(pieces(" SolidGoldMagikarp"), tokenizer.encode(" SolidGoldMagikarp"))

# %% [markdown]
# ## Build
#
# Encode one chunk: `ids` is a tuple of byte tokens, `merges` maps a pair to the id that it becomes, smaller ids
# were learned earlier. Apply the merge that was learned **first** among those that fit, until none fits.
# (`merge_pair` replaces a pair everywhere.)
#
# The labs of this lesson, on the shipped source: `bpe_merge` and `bpe_train`
# (`python -m tinygrad2 lab start bpe_merge`).

# %%
def my_merges(ids, merges):
    """The tokens of a chunk, a tuple."""
    # your lines


# %%
def check_merges(apply_merges):
    twice = apply_merges((64, 65, 66, 64, 65), {(64, 65): 256, (256, 66): 257})
    assert tuple(twice) == (257, 256), f"a b c a b with the merges a b, then ab c: {twice}, should be (257, 256)"
    first = apply_merges((64, 65, 66), {(65, 66): 256, (64, 65): 257})
    assert tuple(first) == (64, 256), f"a b c: b c was learned before a b, so (64, 256), not {first}"
    for word in (" understanding", "strawberry", "é", "x", " 12345", " supercalifragilistic"):
        got, expected = tuple(apply_merges(chunk_to_ids(word), tokenizer.merges)), tuple(tokenizer.encode(word))
        assert got == expected, f"{word!r}: {got}, should be {expected}"


show.exercise(my_merges, check_merges)

# %% tags=["answer"]
def merges_answer(ids, merges):
    while True:
        fits = [(merges[pair], pair) for pair in zip(ids, ids[1:]) if pair in merges]
        if not fits:
            return tuple(ids)
        new, pair = min(fits)
        ids = merge_pair(ids, pair, new)


show.answer(merges_answer, check_merges)

# %% [markdown]
# ## Break
#
# An encoder that somebody wrote from memory. It decodes back to the text, always; its tokens are in the vocabulary,
# always; a model that gets them writes a little worse. **What does it do differently, and why does the round trip
# not find it?**

# %%
def their_merges(ids, merges):
    ids = list(ids)
    i = 0
    while i < len(ids) - 1:
        if (ids[i], ids[i + 1]) in merges:
            ids[i : i + 2] = [merges[ids[i], ids[i + 1]]]
            i = max(0, i - 1)
        else:
            i += 1
    return tuple(ids)


words = sorted(set(SPLIT.findall(show.stories(20_000))))
different = [w for w in words if their_merges(chunk_to_ids(w), tokenizer.merges) != tuple(tokenizer.encode(w))]
same_text = all(tokenizer.decode(their_merges(chunk_to_ids(w), tokenizer.merges)) == w for w in words)
print(f"decodes to the same text: {same_text}; other tokens for {len(different)} of {len(words)} words")
for word in different[:4]:
    theirs = [tokenizer.decode([i]) for i in their_merges(chunk_to_ids(word), tokenizer.merges)]
    print(f"  {word!r:12} right {pieces(word)}, theirs {theirs}")
assert same_text and different

# %% [markdown]
# <details><summary>What is planted</summary>
#
# It merges the *leftmost* pair that fits, not the one that was learned first. Any sequence of pieces whose bytes
# are the text decodes to it, so a round trip can never show which sequence is the right one. But a model was
# trained on one sequence only; the other one is, to it, an unusual spelling. Compare ids with a reference, never
# only texts.
#
# </details>
#
# ## Look
#
# Left: the price of one sentence in six languages. Right: each square is a number from 0 to 9999 (row: its first
# two digits, column: its last two); the colour is the number of its tokens. For GPT-2 years such as 1984 and 2001
# are one token: they occur often.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 4))
left.barh(list(counts)[::-1], list(counts.values())[::-1])
left.set_xlabel("tokens of 'The girl went into\nthe forest with her dog.'")
most = int(lengths.max())
colors = plt.get_cmap("viridis_r", most)
picture = right.imshow(lengths.reshape(100, 100), cmap=colors, vmin=0.5, vmax=most + 0.5)
bar = figure.colorbar(picture, ax=right, ticks=range(1, most + 1), shrink=0.8)
bar.set_label("tokens of the number")
right.set(xlabel="last two digits", ylabel="first two digits", title="the numbers 0 to 9999")
right.grid(False)
figure.suptitle("GPT-2's tokenizer" if is_gpt2 else "The small tokenizer of the lessons (GPT-2's is not here)")
plt.show()

# %% [markdown]
# **Next:** a loss per token depends on the tokenizer. Lesson 16: is my loss normal?
