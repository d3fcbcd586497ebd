"""Comparison with other programs: the same model there and here, value by value.

    python -m tinygrad2 verify hf MODEL                    logits, loss and greedy text of transformers
    python -m tinygrad2 verify llmc MODEL DEBUG_STATE      logits, loss and all gradients that llm.c's program wrote

MODEL may be in any format that inference.py reads. transformers (with PyTorch) runs in its own process, so none of
it is ever loaded here. All differences are printed. The tolerance in float32 is 1e-4 for logits up to 10 and in
proportion for larger ones, 1e-4 for the loss, and a thousandth of each tensor's largest gradient. (A model in bfloat16
is compared with the results of the float32 model, so its tolerance is a hundred times larger.)
"""

import importlib.util
import os
import subprocess
import sys
import tempfile

import numpy as np

import ops
from models.pretrained import config_of, load_pretrained
from tinygrad2.cli import explanation, refuse_empty_path
from tinygrad2.errors import UserError
from tinygrad2.interop import hf, llmc
from tinygrad2.interop.pretrained import open_model
from tinygrad2.system.temporary import temporary_folder
from tinygrad2.tensor import no_grad

TOLERANCE = 1e-4
_GREEDY = 20  # tokens

# The script of the other process. Arguments: folder, file of ids (B, T + 1), file for the results, number of new
# tokens, and how many tokens they follow.
_SCRIPT = """
import sys
import numpy, torch, transformers
transformers.utils.logging.disable_progress_bar()
folder, ids, out, new = sys.argv[1], torch.from_numpy(numpy.load(sys.argv[2])), sys.argv[3], int(sys.argv[4])
model, info = transformers.GPT2LMHeadModel.from_pretrained(folder, output_loading_info=True)
model = model.float().eval()
with torch.no_grad():
    logits = model(ids[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).double(), ids[:, 1:].flatten())
    text, greedy = ids[:1, :int(sys.argv[5])], []
    for _ in range(new):
        text = torch.cat([text, model(text).logits[:, -1:].argmax(-1)], 1)
        greedy.append(int(text[0, -1]))
numpy.savez(out, logits=logits.numpy(), loss=loss.numpy(), greedy=greedy, version=transformers.__version__,
            odd=[str(name) for kind in ("missing_keys", "unexpected_keys") for name in info[kind]])
"""


def main(what, argv):
    """Run `verify hf` or `verify llmc`; returns the exit code: 1 for a difference above its tolerance, else 0."""
    if any(flag in ("--help", "-h") for flag in argv):
        print(explanation(__doc__))
        return 0
    if "--threads" in argv:  # it has been read already
        i = argv.index("--threads")
        argv = argv[:i] + argv[i + 2 :]
    names = ["MODEL"] if what == "hf" else ["MODEL", "DEBUG_STATE"]
    if len(argv) != len(names) or any(word.startswith("-") for word in argv):
        raise UserError(f"verify {what} takes {' and '.join(names)}: python -m tinygrad2 verify {what} "
                        + " ".join(names))
    for name, path in zip(names, argv):
        refuse_empty_path(name, path)
    ops.announce_compiling(print)
    comparisons = verify_hf(*argv) if what == "hf" else verify_llmc(*argv)
    failed = total = 0
    for name, difference, allowed, count, text in comparisons:
        passed = count > 0 and difference <= allowed  # False for NaN
        failed += not passed
        total += 1
        found = f"max difference {difference:.2g} ({allowed:.1g} allowed)" if count else "nothing was compared"
        print(f"{name:28s} {'PASS' if passed else 'FAIL'}  {found}{': ' if text else ''}{text}", flush=True)
    return 1 if failed or not total else 0


