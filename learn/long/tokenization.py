# %% [markdown]
# # Tokenization
#
# How text becomes numbers, and why so much of what language models are bad at begins there. Made of lesson 15, with
# the training of a tokenizer added at the end; the exercise is in the lesson, and the labs `bpe_merge` and `bpe_train`
# (`python -m tinygrad2 lab list`) let you write the shipped functions.

# %% [markdown] tags=["include", "15_tokenization", "Read", "Predict", "Run", "Break", "Look"]

# %% [markdown]
# ## Train one
#
# The merges come from counting. On the first 30,000 characters of the stories, the first ones that are learned are the
# commonest pairs, soon whole words:

# %%
import collections

from learn import show
from tinygrad2 import Tokenizer
from tinygrad2.tokenizers.bpe import train_merges_plain
from tinygrad2.tokenizers.pretokenizer import SPLIT
from tinygrad2.tokenizers.tokenizer import chunk_to_ids

plt = show.pyplot()
text = show.stories(30_000)
sizes = [257, 300, 400, 512, 768, 1024, 1536]
trained = {V: Tokenizer.train(text, V) for V in sizes}
largest = trained[sizes[-1]]
for first in (256, 300, 512, 1000):
    print(f"tokens {first:4} ...", [largest.decode([i]) for i in range(first, first + 8)])

# %% [markdown]
# A larger vocabulary makes a text shorter, so a context of 1,024 tokens reaches further back and each step of a
# training sees more text. The price: a row of the embedding for every token, and fewer examples of each. Compare the
# text that the tokenizer has learned from with one that it has not seen:

# %%
other = show.stories()[-30_000:]
recipes = (show.ROOT / "data" / "dummy_data2.txt").read_text(encoding="utf-8")[:30_000]
texts = {"the text it was trained on": text, "other stories": other, "recipes": recipes}
per_token = {name: [len(t) / len(trained[V].encode(t)) for V in sizes] for name, t in texts.items()}
plt.figure()
for name, values in per_token.items():
    plt.plot(sizes, values, "o-", label=name)
plt.xlabel("size of the vocabulary")
plt.ylabel("characters per token")
plt.ylim(0, None)
plt.title("What a larger vocabulary buys")
plt.legend(fontsize=8)
plt.show()
assert per_token["recipes"][-1] < per_token["the text it was trained on"][-1]

# %% [markdown]
# The shipped training keeps track of which chunks a merge touches, and counts only those again. It learns the same
# merges as the plain function that was quoted at the beginning, which is the one to read:

# %%
few = text[:3000]
fast = list(Tokenizer.train(few, 300).merges)
plain = train_merges_plain({chunk_to_ids(c): n for c, n in collections.Counter(SPLIT.findall(few)).items()}, len(fast))
print(f"{len(fast)} merges; the same in the same order: {fast == plain}")
assert fast == plain
