"""python -m tinygrad2 lm_eval ...: tasks of lm-evaluation-harness with a model of tinygrad2 (pip install lm_eval).

    python -m tinygrad2 lm_eval --tasks hellaswag --model_args pretrained=trained_weights.bin
    python -m tinygrad2 lm_eval --tasks lambada_openai,piqa --model_args pretrained=data/gpt2/gpt2,batch_tokens=4096
    python -m tinygrad2 lm_eval ls tasks
    python -m tinygrad2 lm_eval run --help                   the harness's own flags

This is the harness's own command, with a model "tinygrad2" registered and preset (--model tinygrad2). --model_args may
have:

    pretrained      what train_gpt2.py has written, or a third-party model (default: trained_weights.bin)
    tokenizer       its tokenizer, for weights that do not include one
    block_size      crop the context to this many tokens
    batch_tokens    tokens per pass through the model, for likelihoods (default: 2048)
    batch_size      number of texts that are generated in parallel (default: 8)
    max_gen_toks    maximum tokens to generate, unless the task sets it (default: 256)
    seed            fixes the draws, if a task samples (default: 1337)

The default device is the CPU; --threads N, for BLAS and kernels, is tinygrad2's own flag. From Python:

    from tinygrad2.commands.lm_eval import TinygradLM
    lm_eval.simple_evaluate(model=TinygradLM(pretrained="trained_weights.bin"), tasks=["hellaswag"])

After register() the harness knows it by name: simple_evaluate(model="tinygrad2", model_args="pretrained=...").
"""

import math
import sys
from collections import defaultdict

from models.pretrained import load_pretrained
from models.sampling import Sampling
from models.text_generation import stream_texts
from tinygrad2.backend import array_module
from tinygrad2.cli import explanation, refuse_empty_path
from tinygrad2.errors import UserError
from tinygrad2.evaluation.scoring import BATCH_TOKENS, score_long
from tinygrad2.monitor.progress import Meter
from tinygrad2.system.streams import print_error
from tinygrad2.system.threads import plan_threads

_PORTION = 64  # requests between two progress reports; the choices of a question are usually in one portion
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # synonyms
_KNOBS = ("top_k", "top_p", "min_p", "repetition_penalty")
_IGNORED = {"max_batch_size", "trust_remote_code"}  # meant for other models of the harness
_MODEL = "tinygrad2"
_PATHS = ("--output_path", "-o", "--include_path", "--use_cache", "-c")  # of the harness


