"""What the files next to a Hugging Face tokenizer change: its added tokens, prefix space, special tokens.

    tokenizer_config.json      the class, add_prefix_space, bos_token and the like, added_tokens_decoder
    special_tokens_map.json    bos_token and the like, in older folders
    added_tokens.json          {token: id}, in older folders
    config.json                the model type, which decides the class if tokenizer_config.json names none

`read_settings` reads them and `added_tokens` assigns ids as transformers 5 does, with its class: "GPT2Tokenizer" takes
vocabulary and merges and is otherwise GPT-2's; "PreTrainedTokenizerFast" takes tokenizer.json as it is. (Versions 4
and 5 agree on all settings that are accepted here. Where they do not, such as ids of added tokens that leave a gap, the
setting is refused.) What would add tokens to every text, or would need code, is refused as well: TokenizerError, one
line with the file, the field, its value and the remedy.
"""

import json
import os
from dataclasses import dataclass, field, replace
from typing import Any

from tinygrad2.errors import short
from tinygrad2.io.files import unique_names
from tinygrad2.tokenizers.added_tokens import FLAGS, AddedToken
from tinygrad2.tokenizers.tokenizer import END_OF_TEXT, TokenizerError, read_text

CONFIG, SPECIAL_MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
SETTINGS_FILES = (CONFIG, SPECIAL_MAP, ADDED)
AGAIN = "download or write the file again"
NO_ID = -1  # of an AddedToken that has none yet

_GPT2 = ("GPT2Tokenizer", "GPT2TokenizerFast")
_AS_FILE = ("PreTrainedTokenizerFast", "PreTrainedTokenizer", "TokenizersBackend")
_GPT2_MODELS = ("gpt2", "gpt_neo", "gptj", "codegen", "opt")  # whose class is GPT2Tokenizer
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_EXTRA, _OLDER_EXTRA = "extra_special_tokens", "additional_special_tokens"
_REFUSED = {  # settings that would change ids or texts, and the only value that does not
    "split_special_tokens": False, "auto_map": None, "fast_tokenizer_files": None, "init_inputs": [],
    "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": False,
    "vocab": None, "merges": None, "post_processor": None, "tokenizer_object": None,
}  # fmt: skip


@dataclass
class Settings:
    """The settings of a tokenizer's folder.

    source         the file to name in messages
    as_gpt2        does transformers read it with GPT2Tokenizer?
    is_named       is that written in a file? (then <|endoftext|> is added to a vocabulary without it)
    prefix_space   add_prefix_space; it counts for GPT2Tokenizer only
    named          {"bos_token": AddedToken or None, ...}: those that are given, without ids
    declared       {id: AddedToken}: those with an id in one of the files
    from_config    are these all that count, whatever tokenizer.json has?
    extra          more special tokens
    """

    source: str
    as_gpt2: bool
    is_named: bool = False
    prefix_space: bool = False
    named: dict[str, AddedToken | None] = field(default_factory=dict)
    declared: dict[int, AddedToken] = field(default_factory=dict)
    from_config: bool = False
    extra: list[AddedToken] = field(default_factory=list)


def parse_json(data, source):
    """The object in JSON bytes as a dict. Raises TokenizerError if it is invalid or has a name twice."""
    try:
        fields = json.loads(data.decode(), object_pairs_hook=unique_names)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{source}: is not valid JSON ({short(str(error))}); {AGAIN}") from None
    if not isinstance(fields, dict):
        raise TokenizerError(f"{source}: is {short(fields)}, not an object; {AGAIN}")
    return fields


def read_settings(folder, has_tokenizer_json):
    """The Settings of a folder. Without any such file: those of a tokenizer.json, or of GPT-2's pair, alone."""
    config, special_map, ids = (_read(folder, name) or {} for name in SETTINGS_FILES)
    source = os.path.join(folder, CONFIG)
    _refuse(config, source, has_tokenizer_json)
    as_gpt2, is_named = _is_gpt2(config, folder, not has_tokenizer_json)
    prefix_space = config.get("add_prefix_space") or False
    if type(prefix_space) is not bool:
        raise TokenizerError(f"{source}: add_prefix_space is {short(prefix_space)}; only true and false are supported")
    settings = Settings(source, as_gpt2, is_named, prefix_space)
    if "added_tokens_decoder" in config:
        settings.from_config = True
        settings.declared = _declared(config["added_tokens_decoder"], source)
        special_map, ids = {}, {}  # the older files no longer count
    source = os.path.join(folder, SPECIAL_MAP) if special_map else source
    named, extra = _special_tokens(config, special_map, source)
    for name, value in named.items():
        token = None if value is None else make_token(value, f"{source}: {name}", special=isinstance(value, str))
        settings.named[name] = token
    settings.extra = [make_token(value, f"{source}: additional_special_tokens") for value in extra]
    if ids:
        special = [named[name] for name in _NAMED if named.get(name)]
        special += extra if extra is not special_map.get(_OLDER_EXTRA) else []  # transformers sees those too late
        settings.declared = _from_added_json(ids, special, os.path.join(folder, ADDED))
    return settings


