"""Take frames of the real codec apart, byte by byte, for the frame inspector."""

import html
import json
import socket
from typing import Any

from miniray import wire as full
from miniray.decoding import Decoder
from stages.stage1_uds_worker import wire as first
from stages.stage2_remote_worker import wire

KINDS = {1: "MESSAGE", 2: "ERROR", 3: "EXIT", 4: "AUTH"}

Field = dict[str, Any]  # name, start, stop, says


def make_vectors() -> list[dict[str, Any]]:
    """Return the frames that the site shows, each with its fields and with what reads return."""
    import torch

    error = {"type": "ValueError", "message": "no such batch: 7", "traceback": "..."}
    tensor = {"step": 3, "weights": torch.tensor([0.5, -1.0])}
    encoded = full.encode(full.MESSAGE, tensor)
    made: list[tuple[str, str, bytes, Any]] = [
        ("stage1", 'worker.send({"n": 12})', first.encode(first.MESSAGE, {"n": 12}), first),
        ("message", 'worker.send({"n": 12})', wire.encode(wire.MESSAGE, {"n": 12}), wire),
        ("goodbye", "leaving the with block", wire.encode(wire.EXIT, None), wire),
        ("error", "the work function raises", wire.encode(wire.ERROR, error), wire),
        (
            "tensor",
            'worker.send({"step": 3, "weights": torch.tensor([0.5, -1.0])})',
            encoded.head + b"".join(map(bytes, encoded.parts)),
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
    """Return the fields of a frame's bytes; those of stage 1 have no magic in front."""
    fields = []
    if data.startswith(full.MAGIC):
        says = f"{full.MAGIC.decode()}: this is MiniRay, in version 1 of the format"
        fields.append(_field("magic", 0, len(full.MAGIC), says))
    at = len(full.MAGIC) if fields else 0
    kind, length = data[at], int.from_bytes(data[at + 1 : at + 5], "big")
    raw = kind >= full.HAS_RAW_BYTES
    more = ", and raw bytes follow" if raw else ""
    fields.append(_field("kind", at, at + 1, f"{kind}: {KINDS[kind % full.HAS_RAW_BYTES]}{more}"))
    says = f"{length}: so many bytes of JSON come next"
    fields.append(_field("length", at + 1, at + 5, says))
    text = data[at + 5 : at + 5 + length].decode()
    fields.append(_field("header" if raw else "body", at + 5, at + 5 + length, text))
    at += 5 + length
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
    makers: dict[Any, Any] = {first: Stage1Decoder, wire: wire.Decoder, full: PackageDecoder}
    decoder = makers[codec]()
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


class PackageDecoder:
    """What the package needs at each step; its channels receive ahead, up to 64 KiB."""

    def __init__(self) -> None:
        self._decoder = Decoder()
        self.want = bytearray(self._decoder.missing)

    def advance(self, nbytes: int) -> Any:
        """Count bytes as received; return the frame once all have come."""
        self._decoder.feed(bytes(self.want[:nbytes]))
        frame = self._decoder.next_frame()
        self.want = bytearray(self._decoder.missing)
        return frame


class Stage1Decoder:
    """What stage 1 reads: as many bytes as a prelude has, then as many as that says."""

    def __init__(self) -> None:
        self.part = bytearray(first.PRELUDE.size)
        self.want, self.length = memoryview(self.part), 0

    def advance(self, nbytes: int) -> Any:
        """Count bytes as received; return the body once all have come."""
        self.want = self.want[nbytes:]
        if self.want:
            return None
        if self.length:
            return json.loads(self.part)
        self.length = first.decode_prelude(self.part)[1]
        self.part = bytearray(self.length)
        self.want = memoryview(self.part)
        return None


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
