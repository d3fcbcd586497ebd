"""Which ways of computing products a training on a GPU uses (--tune-products), and where measured ones are kept.

    ~/.cache/tinygrad2/products-01234567.json     {"for": {"gpu": name, "driver": number, "cublaslt": number},
                                                   "made": {kind of work: choice}} and a checksum

A file belongs to one GPU, driver and library (the number is their checksum); a choice: tinygrad2/gpu/choices.py.
Another choice may round differently, so the choices of a training are part of its checkpoints: a resumed training makes
the same ones, whatever has been measured since.
"""

import json
import os

from tinygrad2.errors import UserError
from tinygrad2.gpu.choices import Choices, is_made
from tinygrad2.io.files import crc32_text, make_folder, read_record, user_cache, write_record
from tinygrad2.training.report import print_field


class Tuning:
    """The choices of one start of a training.

    choices    the Choices, on every rank the same
    record     for the checkpoints: {"for": ..., "made": ...}, {} if there is nothing to choose

    Raises UserError for --tune-products yes where there is nothing to choose.
    """

    def __init__(self, config, chosen_for, begun, world):
        """A collective.

        config        the TrainConfig
        chosen_for    what choices on this rank are good for (ops.products_chosen_for); None if there are none
        begun         the record in the checkpoint with which a training is resumed, else {}
        """
        self.mode, self.world, self.path = config.tune_products, world, None
        self.choices, self.record = Choices(), {}
        first = None
        if config.device != "cpu":
            first = world.all_gather_object(chosen_for, "versions of cuBLASLt")[0]
        if first is None:
            if self.mode == "yes":
                raise UserError("--tune-products yes: cuBLASLt cannot be loaded here; use --tune-products auto")
            return
        self.path = os.path.join(user_cache(), f"products-{_number(first)}.json")
        made = world.broadcast_object(world.on_rank_0("reading the choices of products", self._made, first, begun))
        if chosen_for != first:                                   # another GPU than that of rank 0
            made = {}
        measures = self.mode == "yes" and world.size == 1         # several ranks would measure different ones
        self.choices = Choices(made, measures, self._keep if measures else None)
        self.record = {"for": first, "made": made}

    def describe(self):
        """One line for the user, "" if there is nothing to choose."""
        if self.path is None:
            return ""
        n = len(self.choices.made)
        known = f"{n} choices of algorithms that were measured before" if n else "cuBLASLt's first algorithms"
        if self.choices.measures:
            return f"{known}; others are measured when they are needed first, and kept in {self.path}"
        if self.mode == "yes":
            return f"{known}; nothing is measured with several ranks"
        return known if n or self.mode == "no" else f"{known} (--tune-products yes measures)"

    def _made(self, chosen_for, begun):
        if self.mode == "no":
            return {}
        begun = begun["made"] if begun.get("for") == chosen_for else None             # of another GPU: not used
        if begun is not None and self.mode == "auto":
            return dict(begun)
        return self._read(chosen_for, self.world.print) | (begun or {})

    def _read(self, chosen_for, note):
        """The choices in the file; none, and a line, if it is damaged."""
        if not os.path.exists(self.path):
            return {}
        record = read_record(self.path) or {}
        if record.get("for") == chosen_for and is_made(record.get("made")):
            return record["made"]
        note(f"note      {self.path} is damaged: it is not used; --tune-products yes measures again")
        return {}

    def _keep(self):
        """Add what has been measured to the file; another training may have added to it, too."""
        for_gpu, made = self.record["for"], self.choices.made
        try:
            make_folder(os.path.dirname(self.path))
            write_record(self.path, {"for": for_gpu, "made": self._read(for_gpu, str) | made})
        except UserError as error:
            self.choices.keep = None
            self.world.print(f"note      measurements of products are not kept: {error}")


def choose_products(config, chosen_for, state, world):
    """The Tuning of a training, reported; its RunState remembers it in the checkpoints. A collective."""
    tuning = Tuning(config, chosen_for, state.products, world)
    state.products = tuning.record
    if line := tuning.describe():
        print_field(world.print, "tuning", line)
    return tuning


def is_tuning_record(value):
    """Could this be Tuning.record, as it comes from a checkpoint?"""
    if value == {}:
        return True
    return isinstance(value, dict) and set(value) == {"for", "made"} and is_made(value["made"])


def _number(chosen_for):
    return crc32_text(json.dumps(chosen_for, sort_keys=True).encode()).removeprefix("crc32:")
