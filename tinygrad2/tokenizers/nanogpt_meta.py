"""nanoGPT's meta.pkl: the characters that its prepare.py of shakespeare_char and the like made tokens of.

    vocab_size    the number of characters
    itos          {id: character}
    stoi          {character: id}

It is a pickle, whose program is run by pickle_machine.py, which calls nothing.

https://github.com/karpathy/nanoGPT/blob/master/data/shakespeare_char/prepare.py
"""

from tinygrad2.errors import short
from tinygrad2.io.files import CorruptFile
from tinygrad2.io.pickle_machine import UnknownNameInPickle, run_pickle
from tinygrad2.tokenizers.char import CharTokenizer
from tinygrad2.tokenizers.tokenizer import TokenizerError

META = "meta.pkl"  # its name, next to train.bin
_REMEDY = "write it again with nanoGPT's prepare.py"


def is_pickle(data):
    """Do these bytes begin as a pickle, as pickle.dump has written them since Python 3.0?"""
    return data[:1] == b"\x80" and data[1:2] in (b"\2", b"\3", b"\4", b"\5")


def read_meta(data, source):
    """The CharTokenizer of a meta.pkl, given its bytes. Nothing in it is executed.

    Raises TokenizerError, one line, for a pickle without such fields, or whose tokens are not characters.
    """
    try:
        meta = run_pickle(data)
    except UnknownNameInPickle as error:
        raise TokenizerError(f"{source}: asks to call {short(str(error))}, which is never done; {_REMEDY}") from None
    except CorruptFile as error:
        raise TokenizerError(f"{source}: cannot be read: {error}; {_REMEDY}") from None
    itos = meta.get("itos") if isinstance(meta, dict) else None
    itos = dict(enumerate(itos)) if isinstance(itos, (list, tuple)) else itos
    if not isinstance(itos, dict) or not itos:
        raise TokenizerError(f"{source}: has no 'itos', the character of each id; {_REMEDY}")
    size = meta.get("vocab_size", len(itos))
    if size != len(itos) or set(itos) != set(range(len(itos))):
        problem = f"vocab_size is {short(size)}, but 'itos' has {len(itos)} ids, which must be 0 to {len(itos) - 1}"
        raise TokenizerError(f"{source}: {problem}; {_REMEDY}")
    for id, character in itos.items():
        if not isinstance(character, str) or len(character) != 1:
            problem = f"token {id} is {short(character)}, not a character"
            raise TokenizerError(f"{source}: {problem}; only vocabularies of characters are supported")
    stoi = meta.get("stoi")
    if stoi is not None and stoi != {character: id for id, character in itos.items()}:
        raise TokenizerError(f"{source}: 'stoi' and 'itos' do not agree; {_REMEDY}")
    return CharTokenizer("".join(itos[id] for id in range(len(itos))), source, in_order=False)
