# %% [markdown]
# # 18 · The real GPT-2: load, same logits, perplexity
#
# Your GPT has the parts of GPT-2. If that is true, it must run with the weights that OpenAI released, and compute the
# same numbers. You read such a file yourself, check the logits, and measure how well a model predicts a text.
#
# ## Read
#
# A released model is a folder: `config.json` (sizes), `model.safetensors` (weights), and the tokenizer's files. A
# safetensors file is as simple as a file can be:
#
#     8 bytes     the length n of the header, a little-endian integer
#     n bytes     the header, JSON: for each tensor its name, dtype, shape, and where its bytes begin and end
#     the rest    the bytes of all tensors
#
# It contains no code. (The older `pytorch_model.bin` is a pickle, and to load a pickle is to run a program of
# whoever made it.) The project writes and reads these files in plain NumPy:

# %%
import contextlib
import io
import json
import math
import pathlib
import tempfile

import numpy as np

from learn import show, small
from models import GPT, GPTConfig
from models.pretrained import load_pretrained
from tinygrad2 import no_grad
from tinygrad2.commands.convert import main as convert
from tinygrad2.datasets.dataloader import DataLoader
from tinygrad2.datasets.token_files import TokenStream
from tinygrad2.evaluation.perplexity import perplexity
from tinygrad2.io.safetensors import make_header
from tinygrad2.io.weights import save_weights

plt = show.pyplot()
show.source(make_header)
show.source(load_pretrained)

# %% [markdown]
# ## Predict
#
# GPT-2's smallest model: 12 blocks, width 768, 50,257 tokens, 1,024 positions, the head tied to the embedding.
# **How many million parameters?** (A block has 12 C² in its matrices; the rest hardly counts, except two tables.)

# %%
my_guess = None

# %% [markdown]
# ## Run

# %%
show.guess(my_guess, GPTConfig.preset("gpt2").count_parameters() / 1e6, "million parameters")

# %% [markdown]
# The released files are half a gigabyte: `python data/gpt2/prepare.py` fetches them. Where they are missing, this
# lesson trains a small model and lets `python -m tinygrad2 convert` write it as such a folder, which
# Hugging Face's transformers would load as well. Everything below is the same for both.

# %%
temporary = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
is_gpt2 = (show.GPT2_FILES / "model.safetensors").exists()
original = None
if is_gpt2:
    folder, block_size = show.GPT2_FILES, 128
else:
    print("GPT-2's weights are not on this machine: a small model takes their place.")
    folder, block_size = pathlib.Path(temporary.name, "folder"), 32
    held_out = 6000                                               # tokens at the end, not for training
    original = small.gpt()
    batches = DataLoader(small.tokens()[:-held_out], 16, 32, order="shuffled", seed=1)
    small.train(original, 400, batches=batches)
    weights = pathlib.Path(temporary.name, "trained_weights.bin")
    arrays = {name: p.numpy() for name, p in original.named_parameters()}
    save_weights(str(weights), arrays, original.config.to_dict(), small.tokenizer().to_json(), {})
    with contextlib.redirect_stdout(io.StringIO()) as said:
        convert([str(weights), str(folder), "--to", "hf"])
    print(said.getvalue().replace(str(folder), "a folder").strip())

print("config.json says:", {name: value for name, value in json.loads((folder / "config.json").read_text()).items()
                            if name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")})  # fmt: skip
with open(folder / "model.safetensors", "rb") as file:
    header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
header.pop("__metadata__", None)
for name in list(header)[:5]:
    print(f"  {name:38} {header[name]['dtype']} {header[name]['shape']}")
print(f"  ... {len(header)} tensors")

# %% [markdown]
# ## Build
#
# Read one tensor out of such a file: `blob` is its content as bytes. `data_offsets` of a tensor counts from the end
# of the header. (`np.frombuffer(blob, "<f4", count, offset)` makes an array of float32.)

# %%
def my_tensor(blob, name):
    """The tensor of this name as an array of its shape; float32."""
    # your lines


# %%
blob = (folder / "model.safetensors").read_bytes()


def check_tensor(tensor):
    tiny = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                       "b": {"dtype": "F32", "shape": [2, 2], "data_offsets": [8, 24]}}).encode()  # fmt: skip
    tiny = len(tiny).to_bytes(8, "little") + tiny + np.arange(6, dtype="<f4").tobytes()
    assert tensor(tiny, "a").tolist() == [0, 1], "the first tensor begins right behind the header"
    assert tensor(tiny, "b").tolist() == [[2, 3], [4, 5]], "the second one begins where its data_offsets say"
    for name in list(header)[:3]:
        got = tensor(blob, name)
        assert list(got.shape) == header[name]["shape"], f"{name}: the shape is {got.shape}"
        assert np.isfinite(got).all()


