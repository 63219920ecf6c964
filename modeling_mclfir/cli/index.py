# SPDX-License-Identifier: Apache-2.0
"""`mclfir index VERB …`: a shop's catalogue, embedded once and searched while the model learns on."""

import argparse
import json
import sys

from .index_flags import backend_of, fill_settings, filter_of, source_of
from .index_parser import parser
from .index_tables import info_text, search_text

_MODULE = "modeling_mclfir.cli.index"
_MOST_NAMED = 5
_FILLING = ("build", "add", "backfill", "reindex")


def main(arguments: list[str]) -> None:
    """
    Run one verb.

    Raises:
        FileNotFoundError: no catalogue, checkpoint, source or photo.
        ConnectionError: a Milvus server that does not answer.
        ValueError: what the verbs of `Catalogue` raise; a package that is to be installed first.
    """
    args = parser().parse_args(arguments)
    if args.verb in _FILLING and _start_all(arguments):
        return
    try:
        _RUNS[args.verb](args)
    except ImportError as error:
        if "pip install" not in str(error):
            raise
        raise ValueError(str(error)) from error


def _start_all(arguments: list[str]) -> bool:
    """Start the processes that `accelerate launch --cpu` promised and did not start; it ends with them."""
    from ..training.launch import processes_asked_for, start_all

    num_processes = processes_asked_for()
    if num_processes > 1:
        start_all("-m", [_MODULE, *arguments], num_processes)
    return num_processes > 1


def _build(args: argparse.Namespace) -> None:
    from ..catalogue import Catalogue
    from ..catalogue.checkpoint_folder import check_folder

    # Before anything is written.
    backend, source, fill = backend_of(args), source_of(args), fill_settings(args)
    source.check_not_empty()
    check_folder(args.checkpoint)
    with Catalogue.create(args.index, backend, args.token) as catalogue:
        report = catalogue.build(args.checkpoint, source, args.attributes, fp16=args.fp16, fill=fill)
        _tell_filled(catalogue, report)


def _add(args: argparse.Namespace) -> None:
    with _opened(args) as catalogue:
        report = catalogue.add(
            source_of(args),
            args.checkpoint,
            keep_present=args.keep_present,
            fp16=args.fp16,
            fill=fill_settings(args),
        )
        _tell_filled(catalogue, report)


def _remove(args: argparse.Namespace) -> None:
    if not args.ids and args.ids_file is None:
        raise ValueError("Name what goes: --ids A B, or --ids_file FILE of one id a line.")
    with _opened(args) as catalogue:
        count, some = 0, []

        def unknown(ids: list[str]) -> None:
            nonlocal count
            count += len(ids)
            some.extend(ids[: _MOST_NAMED - len(some)])

        removed = catalogue.remove(_ids(args), on_unknown=unknown)
        _tell(f"{removed:,} items removed; {catalogue.index.num_items():,} are left: {args.index}")
        if count:
            more = " …" if count > len(some) else ""
            _tell(f"{count:,} {'id is' if count == 1 else 'ids are'} of no item: {', '.join(some)}{more}")


def _ids(args: argparse.Namespace):
    yield from args.ids or ()
    if args.ids_file is not None:
        with args.ids_file.open(encoding="utf-8") as lines:
            yield from (line.rstrip("\r\n") for line in lines if line.strip())


def _search(args: argparse.Namespace) -> None:
    with _opened(args) as catalogue:
        distinct = None if args.distinct is None else _distinct(args.distinct)
        hits = catalogue.search(
            None if args.image is None else [args.image],
            None if args.item is None else [args.item],
            args.attributes,
            texts=None if args.text is None else [args.text],
            k=args.k,
            weights=args.weights,
            where=filter_of(args.where),
            exclude=args.exclude or (),
            include_self=args.include_self,
            distinct=distinct,
            checkpoint=args.checkpoint,
        )[0]
        plan = catalogue.plan(args.attributes, args.weights)
        for note in plan.notes:
            _tell(note)
        if args.json:
            found = [{"id": hit.id, "score": hit.score, "metadata": hit.metadata} for hit in hits]
            sys.stdout.write(json.dumps(found, ensure_ascii=False, indent=1) + "\n")
        else:
            sys.stdout.write(search_text(hits, list(plan.weights)))
        if args.picture is not None:
            _draw(args, catalogue, hits, plan.weights)