def _special_tokens(config, special_map, source):
    """({name: token or None}, list of more special tokens) as written in tokenizer_config.json and the older file."""
    named = {name: value for name, value in config.items() if name in _NAMED}
    for name, value in config.items():
        if name.endswith("_token") and isinstance(value, (str, dict)):  # such as image_token; add_bos_token is a bool
            named[name] = value
    extra, older = config.get(_EXTRA), config.get(_OLDER_EXTRA)
    if not extra and older is not None:
        extra, older = older, None
    if isinstance(extra, dict):  # {name: token}
        named, extra = named | extra, None
    for name, value in special_map.items():
        if name == _OLDER_EXTRA:
            older = value
        elif name == _EXTRA:
            extra = [*extra, *value] if isinstance(extra, list) and isinstance(value, list) else value
        elif name.endswith("_token"):
            named[name] = {"special": True, **value} if isinstance(value, dict) else value
    if isinstance(extra, dict):
        named, extra = named | extra, None
    extra = older if extra is None else extra
    if extra is not None and not isinstance(extra, list):
        raise TokenizerError(f"{source}: {_OLDER_EXTRA} is {short(extra)}, not a list; {AGAIN}")
    return named, extra or []


def _read(folder, name):
    path = os.path.join(folder, name)
    return parse_json(read_text(path).encode(), path) if os.path.isfile(path) else None


def _refuse(config, source, has_tokenizer_json):
    for name, harmless in _REFUSED.items():
        if config.get(name, harmless) not in (harmless, None):
            problem = f"{name} is {short(config[name])}"
            raise TokenizerError(f"{source}: {problem}; only tokenizers without it are supported")
    for name in ("add_bos_token", "add_eos_token"):
        if config.get(name) and not has_tokenizer_json:  # next to a tokenizer.json, transformers ignores it
            what = "after" if name == "add_eos_token" else "before"
            problem = f"{name} is {short(config[name])}, which puts a token {what} every text"
            remedy = f"set {name} to false there; inference.py --start-token yes puts one before the prompt"
            raise TokenizerError(f"{source}: {problem}; {remedy}")


def _is_gpt2(config, folder, is_pair):
    """(does transformers read the folder with GPT2Tokenizer?, does a file say so?)

    A tokenizer.json alone is taken as it is. Raises TokenizerError for other classes, which split texts in other ways.
    """
    path = os.path.join(folder, "config.json")
    model = _read(folder, "config.json") or {}
    chosen = config.get("tokenizer_class") or model.get("tokenizer_class")
    if chosen in _GPT2:
        return True, True
    if chosen in _AS_FILE:
        return is_pair, False
    if chosen is not None:
        known = f"{_GPT2[0]} and {_AS_FILE[0]}"
        source = os.path.join(folder, CONFIG) if config.get("tokenizer_class") else path
        raise TokenizerError(f"{source}: tokenizer_class is {short(chosen)}; only {known} are supported")
    model_type = model.get("model_type")
    if model_type is None:
        return is_pair, False
    if model_type not in _GPT2_MODELS:
        problem = f"model_type is {short(model_type)}, which has a tokenizer of its own"
        raise TokenizerError(f"{path}: {problem}; only GPT-2's is supported")
    return True, True


def has_chat_template(folder):
    """Is there a template for conversations among the files of a folder?"""
    if any(os.path.isfile(os.path.join(folder, name)) for name in ("chat_template.jinja", "chat_template.json")):
        return True
    try:
        return bool((_read(folder, CONFIG) or {}).get("chat_template"))
    except TokenizerError:  # reported where the tokenizer is read
        return False


# -- tokens ------------------------------------------------------------------------------------------------------------


def make_token(value, where, special=True, id=NO_ID):
    """The AddedToken of a name, or of an object with "content" and flags. Raises TokenizerError, naming `where`."""
    fields = {"content": value} if isinstance(value, str) else value
    content = fields.get("content") if isinstance(fields, dict) else None
    if not isinstance(content, str) or not content:
        raise TokenizerError(f"{where} is {short(value)}, not a token with 'content'; {AGAIN}")
    flags = {flag: fields[flag] for flag in FLAGS if flag in fields}
    for flag, state in flags.items():
        if type(state) is not bool:
            raise TokenizerError(f"{where}: {flag} is {short(state)}, not true or false; {AGAIN}")
    flags.setdefault("special", special)
    flags.setdefault("normalized", not flags["special"])
    return AddedToken(content, id, **flags)


def _declared(tokens, source):
    """{id: AddedToken} of added_tokens_decoder."""
    where = f"{source}: added_tokens_decoder"
    if not isinstance(tokens, dict):
        raise TokenizerError(f"{where} is {short(tokens)}, not an object; {AGAIN}")
    declared = {}
    for text, fields in tokens.items():
        if not text.isdecimal() or not isinstance(fields, dict):
            raise TokenizerError(f"{where} has {short(text)}: {short(fields)}, not an id and its token; {AGAIN}")
        declared[int(text)] = make_token(fields, f"{where}[{short(text)}]", special=False, id=int(text))
    return declared