show.exercise(my_tensor, check_tensor)

# %% tags=["answer"]
def tensor_answer(blob, name):
    n = int.from_bytes(blob[:8], "little")
    entry = json.loads(blob[8 : 8 + n])[name]
    begin, end = entry["data_offsets"]
    return np.frombuffer(blob, "<f4", (end - begin) // 4, 8 + n + begin).reshape(entry["shape"])


show.answer(tensor_answer, check_tensor)

# %% [markdown]
# ### The same logits
#
# Does the shipped model compute what these weights mean? Here is GPT-2 a second time, written from the paper in a
# few lines of NumPy: no code of the project in it, only the tensors of the file and the number of heads.

# %%
tensors = {name.removeprefix("transformer."): tensor_answer(blob, name).astype(np.float64) for name in header}


def layernorm(x, name):
    xhat = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return xhat * tensors[name + ".weight"] + tensors[name + ".bias"]


def linear(x, name):
    return x @ tensors[name + ".weight"] + tensors[name + ".bias"]


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attention(x, name, n_head):
    T, C = x.shape
    q, k, v = (a.reshape(T, n_head, -1).transpose(1, 0, 2) for a in np.split(linear(x, name + ".c_attn"), 3, -1))
    s = q @ k.transpose(0, 2, 1) / math.sqrt(C // n_head)         # (nh, T, T)
    s[:, np.triu(np.ones((T, T), bool), 1)] = -np.inf
    return linear((softmax(s) @ v).transpose(1, 0, 2).reshape(T, C), name + ".c_proj")


def mlp(x, name):
    u = linear(x, name + ".c_fc")
    u = 0.5 * u * (1 + np.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))
    return linear(u, name + ".c_proj")


def logits_by_hand(ids, n_layer, n_head):
    """Scores of the next token at every position, (T, V), in float64."""
    x = tensors["wte.weight"][ids] + tensors["wpe.weight"][: len(ids)]
    for i in range(n_layer):
        x = x + attention(layernorm(x, f"h.{i}.ln_1"), f"h.{i}.attn", n_head)
        x = x + mlp(layernorm(x, f"h.{i}.ln_2"), f"h.{i}.mlp")
    return layernorm(x, "ln_f") @ tensors["wte.weight"].T


model, tokenizer, _ = load_pretrained(str(folder), block_size)
sentence = "Once upon a time there was a little girl who lived in the forest."
ids = np.array(tokenizer.encode(sentence))
with no_grad():
    shipped = model(ids[None])[0].numpy()[0]
by_hand = logits_by_hand(ids, model.config.n_layer, model.config.n_head)
difference = show.relative_error(shipped, by_hand)
print(f"{len(ids)} tokens, {shipped.shape[1]:,} scores each; shipped and by hand differ by less than 1e-5: "
      f"{difference < 1e-5}")
assert difference < 1e-5
if original is not None:
    with no_grad():
        assert np.array_equal(original.eval()(ids[None])[0].numpy()[0], shipped)
    print("and the model that was written gives the same bits as the one that was read")

# %% [markdown]
# ### Perplexity
#
# How well does it predict a text that it has not seen? Sum the surprise of every token, divide by their number:
# that is the loss. **Perplexity** is e to the power of it: the number of equally likely tokens among which the
# model is, on average, undecided. It can only be compared between models with the same tokenizer. **Bits per byte**
# can always be compared: the same sum, per byte of text.
#
# One choice remains. A text is longer than the context, so a window slides over it, and the tokens at the beginning
# of a window see little. The shorter the steps of the window (*stride*), the more context each token has at least, and
# the more the measurement costs:

# %%
text_ids = np.array(tokenizer.encode(show.stories()[-2000:])) if is_gpt2 else small.tokens()[-1500:]
results = {}
for stride in (block_size, block_size // 2, block_size // 4, block_size // 8):
    results[stride] = perplexity(model, TokenStream.of(text_ids), tokenizer, stride).to_dict()
    print(f"stride {stride:3}: loss {results[stride]['loss']:.3f}, perplexity {results[stride]['perplexity']:6.2f}, "
          f"bits per byte {results[stride]['bits_per_byte']:.3f}")
assert results[block_size]["loss"] > results[block_size // 8]["loss"]
assert math.isclose(results[block_size]["perplexity"], math.exp(results[block_size]["loss"]))

# %% [markdown]
# The first step is the large one. Below half a context little changes, and a model as small as that of these lessons
# may even get slightly worse. So a perplexity without its stride and context means little. The project's command is
# `python -m tinygrad2 eval perplexity`, with the flag `--stride`.
#
# ## Break
#
# Somebody loads the same file without `config.json`: "all sizes are in the shapes of the tensors". Everything
# fits, nothing is missing, it even writes words. **Why is its loss higher than ours?**

# %%
def their_load():
    C, V = tensors["wte.weight"].shape[1], tensors["wte.weight"].shape[0]
    sizes = dict(n_embd=C, vocab_size=V, n_head=8, n_layer=sum(name.endswith("ln_1.weight") for name in tensors))
    theirs = GPT(GPTConfig(block_size=len(tensors["wpe.weight"]), **sizes))
    theirs.load_state_dict({name: array.astype(np.float32) for name, array in tensors.items() if name in shapes})
    return theirs.eval()


def surprise(m, ids):
    """-ln of the probability of each token but the first, (T - 1,)."""
    with no_grad():
        scores = m(ids[None])[0].numpy()[0].astype(np.float64)
    return -np.log(softmax(scores)[np.arange(len(ids) - 1), ids[1:]])


shapes = {name for name, _ in model.named_parameters()}
theirs = their_load()
rows = text_ids[: len(text_ids) // block_size * block_size].reshape(-1, block_size)[:10]
ours_loss, their_loss = (np.mean([surprise(m, row) for row in rows]) for m in (model, theirs))
print(f"loss: ours {ours_loss:.2f}, theirs {their_loss:.2f}")
assert their_loss > ours_loss + 0.05

# %% tags=["answer"]
print("heads: ours", model.config.n_head, "theirs", theirs.config.n_head)
with no_grad():
    print(f"logits differ by {show.relative_error(theirs(ids[None])[0].numpy()[0], by_hand):.0%} of the largest")

# %% [markdown]
# <details><summary>What is planted</summary>
#
# `n_head=8`. The number of heads is in no shape: `c_attn` is (C, 3C) for any number, it is only cut differently. The
# model with other heads has the same parameters, loads without an error, and computes something else. The same is
# true of the form of GELU, of the epsilon in layernorm, and of the order of q, k and v. A load without an error
# proves nothing; compare logits with an implementation that is known to be right. It takes one sentence.
#
# </details>
#
# ## Look
#
# Left: how surprised the model is by each token of one sentence, with the right number of heads and with the wrong one.
# The wrong one is worse on average over a text, see above, but not at every token, and in one sentence it may even look
# better: reading a little of what it writes would not have shown the mistake.
# Right: the perplexity of one text, measured with four strides.

# %%
ours_nats, their_nats = surprise(model, ids), surprise(theirs, ids)
names = [repr(tokenizer.decode([i]))[1:-1] for i in ids[1:].tolist()]
figure, (left, right) = plt.subplots(1, 2, figsize=(8.8, 4), gridspec_kw={"width_ratios": [1.7, 1]})
at = np.arange(len(names))
left.bar(at - 0.2, ours_nats, 0.4, label=f"{model.config.n_head} heads, as in config.json")
left.bar(at + 0.2, their_nats, 0.4, label="8 heads")
left.set_xticks(at, names, rotation=90, fontsize=8)
left.set(ylabel="surprise (nats)", title="GPT-2" if is_gpt2 else "a small model in GPT-2's place")
left.legend(fontsize=8)
right.plot(list(results), [r["perplexity"] for r in results.values()], "o-")
right.set_xscale("log", base=2)
right.set_xticks(list(results), [str(s) for s in results])
right.set(xlabel=f"stride (context: {block_size} tokens)", ylabel="perplexity", title="one text, four strides")
right.set_ylim(0, 1.1 * max(r["perplexity"] for r in results.values()))
plt.show()
temporary.cleanup()

# %% [markdown]
# **Next:** how such a model writes. Lesson 19.