def _draw(args: argparse.Namespace, catalogue, hits, weights: dict[str, float]) -> None:
    from ..catalogue.picture import contact_sheet
    from ..data.images import BadImage, decode_image

    names = [hit.id for hit in hits] + ([] if args.item is None else [args.item])
    photos = catalogue.photos(names)

    def picture(source):
        try:
            return None if source is None else decode_image(source)
        except BadImage:
            return None

    images = [picture(photos[name].load() if name in photos else None) for name in names]
    if args.text is not None:
        query, name = args.text, f"“{args.text}”"
    else:
        query = picture(args.image) if args.item is None else images.pop()
        name = args.image.name if args.item is None else args.item
    contact_sheet(query, name, hits, images, weights, args.picture)
    _tell(str(args.picture))


def _distinct(text: str) -> float | tuple[str, float]:
    space, colon, cosine = text.rpartition(":")
    try:
        return (space, float(cosine)) if colon else float(cosine)
    except ValueError:
        raise ValueError(f"--distinct takes a cosine, or SPACE:COSINE; got {text!r}.") from None


def _reindex(args: argparse.Namespace) -> None:
    with _opened(args) as catalogue:
        outcomes, report = catalogue.reindex(
            args.checkpoint,
            args.policy,
            source_of(args, needed=False),
            drift_map=args.drift_map,
            mix=args.mix,
            calibration=args.calibration,
            fp16=args.fp16,
            fill=fill_settings(args),
        )
        if not catalogue.ranks.is_first:
            return
        for outcome in dict.fromkeys(outcomes.values()):
            names = [name for name, other in outcomes.items() if other == outcome]
            _tell(f"{outcome}: {', '.join(names)}")
        if report is not None:
            _tell_filled(catalogue, report)
            if args.switch and catalogue.index.building():
                _switch_to(catalogue, args)
            elif catalogue.index.building():
                _tell(f"searches are answered as before until `mclfir index switch --index {args.index}`")
        elif "opened" in outcomes.values():
            _tell(f"`mclfir index backfill --index {args.index}` fills the new spaces")


def _backfill(args: argparse.Namespace) -> None:
    with _opened(args) as catalogue:
        report = catalogue.backfill(
            args.checkpoint, source_of(args, needed=False), fp16=args.fp16, fill=fill_settings(args)
        )
        _tell_filled(catalogue, report)


def _switch(args: argparse.Namespace) -> None:
    with _opened(args) as catalogue:
        _switch_to(catalogue, args)


def _switch_to(catalogue, args: argparse.Namespace) -> None:
    live = catalogue.switch(args.allow_pending)
    _tell("\n".join(f"{space}: {revision}" for space, revision in live.items()))


def _roll_back(args: argparse.Namespace) -> None:
    with _opened(args) as catalogue:
        for space, found in catalogue.roll_back().items():
            told = f"{found['model_revision']} answers again, with {found['entries']:,} items"
            _tell(f"{space}: {told}; what answered until now has {found['entries_before']:,}")


def _drop(args: argparse.Namespace) -> None:
    with _opened(args) as catalogue:
        _tell(f"{args.revision} is dropped from {', '.join(catalogue.drop(args.revision))}: its vectors are deleted")


def _info(args: argparse.Namespace) -> None:
    with _opened(args) as catalogue:
        info = catalogue.info()
        sys.stdout.write(json.dumps(info, ensure_ascii=False, indent=1) + "\n" if args.json else info_text(info))


def _export(args: argparse.Namespace) -> None:
    with _opened(args) as catalogue:
        count = catalogue.export(args.output, args.attributes)
        _tell(f"{count:,} rows: {args.output}")


def _opened(args: argparse.Namespace):
    from ..catalogue import Catalogue

    return Catalogue.open(args.index, args.token)


def _tell_filled(catalogue, report) -> None:
    if not catalogue.ranks.is_first:
        return
    info = catalogue.info()
    if report.bad.total:
        _tell(report.bad.summary("image"))
    for note in report.notes:
        _tell(note)
    lacking = {
        name: space["share_built"] if space["building"] else space["share_filled"]
        for name, space in info["spaces"].items()
    }
    for name, share in lacking.items():
        if share < 1:
            _tell(f"{name}: {100 * share:.1f} % of the items have their vector")
    _tell(
        f"{report.embedded:,} of {report.seen:,} images embedded ({report.rate:,.1f} images/s); {info['items']:,} "
        f"items in {len(info['spaces'])} spaces: {catalogue.folder}"
    )


def _tell(text: str) -> None:
    sys.stderr.write(text + "\n")


_RUNS = {
    "build": _build,
    "add": _add,
    "remove": _remove,
    "search": _search,
    "reindex": _reindex,
    "backfill": _backfill,
    "switch": _switch,
    "roll_back": _roll_back,
    "drop": _drop,
    "info": _info,
    "export": _export,
}


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