def _from_added_json(ids, special, source):
    """{id: AddedToken} of added_tokens.json. Those among `special`, tokens as other files have them, are special."""
    special = {token if isinstance(token, str) else token["content"] for token in special if "__type" not in token}
    declared = {}
    for text, id in ids.items():
        if type(id) is not int or id < 0 or id in declared or not text:
            problem = f"has {short(id)} as id of {short(text)}, not a number of its own"
            raise TokenizerError(f"{source}: {problem}; {AGAIN}")
        declared[id] = AddedToken(text, id, text in special, normalized=text not in special)
    return declared


def added_tokens(vocab, in_file, settings, source):
    """(AddedTokens with their ids, text of the token that ends a text) of a tokenizer, as transformers assigns them.

    vocab      {token: id} of the model
    in_file    the AddedTokens of tokenizer.json, in its order

    A token of the vocabulary keeps its id; each other one gets the next id after the vocabulary. Raises TokenizerError
    if a file declares another id.
    """
    declared, named = dict(settings.declared), dict(settings.named)
    by_content = {token.content: token for token in declared.values()}
    if not settings.from_config:
        declared |= {token.id: token for token in in_file}
        by_content |= {token.content: token for token in in_file}
    if settings.as_gpt2 and (settings.is_named or END_OF_TEXT in vocab):
        for name in ("bos_token", "eos_token", "unk_token"):
            named.setdefault(name, AddedToken(END_OF_TEXT, NO_ID))
    for name in _NAMED:
        if named.get(name):
            named[name] = by_content.get(named[name].content, named[name])
    names = {token.content for token in named.values() if token}
    assigned = _Assigned(vocab, source)
    if not settings.as_gpt2:
        assigned.add(in_file)
    others = [replace(declared[id], special=declared[id].special or declared[id].content in names)
              for id in sorted(declared)]  # fmt: skip
    known = {*assigned.tokens, *(token.content for token in others)}
    order = [*(named.get(name) for name in _NAMED), *(token for name, token in named.items() if name not in _NAMED)]
    for token in (*order, *settings.extra):
        if token and token.content not in known:
            others.append(replace(token, special=True))
    assigned.add(others)
    end = named.get("eos_token")
    return assigned.result(end.content if end else END_OF_TEXT)


class _Assigned:
    """Added tokens with the ids that the tokenizers library assigns to them, in the order of their coming."""

    def __init__(self, vocab, source):
        self.vocab, self.source = vocab, source
        self.tokens: dict[str, Any] = {}  # {content: AddedToken with the id that was declared, or NO_ID}
        self.ids: dict[str, int] = {}
        self.unclear: set[str] = set()  # tokens both normalized and not, which is harmless if none gets in their way

    def add(self, tokens):
        """Assign ids. Raises TokenizerError for another id than the declared one, or other flags than before."""
        for token in tokens:
            content = token.content
            earlier = self.tokens.setdefault(content, token)
            if content not in self.ids:
                last = max([len(self.vocab) - 1, *self.ids.values()])
                self.ids[content] = self.vocab.get(content, last + 1)
            if token.id not in (NO_ID, self.ids[content]):
                problem = f"the added token {short(content)} has the id {token.id}"
                remedy = "give it that id, or add the tokens in between"
                raise TokenizerError(f"{self.source}: {problem}, transformers assigns {self.ids[content]}; {remedy}")
            if replace(earlier, id=token.id, normalized=token.normalized, special=token.special) != token:
                raise self._conflict(content)
            if token.normalized != earlier.normalized:
                self.unclear.add(content)
            if token.special and not earlier.special:
                self.tokens[content] = replace(earlier, special=True)

    def _conflict(self, content):
        problem = f"the added token {short(content)} is there twice, with other flags"
        return TokenizerError(f"{self.source}: {problem}; make the files of the folder agree")

    def result(self, end):
        """([AddedToken with its id], end). Raises TokenizerError if it is not clear which token is found first."""
        for content in self.unclear:
            others = [token for token in self.tokens.values() if token.content != content]
            if any(token.lstrip or token.rstrip or token.single_word for token in others):
                raise self._conflict(content)
            if any(_may_overlap(content, token.content) for token in others):
                raise self._conflict(content)
        tokens = [replace(token, id=self.ids[content]) for content, token in self.tokens.items()]
        if all(token.normalized for token in tokens):  # the order of the search only differs if some are not
            tokens = [replace(token, normalized=False) for token in tokens]
        # What ends a text is special whatever the file says: what strangers write should not end a document.
        return [replace(token, special=token.special or token.content == end) for token in tokens], end


def _may_overlap(a, b):
    """Can a and b both occur in a text, sharing characters?"""
    if a in b or b in a:
        return True
    return any(a.endswith(b[:n]) or b.endswith(a[:n]) for n in range(1, min(len(a), len(b))))
