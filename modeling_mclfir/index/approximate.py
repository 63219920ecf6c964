# SPDX-License-Identifier: Apache-2.0
"""FAISS's own indices by factory string: built from stored vectors, memory-mapped, moved to a GPU, searched."""

from collections.abc import Sequence
from pathlib import Path

import faiss
import numpy as np

from .exact import Found, search_blocks, search_rows
from .rows import take_rows

Blocks = Sequence[tuple[int, np.ndarray]]
_ADDED_ROWS = 65_536
_TRAINING_ROWS = 2_000_000
# Where few rows may be found, looking at each of them is both quicker and exact.
_FEW_ROWS, _FEW_SHARE = 5000, 0.02
_DROPPED = 16
_GPU_K = 2048
_KEPT_SELECTORS = 8


def is_flat(factory: str) -> bool:
    """Whether a factory string means exact search, which needs no index."""
    return factory.strip().lower() == "flat"


def check_factory(factory: str, dim: int) -> None:
    """ValueError where FAISS knows no such index of `dim` dimensions."""
    _make(factory, dim)


def check_device(device: str) -> None:
    """ValueError: neither cpu nor gpu; RuntimeError: a GPU is asked for, but FAISS sees none."""
    if device not in ("cpu", "gpu"):
        raise ValueError(f"device must be 'cpu' or 'gpu'; got {device!r}.")
    if device == "gpu" and not (hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0):
        raise RuntimeError(
            "device='gpu', but this FAISS sees no GPU. Take device='cpu', or install faiss-gpu-cu12 in place of "
            "faiss-cpu on a machine with a CUDA GPU."
        )