def verify_hf(path):
    """Yields (name, difference, allowed, number of values compared, text) for logits, loss and greedy text."""
    for library in ("transformers", "torch"):
        if importlib.util.find_spec(library) is None:
            raise UserError(f"verify hf needs {library} to compare with: pip install torch transformers")
    model, _, pretrained = load_pretrained(path)
    model.config.require_gpt(path, "give a GPT")
    V, T = pretrained.config["vocab_size"], min(256, pretrained.config["block_size"])
    ids = np.random.default_rng(0).integers(0, V, (2, T + 1))  # the last of each row is a target only
    begin = max(1, min(4, T // 2))
    new = min(_GREEDY, pretrained.config["block_size"] - begin + 1)  # transformers has no position after these
    with temporary_folder(tempfile.gettempdir(), "verify") as folder:
        if pretrained.kind != "Hugging Face" or not os.path.isdir(path):
            path = os.path.join(folder, "model")
            hf.write_folder(path, pretrained.tensors, config_of(pretrained).to_dict())
        theirs = _run_transformers(path, ids, os.path.join(folder, "results.npz"), new, begin)
    if theirs["odd"].size:
        odd = ", ".join(theirs["odd"][:5])
        yield "tensors", np.inf, 0, theirs["odd"].size, f"transformers reports missing or unknown tensors: {odd}"
    with no_grad():
        logits = model(ids[:, :-1])[0].numpy()
    text = f"{2 * T:,} tokens, compared with transformers {theirs['version']}"
    yield "logits", _difference(logits, theirs["logits"]), _allowed(theirs["logits"]), logits.size, text
    with no_grad():
        loss = model.loss(ids[:, :-1], ids[:, 1:]).item()
    text = f"{loss:.6f} and {float(theirs['loss']):.6f}"
    yield "loss", abs(loss - float(theirs["loss"])), TOLERANCE, ids[:, 1:].size, text
    greedy = np.array(list(model.generate(ids[0, :begin].tolist(), new)))
    yield "greedy text", float(np.sum(greedy != theirs["greedy"])), 0, greedy.size, f"{new} token{'s' * (new > 1)}"


def _run_transformers(path, ids, out, new, begin):
    ids_file = out.replace(".npz", ".npy")
    np.save(ids_file, ids)
    command = [sys.executable, "-W", "ignore", "-c", _SCRIPT, path, ids_file, out, str(new), str(begin)]
    result = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    if result.returncode:
        lines = result.stderr.strip().splitlines() or ["no message"]
        raise UserError(f"{path}: transformers cannot load it or run it: {lines[-1]}")
    with np.load(out) as results:
        return dict(results)


def verify_llmc(path, debug_state):
    """Yields (name, difference, allowed, number of values compared, text) for logits, loss and each gradient."""
    model_config = config_of(open_model(path))
    model_config.require_gpt(path, "give a GPT")
    config = model_config.to_dict()
    llmc.check_supported(path, config)
    theirs = llmc.read_debug_state(debug_state, config)
    model, _, pretrained = load_pretrained(path)
    ours = llmc.compute_debug_state(model, theirs.x, theirs.y)
    factor = 100 if pretrained.tensors["wte.weight"].code == "BF16" else 1
    text = f"{theirs.x.shape[0]} x {theirs.x.shape[1]} tokens"
    yield "logits", _difference(ours.logits, theirs.logits), factor * _allowed(theirs.logits), theirs.logits.size, text
    loss = f"{ours.loss:.6f} and {theirs.loss:.6f}"
    yield "loss", abs(ours.loss - theirs.loss), factor * TOLERANCE, theirs.x.size, loss
    for name, grad in theirs.grads.items():
        if name not in ours.grads:  # a bias: llm.c always has them, this model does not
            continue
        largest = float(np.abs(grad).max(initial=0.0))
        difference = _difference(ours.grads[name], grad)
        yield f"d {name}", difference, factor * (1e-3 * largest + 1e-7), grad.size, f"the largest is {largest:.2g}"


def _difference(a, b):
    return float(np.abs(a - b).max(initial=0.0))


def _allowed(logits):
    return TOLERANCE * max(1.0, float(np.abs(logits).max()) / 10)