class Adapter:
    """A GPT that answers the harness's three kinds of requests, each an object with `args`; results in their order.

    `TinygradLM` is this class and the harness's LM in one. Arguments: see the top of this file. Raises UserError, one
    line, for what cannot be used.
    """

    def __init__(self, pretrained="trained_weights.bin", tokenizer=None, block_size=None, batch_tokens=BATCH_TOKENS,
                 batch_size=None, max_gen_toks=256, seed=1337, device=None, threads=None, **more):  # fmt: skip
        super().__init__()
        for name, path in (("pretrained", pretrained), ("tokenizer", tokenizer)):
            if path is not None:
                refuse_empty_path(f"model_args: {name}", str(path))
        unknown = sorted(set(more) - _IGNORED)
        if unknown:
            raise UserError(f"model_args: {unknown[0]!r} is not known; see python -m tinygrad2 lm_eval --help")
        if threads is not None:
            plan_threads(_count("threads", threads))
        device = str(device or "cpu").split(":")[0]
        array_module(device)
        block_size = None if block_size is None else _count("block_size", block_size)
        self.model, self.tokenizer, opened = load_pretrained(str(pretrained), block_size, device, str(tokenizer or ""))
        for note in opened.notes:
            print_error(f"note      {note}")
        if self.tokenizer is None:
            raise UserError(f"{pretrained}: its tokenizer is not known; pass it as tokenizer=FILE in --model_args")
        self.batch_tokens, self.seed = _count("batch_tokens", batch_tokens), _count("seed", seed, 0)
        several = str(batch_size).isdecimal() and int(batch_size) > 1      # 1 is the harness's default
        self.batch_size, self.max_gen_toks = int(batch_size) if several else 8, _count("max_gen_toks", max_gen_toks)

    @property
    def eot_token_id(self):
        """The id of the end-of-text token. Raises UserError if the tokenizer has none."""
        if self.tokenizer.eot is None:
            raise UserError("this model's tokenizer has no end-of-text token: a text without context cannot be scored")
        return self.tokenizer.eot

    @property
    def max_length(self):
        """The model's context, in tokens."""
        return self.model.config.block_size

    def get_model_info(self):
        """What the harness records with its results."""
        return {"model_num_parameters": self.model.count_parameters(), "model_dtype": "float32"}

    def tok_encode(self, text, **_):
        """The ids of a text; <|endoftext|> in it is the end-of-text token, as in GPT-2's own tokenizer."""
        return self.tokenizer.encode(text, "allowed")

    def loglikelihood(self, requests, disable_tqdm=False):
        """(ln p of the continuation, is every token of it the most likely?) of each (context, continuation)."""
        pairs = [self.encode_pair(*request.args) for request in requests]
        scores = self._score("loglikelihood", requests, pairs, disable_tqdm)
        return [(math.fsum(logprobs), bool(greedy.all())) for logprobs, greedy in scores]

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        """ln p of each (text,), the first token given the end-of-text token. If a text is longer than the context,
        windows score it that do not overlap, except the last, which begins earlier to be as long as the others."""
        pairs = [([self.eot_token_id], self.tok_encode(*request.args)) for request in requests]
        return [math.fsum(logprobs) for logprobs, _ in self._score("rolling", requests, pairs, disable_tqdm)]

    def encode_pair(self, context, continuation):
        """(ids of the context, at least one; ids of the continuation). The two are encoded as one text; white space
        between them counts to the continuation."""
        spaces = len(context) - len(context.rstrip())
        context, continuation = context[: len(context) - spaces], context[len(context) - spaces :] + continuation
        ids, context_ids = self.tok_encode(context + continuation), self.tok_encode(context)
        if context_ids:
            return context_ids, ids[len(context_ids) :]
        if ids and ids[0] == self.eot_token_id:
            return ids[:1], ids[1:]
        return [self.eot_token_id], ids

    def _score(self, what, requests, pairs, quiet):
        """(ln p, most likely?) of each continuation's tokens. A context that is too long loses its beginning."""
        live, scores = Meter(what, len(requests), "requests", stream=sys.stderr), []
        for i in range(0, len(pairs), _PORTION):
            portion = pairs[i : i + _PORTION]
            rows = [context + continuation for context, continuation in portion]
            begins = [len(context) for context, _ in portion]
            scores += score_long(self.model, rows, begins, self.batch_tokens)
            if not quiet:
                live.add(len(portion))
        live.close()
        return scores

    def generate_until(self, requests, disable_tqdm=False):
        """The text that follows each (context, gen_kwargs), up to one of gen_kwargs["until"] or the end of the text.

        A context that leaves no room for max_gen_toks loses its beginning. Raises UserError for gen_kwargs that are not
        known.
        """
        groups, texts = defaultdict(list), [""] * len(requests)
        for number, request in enumerate(requests):
            groups[repr(_parse_gen_kwargs(request.args[1], self.max_gen_toks))].append(number)
        live = Meter("generate_until", len(requests), "requests", stream=sys.stderr)
        for numbers in groups.values():
            stops, length, sampling = _parse_gen_kwargs(requests[numbers[0]].args[1], self.max_gen_toks)
            prompts = [self._encode_prompt(requests[n].args[0], length) for n in numbers]
            for piece in stream_texts(
                self.model, self.tokenizer, prompts, length, sampling=sampling, seed=self.seed, samples=numbers,
                end=self.tokenizer.eot, stops=stops, batch_size=self.batch_size,
            ):  # fmt: skip
                texts[numbers[piece.index]] += piece.text
                if piece.finish_reason and not disable_tqdm:
                    live.add(1)
        live.close()
        return texts

    def _encode_prompt(self, context, length):
        """The last ids of a context, so that `length` tokens more fit into the model's context."""
        room = self.max_length - length
        window = room if room > 0 else self.max_length            # no room at all: the generator's window slides
        return (self.tok_encode(context) or [self.eot_token_id])[-window:]


