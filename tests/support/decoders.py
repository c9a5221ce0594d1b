"""Give a decoder what arrives, as a channel does."""

from collections.abc import Callable, Iterator, Sequence

from miniray import wire
from miniray.decoding import Decoder


def feed(
    decoder: Decoder,
    data: bytes,
    sizes: Callable[[], int] = lambda: 1 << 30,
    descriptors: Sequence[int] = (),
) -> list[wire.Frame]:
    """Give a decoder all the data in pieces of the sizes asked for; return its frames."""
    return list(frames_of(decoder, data, sizes, descriptors))


def frames_of(
    decoder: Decoder,
    data: bytes,
    sizes: Callable[[], int] = lambda: 1 << 30,
    descriptors: Sequence[int] = (),
) -> Iterator[wire.Frame]:
    """Yield the frames as they are complete; of a large buffer the kernel fills what it has."""
    rest = memoryview(data)
    while rest:
        nbytes = min(sizes(), len(rest))
        if decoder.memory is not None:
            nbytes = min(nbytes, len(decoder.memory))
            decoder.memory[:nbytes] = rest[:nbytes]
            decoder.filled(nbytes)
        else:
            decoder.feed(bytes(rest[:nbytes]), descriptors)
            descriptors = ()
        rest = rest[nbytes:]
        while (frame := decoder.next_frame()) is not None:
            yield frame
