# SPDX-License-Identifier: Apache-2.0
"""Stanford Clothing Attributes (Chen, Gallagher, Girod, ECCV 2012): 1,856 street photos, 26 attributes.

Expected in --source: images/*.jpg, labels.csv (image and 26 attributes; an empty cell where annotators disagreed),
split.csv (image, split), increments.json.
"""

from collections.abc import Sequence

from data_scripts.command import parser, require_files, run, write_annotations
from modeling_mclfir.data.folder import read_folder
from modeling_mclfir.data.shards import DatasetSummary

NAME = "Stanford Clothing Attributes"
LICENCE = "none stated; academic use, cite the paper; the photos come from street-fashion sites"
CITATION = """@inproceedings{chen2012describing,
  title = {Describing Clothing by Semantic Attributes},
  author = {Chen, Huizhong and Gallagher, Andrew and Girod, Bernd},
  booktitle = {European Conference on Computer Vision},
  year = {2012}
}"""
DESCRIPTION = (
    "Street photos with 26 attributes: 7 categories, 3 sleeve lengths, 3 necklines and 23 binary ones. A null means "
    "that the annotators disagreed. Byte-identical copies are left out."
)
FILES = ("labels.csv", "split.csv", "increments.json")


def main(arguments: Sequence[str] | None = None) -> DatasetSummary:
    """Reads the folder and writes the data set."""
    options = parser("stanford_clothing", __doc__, source="folder with the four things above").parse_args(arguments)
    require_files(options.source, FILES if options.annotations_only else ("images", *FILES))
    annotations = read_folder(options.source, "labels.csv", split="split.csv")
    return write_annotations(
        annotations, options, name=NAME, licence=LICENCE, citation=CITATION, description=DESCRIPTION
    )


if __name__ == "__main__":
    run(main)