def build(factory: str, blocks: Blocks, dim: int) -> faiss.Index:
    """
    Train an index on stored vectors and add all of them, in the order of rows.

    Raises:
        ValueError: the factory is none, or needs more vectors to learn from than there are.
    """
    index = _make(factory, dim)
    num_rows = blocks[-1][0] + len(blocks[-1][1]) if blocks else 0
    if not index.is_trained:
        step = max(1, -(-num_rows // _TRAINING_ROWS))
        sample = (
            blocks[0][1] if len(blocks) == 1 and step == 1 else take_rows(blocks, np.arange(0, num_rows, step), dim)
        )
        try:
            index.train(sample)
        except RuntimeError as error:
            raise ValueError(
                f"{factory!r} can't be built from {num_rows} entries: {_reason(error)}. Add more entries first, or "
                "take a factory with fewer lists or codes, or 'Flat'."
            ) from None
    for _, vectors in blocks:
        for first in range(0, len(vectors), _ADDED_ROWS):
            index.add(vectors[first : first + _ADDED_ROWS])
    return index


def gives_inner_products(index: faiss.Index, blocks: Blocks, dim: int) -> bool:
    """Whether an index's scores are the inner products, seen from some of its rows; compressed vectors' are not."""
    rows = np.linspace(0, index.ntotal - 1, min(16, index.ntotal)).astype(np.int64)
    queries = take_rows(blocks, rows, dim)
    scores, found = index.search(queries, 4)
    query, place = np.nonzero(found >= 0)
    exact = np.einsum("nd,nd->n", queries[query], take_rows(blocks, found[query, place], dim))
    return bool(np.allclose(scores[query, place], exact, rtol=1e-4, atol=1e-5))


def write(index: faiss.Index, file) -> None:
    """Write an index to an open file."""
    writer = faiss.PyCallbackIOWriter(file.write)
    faiss.write_index(index, writer)


def read(path: Path, mmap: bool) -> faiss.Index:
    """Read an index; memory-mapped, parts of it are read when a search asks for them."""
    flags = (faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_READ_ONLY) if mmap and hasattr(faiss, "IO_FLAG_MMAP_IFC") else 0
    try:
        return faiss.read_index(str(path), flags)
    except RuntimeError as error:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not there (any more).") from None
        if flags:  # not every kind of index can be mapped
            return read(path, mmap=False)
        raise ValueError(f"{path} is no index that this FAISS can read: {_reason(error)}.") from None


class ApproximateIndex:
    """
    A FAISS index of the first rows of a store.

    Args:
        index: its place n is row n.
        exact: whether its scores are inner products.
        device: cpu or gpu; on a GPU up to 2048 results, and filters only on the CPU, exactly.
        ef_search, nprobe: width of an HNSW search, lists of an IVF search; None: FAISS's own.
        rescore: of compressed vectors, so many times k are looked for and scored again with the stored ones. 0: never.
    """

    def __init__(self, index, exact: bool, device: str, ef_search: int | None, nprobe: int | None, rescore: int):
        self.num_rows = index.ntotal
        self.exact, self._rescore = exact, rescore
        self._ef_search, self._nprobe = ef_search, nprobe
        self._gpu = device == "gpu"
        self._index = index
        if self._gpu:
            self._resources = faiss.StandardGpuResources()
            self._index = faiss.index_cpu_to_gpu(self._resources, 0, index)
        elif isinstance(refined := faiss.downcast_index(index), faiss.IndexRefine):
            refined.k_factor = max(refined.k_factor, rescore)  # FAISS's own is 1: only the order
        self._plain = self._parameters(None)
        self._selectors: list = []

    def on_cpu(self) -> faiss.Index:
        """The index itself, as it can be written."""
        return faiss.index_gpu_to_cpu(self._index) if self._gpu else self._index

    def search(self, queries: np.ndarray, k: int, blocks: Blocks, allowed: np.ndarray | None) -> Found:
        """
        As `search_blocks`, of the index's rows alone: good ones rather than the best. There are never fewer than k of
        them where k are allowed: queries for which the index finds fewer are searched exactly.
        """
        if blocks and blocks[-1][0] + len(blocks[-1][1]) > self.num_rows:
            blocks = [(start, vectors[: self.num_rows - start]) for start, vectors in blocks if start < self.num_rows]
        part = None if allowed is None else allowed[: self.num_rows]
        kept = self.num_rows if part is None else int(np.count_nonzero(part))
        dropped, k = self.num_rows - kept, min(k, kept)
        if not k:
            return Found(len(queries), k)
        if dropped > _DROPPED and kept <= max(_FEW_ROWS, _FEW_SHARE * self.num_rows):
            return search_rows(queries, k, blocks, np.flatnonzero(part))
        if self._gpu and (dropped > _DROPPED or self._wanted(k, dropped) > _GPU_K):
            return search_blocks(queries, k, blocks, part)
        found = self._candidates(queries, k, blocks, allowed, dropped)
        missing = () if found.is_full else np.flatnonzero(found.counts() < k)
        if len(missing):
            again = search_blocks(np.ascontiguousarray(queries[missing]), k, blocks, part)
            found.scores[missing], found.rows[missing] = again.scores, again.rows
        return found

    def _wanted(self, k: int, dropped: int) -> int:
        factor = max(1, self._rescore) if not self.exact else 1
        return min(k * factor + min(dropped, _DROPPED), self.num_rows)

    def _candidates(self, queries, k, blocks, allowed, dropped) -> Found:
        wanted = self._wanted(k, dropped)
        part = None if allowed is None else allowed[: self.num_rows]
        selector = None
        if dropped > _DROPPED:
            selector = self._selector(allowed)
        share = 1 - dropped / self.num_rows
        parameters = self._plain if selector is None else self._parameters(selector, wanted / share)
        try:
            scores, rows = self._index.search(queries, wanted, params=parameters)
        except RuntimeError:
            if selector is None:
                raise
            return search_blocks(queries, k, blocks, part)  # some kinds know no selector
        if dropped and selector is None:
            rows = np.where(allowed[rows], rows, -1)
        if not self.exact and self._rescore:
            scores = _inner_products(queries, rows, blocks)
        found = Found(len(queries), k)
        if rows.shape[1] < k:  # never, unless fewer rows than k are left; keeps shapes alike
            rows = np.pad(rows, ((0, 0), (0, k - rows.shape[1])), constant_values=-1)
            scores = np.pad(scores, ((0, 0), (0, k - scores.shape[1])))
        found.add(scores, rows)
        return found

    def _selector(self, allowed: np.ndarray):
        """Of a mask; those of the last masks, which `Rows` keeps too, are kept."""
        for mask, selector in self._selectors:
            if mask is allowed:
                return selector
        selector = faiss.IDSelectorBitmap(np.packbits(allowed[: self.num_rows], bitorder="little"))
        self._selectors = [*self._selectors[-_KEPT_SELECTORS:], (allowed, selector)]
        return selector

    def _parameters(self, selector, width: float = 0):
        """Settings of a search; `width`: how far to look where a selector drops much of what is found."""
        if self._gpu:
            return faiss.SearchParametersIVF(nprobe=self._nprobe) if self._nprobe else None
        if selector is None and self._nprobe is None and self._ef_search is None:
            return None
        return _parameters_of(self._index, self._ef_search, self._nprobe, selector, int(width))


def _parameters_of(index, ef_search: int | None, nprobe: int | None, selector, width: int):
    """Settings of an index; of several layers (a transform before, a refinement behind) those of each."""

    def inner(layer):
        return _parameters_of(layer, ef_search, nprobe, selector, width)

    index = faiss.downcast_index(index)
    selected = {} if selector is None else {"sel": selector}
    if isinstance(index, faiss.IndexPreTransform):
        return faiss.SearchParametersPreTransform(index_params=inner(index.index))
    if isinstance(index, faiss.IndexRefine):
        layers = {"base_index_params": inner(index.base_index)}
        return faiss.IndexRefineSearchParameters(k_factor=index.k_factor, **layers, **selected)
    if isinstance(index, faiss.IndexIVF):
        return faiss.SearchParametersIVF(nprobe=nprobe or index.nprobe, **selected)
    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(efSearch=max(ef_search or index.hnsw.efSearch, width), **selected)
    return faiss.SearchParameters(**selected) if selected else None


def _inner_products(queries: np.ndarray, rows: np.ndarray, blocks: Blocks) -> np.ndarray:
    """Of each query with its own rows, (N, m); -inf of row -1."""
    best = np.full(rows.shape, -np.inf, dtype=np.float32)
    for start, vectors in blocks:
        # FAISS skips places below 0, or gives them -inf.
        places = np.where((rows >= start) & (rows < start + len(vectors)), rows - start, -1)
        scores = np.full_like(best, -np.inf)
        pointers = (faiss.swig_ptr(array) for array in (scores, queries, vectors, places))
        faiss.fvec_inner_products_by_idx(*pointers, queries.shape[1], *rows.shape)
        np.maximum(best, scores, out=best)
    return best


def _make(factory: str, dim: int) -> faiss.Index:
    try:
        return faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ValueError(
            f"FAISS knows no index {factory!r} of {dim} dimensions: {_reason(error)}. Examples: 'Flat', 'HNSW32', "
            "'IVF256,PQ16'."
        ) from None


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].split(" failed: ")[-1].strip().rstrip(".")
