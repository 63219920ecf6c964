# SPDX-License-Identifier: Apache-2.0
"""The folder of a run in the place of a checkpoint, in every command that takes one."""

import shutil

import pytest

from modeling_mclfir.catalogue.checkpoint_folder import check_folder
from modeling_mclfir.cli.main import main


@pytest.mark.parametrize("command", ["embed", "tag", "attend", "name-values", "index build", "index search"])
def test_a_run_is_answered_by_its_increments(command, checkpoint, tiny_data, photos, tmp_path):
    run, images = str(checkpoint.parent), ["--images", str(photos)]
    output, gallery = ["--output", str(tmp_path / "output")], ["--gallery", str(tiny_data)]
    index = ["--index", str(tmp_path / "index")]
    flags = {
        "embed": ["--checkpoint", run, *images, *output],
        "tag": ["--checkpoint", run, *images, *output, *gallery],
        "attend": ["--checkpoint", run, *images, *output, *gallery],
        "name-values": [run, "--dataset", str(tiny_data)],
        "index build": [*index, "--checkpoint", run, *images],
        "index search": [*index, "--checkpoint", run, "--image", str(photos / "inner" / "0.png")],
    }[command]
    if command == "index search":
        main(["index", "build", *index, "--checkpoint", str(checkpoint), *images, "--attributes", "colour"])
    with pytest.raises(SystemExit) as error:
        main([*command.split(), *flags])
    assert f"{run}: the folder of a run" in str(error.value)
    assert f"increment-00, increment-01, increment-02. Take {checkpoint}, the last one." in str(error.value)


def test_which_increment_is_the_last(checkpoint, tmp_path):
    for name in ("increment-98", "increment-99", "increment-100", "increment-101.partial"):
        (tmp_path / name).mkdir()
        shutil.copy(checkpoint / "config.json", tmp_path / name)
    (tmp_path / "increment-102").mkdir()  # without a configuration: not finished
    with pytest.raises(FileNotFoundError, match="increment-98, increment-99, increment-100. Take .*increment-100,"):
        check_folder(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no such folder; .* has increment-98, increment-99, increment-100"):
        check_folder(str(tmp_path / "increment-7"))
    with pytest.raises(FileNotFoundError, match=r"no checkpoint \(config.json\) in it"):
        check_folder(str(tmp_path / "increment-102"))
    check_folder(str(tmp_path / "increment-98"))
    check_folder("somebody/on-the-hub")
