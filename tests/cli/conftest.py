# SPDX-License-Identifier: Apache-2.0
import pytest


@pytest.fixture(scope="session")
def checkpoint(tiny_data, tmp_path_factory):
    """The last increment of a tiny run."""
    from tiny_runs import arguments

    from modeling_mclfir.cli.main import main

    folder = tmp_path_factory.mktemp("cli") / "run"
    main(["train", *arguments(tiny_data, folder, epochs=0.5)])
    return folder / "increment-02"


@pytest.fixture(scope="session")
def photos(tiny_data, tmp_path_factory):
    """A folder with the first five queries, in a folder inside it."""
    from modeling_mclfir.data.table import load_tables

    table = load_tables(tiny_data)["query"]
    folder = tmp_path_factory.mktemp("photos")
    (folder / "inner").mkdir()
    for row in range(5):
        table.image(row).save(folder / "inner" / f"{row}.png")
    return folder
