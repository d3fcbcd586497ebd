"""python -m tinygrad2 replay DUMP: compute again the rows for which a training met a value that is not finite.

DUMP is the folder that the stopped training has named. With --debug the Python debugger opens where the value was
computed: `u` and `d` walk through the calls, `p x.min()` inspects what is there.
"""

import pdb
import sys

import numpy as np

from models.dropout import set_dropout
from models.families import config_from_dict, make_model
from tinygrad2.cli import Parser, PathAction, summary
from tinygrad2.dispatch import kernels
from tinygrad2.errors import UserError
from tinygrad2.flat_buffers import FlatBuffers
from tinygrad2.function import observe
from tinygrad2.monitor.dump import read_dump
from tinygrad2.monitor.nonfinite import NonFinite, NonFiniteObserver, describe, ranges
from tinygrad2.precision import matmul_precision


def main(argv):
    parser = Parser(prog="tinygrad2 replay", description=summary(__doc__))
    parser.add_argument("dump", action=PathAction, role="input", metavar="DUMP",
                        help="folder nonfinite_step_... of a run")  # fmt: skip
    parser.add_argument("--debug", action="store_true", help="open the debugger where it was computed (default: no)")
    args = parser.parse_args(argv)

    dump, weights, x, y = read_dump(args.dump)
    try:
        model = make_model(config_from_dict(weights.config, source=args.dump), recompute=dump["recompute"])
        model.load_state_dict(weights.tensors)
        FlatBuffers(model).freeze(dump["frozen"])
    except ValueError as error:
        raise UserError(f"{args.dump}: {error}") from None
    print(f"dump      step {dump['step']}: loss {dump.get('loss')}, gradient norm {dump.get('grad_norm')}; "
          f"{len(x)} row(s) from {dump['first_row']} on")
    print(f"then      {describe(dump['finding'])}")
    try:
        with (
            kernels(dump["kernels"]),
            matmul_precision(dump["matmul_precision"]),
            observe(NonFiniteObserver(model)) as observer,
            np.errstate(all="ignore"),
        ):
            observer.check_parameters(model)
            set_dropout(model, dump["seed"], dump["step"] - 1, dump["first_row"])
            loss = model.loss(x, y)
            loss.backward()
    except NonFinite as error:
        print(f"now       {error}")
        for line in ranges(error.finding):
            print(f"    {line}")
        same = error.finding == dump["finding"]
        print("the same as then" if same else "not the same as then (another machine, other libraries?)")
        if args.debug:
            pdb.post_mortem(sys.exc_info()[2])
        return 0 if same else 1
    except (IndexError, ValueError) as error:  # for example ids beyond the vocabulary
        raise UserError(f"{args.dump}: cannot be computed again: {error}") from None
    print(f"now       all values are finite, the loss of these rows is {loss.item():.6f}: the cause was not in "
          "the weights and the batch")
    return 1
