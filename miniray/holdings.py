"""Which memory a process holds for tensors, storage by storage, and what for.

Tensors that share memory count once, and what is let go counts no more from that moment. Nothing is
kept alive by being counted.
"""

import contextlib
import functools
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Its storages stay, and are emptied and filled again: they have to be asked.
GATHERED = "gathered"
# What is nothing else, as far as anybody knows.
ACTIVATIONS = "activations"
_MARK = "counted by miniray"


class Holdings:
    """The storages that are held, each for one purpose."""

    def __init__(self, *purposes: str) -> None:
        self._nbytes = dict.fromkeys(purposes, 0)
        # By the storage's id, which is its own as long as it lives.
        self._held: dict[int, tuple[weakref.ref[torch.UntypedStorage], str, int]] = {}
        self._gathered: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def nbytes(self) -> dict[str, int]:
        """Return the bytes that are held now, by purpose."""
        storages = [storage() for storage in list(self._gathered.values())]
        gathered = sum(storage.nbytes() for storage in storages if storage is not None)
        return self._nbytes | {GATHERED: gathered}

    def hold(self, purpose: str, value: Any) -> None:
        """Count every tensor in a value; what was held for another purpose now counts for this."""
        for storage in storages_of(value):
            key = id(storage)
            if key in self._held:
                if purpose in (ACTIVATIONS, self._held[key][1]):
                    continue
                self._let_go(key)
            nbytes = 0 if purpose == GATHERED else storage.nbytes()
            reference = weakref.ref(storage, functools.partial(self._let_go, key))
            self._held[key] = reference, purpose, nbytes
            self._nbytes[purpose] += nbytes
            if purpose == GATHERED:
                self._gathered[key] = reference

    def knows(self, value: Any) -> bool:
        """Return whether the memory of every tensor in a value is counted."""
        return all(id(storage) in self._held for storage in storages_of(value))

    def _let_go(self, key: int, _: Any = None) -> None:
        _, purpose, nbytes = self._held.pop(key)
        self._gathered.pop(key, None)
        self._nbytes[purpose] -= nbytes


def tensors_in(value: Any) -> "Iterator[torch.Tensor]":
    """Yield the tensors in a value of lists, tuples, dicts and tensors."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for one in value:
            yield from tensors_in(one)
    elif hasattr(value, "untyped_storage"):
        yield value


def storages_of(value: Any) -> "list[torch.UntypedStorage]":
    """Return the memory of each tensor in a value; of one that is sharded, of this rank's part."""
    import torch

    storages = []
    with torch.no_grad():
        for tensor in tensors_in(value):
            # A sparse one, or one of vmap's, has no such memory; a lazy one has none yet.
            with contextlib.suppress(NotImplementedError, ValueError):
                if not tensor.is_meta:
                    storages.append(local_part(tensor).untyped_storage())
    return storages


def local_part(tensor: Any) -> Any:
    """Return a tensor itself, or of one that is sharded (DTensor), this rank's shard."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def saved_for_backward(value: Any) -> "Iterator[torch.Tensor]":
    """Yield what autograd keeps to differentiate the tensors in a value, each for the first time.

    That is read, and not unpacked: whoever offloads or recomputes what is saved does not notice.
    """
    nodes: list[Any] = [one.grad_fn for one in tensors_in(value)]
    while nodes:
        node = nodes.pop()
        if node is None or _MARK in node.metadata:
            continue
        node.metadata[_MARK] = True
        nodes += [before for before, _ in node.next_functions]
        kind: Any = type(node)
        for name in _names_of_saved(kind):
            saved = getattr(node, name)
            for one in saved if isinstance(saved, (list, tuple)) else [saved]:
                yield from tensors_in(getattr(one, "data", None))


@functools.cache
def _names_of_saved(kind: type) -> list[str]:
    return [name for name in dir(kind) if name.startswith("_raw_saved_")]