def _parse_gen_kwargs(gen_kwargs, max_gen_toks):
    """(stop strings, length, Sampling) of a request's gen_kwargs, by the harness's rules: decoding is greedy if
    do_sample is false, and if neither do_sample nor temperature is given."""
    gen_kwargs = dict(gen_kwargs)
    stops = gen_kwargs.pop("until", None) or []
    stops = list(stops) if isinstance(stops, (list, tuple)) else [stops]
    lengths = [gen_kwargs.pop(name, None) for name in _LENGTHS]
    length = next((int(n) for n in lengths if n is not None), max_gen_toks)
    draws = gen_kwargs.pop("do_sample", None)
    temperature = float(gen_kwargs.pop("temperature", 1 if draws else 0))
    knobs = {name: gen_kwargs.pop(name) for name in _KNOBS if name in gen_kwargs}
    if gen_kwargs:
        raise UserError(f"gen_kwargs: {sorted(gen_kwargs)[0]!r} is not known; there are until, do_sample, temperature, "
                        f"{', '.join(_KNOBS)}, max_gen_toks")
    return stops, length, Sampling(0.0 if draws is False else temperature, **knobs)


def _count(name, value, least=1):
    if not str(value).isdecimal() or int(value) < least:
        raise UserError(f"model_args: {name} must be an integer of at least {least}, not {value!r}")
    return int(value)


def register():
    """Register the model with the harness as "tinygrad2"; returns its class.

    Raises UserError, with the command that installs it, if the harness is missing.
    """
    global _CLASS
    if _CLASS is None:
        try:
            # First: the harness registers its own models only while none is registered.
            import lm_eval.models  # noqa: F401
            from lm_eval.api.model import LM
            from lm_eval.api.registry import register_model
        except ImportError as error:
            raise UserError(f"lm-evaluation-harness cannot be imported ({error}): pip install lm_eval") from None
        kind = type("TinygradLM", (Adapter, LM), {"__module__": __name__, "__doc__": Adapter.__doc__})
        _CLASS = register_model(_MODEL)(kind)
    return _CLASS


_CLASS = None


def __getattr__(name):
    """TinygradLM, created on first use: its base class comes from the harness, which may be missing."""
    if name == "TinygradLM":
        return register()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def main(argv):
    if argv in ([], ["--help"], ["-h"]):
        print(explanation(__doc__))
        return 0
    for i, word in enumerate(argv):
        name, is_one_word, value = word.partition("=")
        if name in _PATHS:
            refuse_empty_path(name, value if is_one_word else "".join(argv[i + 1 : i + 2]))
    register()
    from lm_eval.__main__ import cli_evaluate

    argv = _without_threads(argv) or ["--help"]
    if argv[0] == "run" or argv[0].startswith("-"):
        flags = {word.split("=")[0] for word in argv}
        argv += [] if flags & {"--help", "-h", "--config", "-C", "--model", "-M"} else ["--model", _MODEL]
        argv += [] if flags & {"--help", "-h", "--config", "-C", "--device"} else ["--device", "cpu"]
    before, sys.argv = sys.argv, ["lm_eval", *argv]
    try:
        cli_evaluate()
    finally:
        sys.argv = before
    return 0


def _without_threads(argv):
    """The command line without tinygrad2's own flag, which python -m tinygrad2 has read already."""
    kept, skip = [], False
    for word in argv:
        if not skip and not word.startswith("--threads"):
            kept.append(word)
        skip = word == "--threads"
    return kept
