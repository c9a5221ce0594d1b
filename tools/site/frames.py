"""Take frames of the real codec apart, byte by byte, for the frame inspector."""

import html
import json
import socket
from typing import Any

from miniray import wire as full
from stages.stage2_remote_worker import wire

KINDS = {1: "MESSAGE", 2: "ERROR", 3: "EXIT", 4: "AUTH"}

Field = dict[str, Any]  # name, start, stop, says


def make_vectors() -> list[dict[str, Any]]:
    """Return the frames that the site shows, each with its fields and with what reads return."""
    import torch

    error = {"type": "ValueError", "message": "no such batch: 7", "traceback": "..."}
    tensor = {"step": 3, "weights": torch.tensor([0.5, -1.0])}
    head, buffers = full.encode(full.MESSAGE, tensor)
    made: list[tuple[str, str, bytes, Any]] = [
        ("message", 'worker.send({"n": 12})', wire.encode(wire.MESSAGE, {"n": 12}), wire),
        ("goodbye", "leaving the with block", wire.encode(wire.EXIT, None), wire),
        ("error", "the work function raises", wire.encode(wire.ERROR, error), wire),
        (
            "tensor",
            'worker.send({"step": 3, "weights": torch.tensor([0.5, -1.0])})',
            head + b"".join(bytes(buffer.data) for buffer in buffers),
            full,
        ),
    ]
    return [
        {
            "name": name,
            "caption": caption,
            "hex": data.hex(),
            "fields": take_apart(data),
            "reads": [read_in_two(codec, data, cut) for cut in range(1, len(data))],
        }
        for name, caption, data, codec in made
    ]


def take_apart(data: bytes) -> list[Field]:
    """Return the fields of a frame's bytes."""
    kind = data[4]
    length = int.from_bytes(data[5:9], "big")
    raw = kind >= full.HAS_RAW_BYTES
    fields = [
        _field("magic", 0, 4, f"{data[:4].decode()}: this is MiniRay, in version 1 of the format"),
        _field(
            "kind", 4, 5, f"{kind}: {KINDS[kind % 128]}" + (", and raw bytes follow" if raw else "")
        ),
        _field("length", 5, 9, f"{length}: so many bytes of JSON come next"),
    ]
    text = data[9 : 9 + length].decode()
    fields.append(_field("header" if raw else "body", 9, 9 + length, text))
    at = 9 + length
    for spec in json.loads(text)["buffers"] if raw else []:
        says = f"{spec['dtype']} {spec['shape']}, as it lies in memory"
        fields.append(_field("buffer", at, at + spec["nbytes"], says))
        at += spec["nbytes"]
    if at != len(data):
        raise ValueError(f"{len(data) - at} bytes of the frame are in no field")
    return fields


def _field(name: str, start: int, stop: int, says: str) -> Field:
    return {"name": name, "start": start, "stop": stop, "says": says}


def read_in_two(codec: Any, data: bytes, cut: int) -> list[list[int]]:
    """Return [wanted, got] for each read of a real decoder that is sent the frame in two pieces."""
    decoder = codec.Decoder()
    reads = []
    ours, theirs = socket.socketpair()
    with ours, theirs:
        frame = None
        for piece in (data[:cut], data[cut:]):
            theirs.sendall(piece)
            there = len(piece)
            while there and frame is None:
                wanted = len(decoder.want)
                got = ours.recv_into(decoder.want)
                reads.append([wanted, got])
                frame = decoder.advance(got)
                there -= got
    if frame is None:
        raise ValueError("a whole frame, and nothing came of it")
    return reads


def as_html(vector: dict[str, Any]) -> str:
    """Return a frame as a picture that needs no script, and that the inspector brings to life."""
    data = bytes.fromhex(vector["hex"])
    rows = []
    for number, field in enumerate(vector["fields"]):
        inside = "".join(
            f'<span class="byte">{data[at]:02x}<small>{_character(data[at])}</small></span>'
            for at in range(field["start"], field["stop"])
        )
        rows.append(
            f'<div class="field" data-field="{number}" tabindex="0">'
            f'<div class="label"><b>{field["name"]}</b> '
            f"<span>{html.escape(field['says'])}</span></div>"
            f'<div class="bytes">{inside}</div></div>'
        )
    return (
        f'<figure class="frame-inspector" data-name="{vector["name"]}">'
        f"<figcaption><code>{html.escape(vector['caption'])}</code>, "
        f"{len(data)} bytes</figcaption>{''.join(rows)}</figure>\n"
    )


def _character(byte: int) -> str:
    return html.escape(chr(byte)) if 33 <= byte < 127 else "&#183;"
