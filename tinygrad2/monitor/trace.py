"""Traces in Chrome's format, which https://ui.perfetto.dev and chrome://tracing show: who did what, when.

One process per rank, one track per thread. In forward, spans nest as the modules do: step, phase, layer, op, part. In
backward the layers are put around the ops that belong to them.
"""

import gzip
import json
import zlib

from tinygrad2.io.files import atomic_write, first_bytes

_PROGRAM = "tinygrad2 profile"  # how a trace of ours is recognized


def rank_events(recording, rank, host, offset=0.0):
    """The events of one rank, a list of dicts. `offset`: seconds by which its clock is ahead of rank 0's."""
    names = recording.thread_names()
    tracks = {thread: i for i, thread in enumerate(names)}
    events = [_named("process_name", rank, 0, f"rank {rank} on {host}"), _named("process_sort_index", rank, 0, rank)]
    for i, name in enumerate(names.values()):
        events += [_named("thread_name", rank, i, name), _named("thread_sort_index", rank, i, i)]

    def add(thread, name, kind, begin, end, **about):
        events.append({"ph": "X", "pid": rank, "tid": tracks[thread], "name": name, "cat": kind,
                       "ts": 1e6 * (begin - offset), "dur": 1e6 * (end - begin), "args": about})  # fmt: skip

    for span in [*recording.spans, *_layers_of_backward(recording.spans)]:
        if span.kind != "op":
            add(span.thread, span.name, span.kind, span.begin, span.end)
            continue
        about = {"layer": span.layer}
        if span.flops:
            about |= {"GFLOP": span.flops / 1e9, "GFLOP/s": span.flops / 1e9 / span.own_seconds}
        if span.bytes:
            about |= {"MB at least": span.bytes / 1e6}
        name = span.name if span.phase == "forward" else f"{span.name} ({span.phase})"
        add(span.thread, name, span.phase, span.begin, span.end, **about)
    for thread, name, begin, end in recording.parts:
        add(thread, name, "part", begin, end)
    for when, size in recording.memory:
        events.append({"ph": "C", "pid": rank, "tid": 0, "name": "resident memory", "ts": 1e6 * (when - offset),
                       "args": {"MB": size / 1e6}})  # fmt: skip
    return events


def _named(what, rank, thread, value):
    key = "sort_index" if what.endswith("sort_index") else "name"
    return {"ph": "M", "pid": rank, "tid": thread, "name": what, "args": {key: value}}


class _Layer:
    """A layer in backward, from its first op to its last."""

    kind = "layer"

    def __init__(self, name, first):
        self.name, self.thread, self.begin, self.end = name, first.thread, first.begin, first.end


def _layers_of_backward(spans):
    """Layers around the ops that follow each other in a backward pass: h.3 around h.3.mlp around its ops."""
    names = {span.name for span in spans if span.kind == "layer"}
    layers, open_layers, parent = [], [], None
    for span in spans:
        if span.kind != "op" or span.phase != "backward":
            continue
        parts = span.layer.split(".")
        path = [name for name in (".".join(parts[: i + 1]) for i in range(len(parts))) if name in names]
        common = 0
        if span.parent is parent:
            while common < min(len(path), len(open_layers)) and open_layers[common].name == path[common]:
                open_layers[common].end = span.end
                common += 1
        open_layers = open_layers[:common] + [_Layer(name, span) for name in path[common:]]
        layers += open_layers[common:]
        parent = span.parent
    return layers


def write_trace(path, events, about):
    """Write a trace; compressed if the name ends in .gz. Times start at 0. about: {name: value} for its metadata."""
    about = {"program": _PROGRAM, **about}
    start = min(event["ts"] for event in events if "ts" in event)
    for event in events:
        if "ts" in event:
            event["ts"] = round(event["ts"] - start, 3)
        if "dur" in event:
            event["dur"] = round(event["dur"], 3)
    text = json.dumps({"displayTimeUnit": "ms", "otherData": about, "traceEvents": events}).encode()
    with atomic_write(path) as file:
        file.write(gzip.compress(text) if path.endswith(".gz") else text)


def is_trace(path):
    """Is this file a trace that write_trace has written?"""
    head = first_bytes(path, 1000)
    if head.startswith(b"\x1f\x8b"):
        try:
            head = zlib.decompressobj(wbits=31).decompress(head, 1000)
        except zlib.error:
            return False
    return head.startswith(b"{") and f'"otherData": {{"program": "{_PROGRAM}"'.encode() in head
