"""The machinery under the retrieval metrics: checks, relevance, scores and rankings, block by block of queries."""

from collections.abc import Iterator

import torch
from torch import Tensor


def check_k(k: int) -> None:
    """Refuse a cut-off that is not a whole number from 1."""
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"k is {k!r}, but must be a whole number from 1: the number of first places looked at.")


def row_blocks(num_rows: int, chunk_size: int) -> Iterator[slice]:
    """Slices of at most `chunk_size` rows that cover `num_rows`."""
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size!r}, but must be a whole number from 1: queries ranked at a time.")
    # At least one block, so that no queries give an empty result of the right type.
    for start in range(0, max(num_rows, 1), chunk_size):
        yield slice(start, start + chunk_size)


def working_dtype(device: torch.device) -> torch.dtype:
    """float64, except on MPS, which has none."""
    return torch.float32 if device.type == "mps" else torch.float64


def unit_length(**embeds: Tensor) -> list[Tensor]:
    """Check (N, D) embeddings that are to be compared and bring them to unit length in the working precision."""
    units = []
    for name, value in embeds.items():
        value = torch.as_tensor(value)
        if not value.is_floating_point():
            raise TypeError(
                f"{name} is {value.dtype}, but embeddings must be floating-point; convert with `.float()`."
            )
        if value.ndim != 2 or value.shape[1] == 0:
            raise ValueError(f"{name} has shape {tuple(value.shape)}, but must be (number of items, dimension).")
        if not torch.isfinite(value).all():
            raise ValueError(f"{name} holds NaN or infinity, which cannot be ranked; mend the embeddings first.")
        value = value.to(working_dtype(value.device))
        units.append(torch.nn.functional.normalize(value, dim=1))
    shapes = {name: tuple(unit.shape) for name, unit in zip(embeds, units, strict=True)}
    if len({shape[1] for shape in shapes.values()}) > 1:
        raise ValueError(f"Embeddings must have the same dimension to be compared, but the shapes are {shapes}.")
    devices = {name: str(unit.device) for name, unit in zip(embeds, units, strict=True)}
    if len(set(devices.values())) > 1:
        raise ValueError(f"Embeddings must be on one device, but they are on {devices}; move them with `.to(device)`.")
    return units


def check_integers(
    name: str, value: Tensor, length: int | None = None, device: torch.device | None = None, ndim: int = 1
) -> Tensor:
    """Check an integer tensor of `ndim` dimensions and `length` rows (None: any); give it as int64 on the device."""
    value = torch.as_tensor(value)
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name} is {value.dtype}, but must hold integers; convert with `.long()`.")
    if value.ndim != ndim or (length is not None and len(value) != length):
        rows = "any number of" if length is None else length
        raise ValueError(f"{name} has shape {tuple(value.shape)}, but must have {ndim} dimension(s) and {rows} rows.")
    return value.to(device=device, dtype=torch.int64)


def check_rows(name: str, indices: Tensor, lowest: int, num_gallery: int) -> None:
    """Refuse indices that are no row of the gallery (below `lowest`, or `num_gallery` and above)."""
    outside = indices[(indices < lowest) | (indices >= num_gallery)]
    if len(outside):
        raise ValueError(
            f"{name} holds {int(outside[0])}, but must be rows of the gallery: {lowest} to {num_gallery - 1}."
        )


def membership(subset_indices: Tensor, num_gallery: int) -> Tensor:
    """(C, S) gallery rows, -1 for none, to (C, G) True where the item is in the subset."""
    # The -1 entries land in one more column, which is cut off again.
    members = torch.zeros(len(subset_indices), num_gallery + 1, dtype=torch.bool, device=subset_indices.device)
    columns = subset_indices.where(subset_indices >= 0, num_gallery)
    return members.scatter_(1, columns, True)[:, :num_gallery]


