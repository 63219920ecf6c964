# SPDX-License-Identifier: Apache-2.0
"""Atelier, the embedded default: drawn garments with attributes and captions, generated as a stream from a seed.

Needs no source. The same seed gives the same bytes.
"""

from collections.abc import Sequence

from data_scripts.command import choose_increments, parser, run
from modeling_mclfir.data.atelier import ATTRIBUTES, INCREMENTS, SPLIT_SIZES, generate_split
from modeling_mclfir.data.prepare import write_dataset
from modeling_mclfir.data.schema import SPLITS
from modeling_mclfir.data.shards import DatasetSummary

NAME = "Atelier"
LICENCE = "apache-2.0"
DESCRIPTION = (
    "Garments drawn by mclfir, seed {seed}, {size} px, with varied pose, scale, background, occlusion and lighting. "
    "A null means that the attribute does not apply to the category."
)


def main(arguments: Sequence[str] | None = None) -> DatasetSummary:
    """Draws the splits and writes the data set."""
    command = parser("atelier", __doc__, source=None)
    command.add_argument("--seed", type=int, default=0, help="another seed draws other garments (default: 0)")
    command.add_argument("--image-size", type=int, default=96, help="side in pixels (default: 96)")
    for split in SPLITS:
        command.add_argument(
            f"--num-{split}", type=int, default=SPLIT_SIZES[split], help=f"rows (default: {SPLIT_SIZES[split]})"
        )
    options = command.parse_args(arguments)
    num_rows = {split: getattr(options, f"num_{split}") for split in SPLITS}
    splits = {
        split: generate_split(split, seed=options.seed, num_rows=num_rows[split], image_size=options.image_size)
        for split in SPLITS
    }
    return write_dataset(
        options.output,
        splits,
        tuple(ATTRIBUTES),
        choose_increments(INCREMENTS, options.increments_key),
        name=NAME,
        licence=LICENCE,
        description=DESCRIPTION.format(seed=options.seed, size=options.image_size),
        rows_per_shard=options.rows_per_shard,
        max_bad_fraction=options.max_bad_fraction,
        num_rows=num_rows,
        overwrite=options.overwrite,
        check_images=False,  # drawn a moment ago
    )


if __name__ == "__main__":
    run(main)