class Exclusion:
    """Which gallery items are out of a query's ranking because they carry the query's own id."""

    def __init__(
        self,
        query_ids: Tensor | None,
        gallery_ids: Tensor | None,
        num_queries: int,
        num_gallery: int,
        device: torch.device,
    ) -> None:
        if (query_ids is None) != (gallery_ids is None):
            given, missing = ("gallery_ids", "query_ids") if query_ids is None else ("query_ids", "gallery_ids")
            raise ValueError(f"{given} is given without {missing}; give both to leave items out, or neither.")
        self.active = query_ids is not None
        if self.active:
            self.query_ids = check_integers("query_ids", query_ids, num_queries, device)
            self.gallery_ids = check_integers("gallery_ids", gallery_ids, num_gallery, device)

    def block(self, rows: slice) -> Tensor | None:
        """(C, G) True where an item is left out, or None where nothing is."""
        return self.query_ids[rows, None] == self.gallery_ids[None, :] if self.active else None


class Relevance:
    """Who is relevant to whom: checked once, asked block by block."""

    def __init__(
        self,
        query_labels: Tensor,
        gallery_labels: Tensor,
        query_ids: Tensor | None = None,
        gallery_ids: Tensor | None = None,
        sides: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """`sides`: the embeddings of query and gallery, whose lengths and device the labels must follow."""
        device = torch.as_tensor(query_labels).device if sides is None else sides[0].device
        lengths = (None, None) if sides is None else (len(sides[0]), len(sides[1]))
        self.query_labels = check_integers("query_labels", query_labels, lengths[0], device)
        self.gallery_labels = check_integers("gallery_labels", gallery_labels, lengths[1], device)
        for name, labels in (("query_labels", self.query_labels), ("gallery_labels", self.gallery_labels)):
            if (labels < 0).any():
                raise ValueError(
                    f"{name} holds {int((labels < 0).sum())} labels below 0, which mean 'no label', but every image "
                    "here must have one; leave the others out first: `keep = labels >= 0`, then `embeds[keep]` and "
                    "`labels[keep]`."
                )
        sizes = len(self.query_labels), len(self.gallery_labels)
        self.exclusion = Exclusion(query_ids, gallery_ids, *sizes, device)

    def block(self, rows: slice) -> tuple[Tensor, Tensor | None]:
        """(C, G) True where relevant and in the ranking; (C, G) True where left out, or None."""
        relevant = self.query_labels[rows, None] == self.gallery_labels[None, :]
        left_out = self.exclusion.block(rows)
        return (relevant, None) if left_out is None else (relevant & ~left_out, left_out)


def to_grid(cosines: Tensor) -> Tensor:
    """Cosines rounded to multiples of 2**-24, as float32: what differs by rounding errors alone becomes equal."""
    # float32 alone would not do: it keeps 1e-17, which is what some orthogonal vectors score, apart from 0.
    return ((cosines * 2**24).round() / 2**24).float()


def cosine_scores(query: Tensor, gallery: Tensor, left_out: Tensor | None) -> Tensor:
    """(C, G) cosines on the grid, float32; minus infinity where left out."""
    scores = to_grid(query @ gallery.T)
    return scores if left_out is None else scores.masked_fill(left_out, -torch.inf)


def place_of(scores: Tensor, indices: Tensor) -> Tensor:
    """(C,) place, from 1, of item indices[c] in row c: no sort needed."""
    own = scores.gather(1, indices[:, None])
    earlier = torch.arange(scores.shape[1], device=scores.device) < indices[:, None]
    return 1 + ((scores > own) | ((scores == own) & earlier)).sum(1)


def ranked_relevance(
    query_embeds: Tensor,
    gallery_embeds: Tensor,
    query_labels: Tensor,
    gallery_labels: Tensor,
    query_ids: Tensor | None,
    gallery_ids: Tensor | None,
    chunk_size: int,
) -> Iterator[Tensor]:
    """(C, G) relevance in ranking order, best first, block by block; items left out come last and are not relevant."""
    query, gallery = unit_length(query_embeds=query_embeds, gallery_embeds=gallery_embeds)
    relevance = Relevance(query_labels, gallery_labels, query_ids, gallery_ids, (query, gallery))
    for rows in row_blocks(len(query), chunk_size):
        relevant, left_out = relevance.block(rows)
        order = cosine_scores(query[rows], gallery, left_out).sort(dim=1, descending=True, stable=True).indices
        yield relevant.gather(1, order)
