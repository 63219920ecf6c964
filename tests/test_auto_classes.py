# SPDX-License-Identifier: Apache-2.0
"""Checkpoints through transformers' Auto classes, each in a Python of its own: what is imported first matters here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import modeling_mclfir
from modeling_mclfir import MclfirImageProcessor

REPOSITORY = Path(modeling_mclfir.__file__).parents[1]

LOAD = """
import sys
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoConfig, AutoImageProcessor, AutoModel

folder, result = sys.argv[1:]
config = AutoConfig.from_pretrained(folder, **REMOTE)
processor = AutoImageProcessor.from_pretrained(folder, **REMOTE)
model = AutoModel.from_pretrained(folder, **REMOTE)
names = [type(part).__name__ for part in (config, processor, model)]
assert names == ["MclfirConfig", "MclfirImageProcessor", "MclfirForImageRetrieval"], names
pixel_values = processor(Image.linear_gradient("L").convert("RGB"), return_tensors="pt")["pixel_values"]
with torch.no_grad():
    save_file({"embeds": model(pixel_values).embeds, "pixel_values": pixel_values}, result)
"""

# The package may be installed in this Python: it must not be found all the same.
BLOCK = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "modeling_mclfir":
            raise ModuleNotFoundError(f"No module named {name!r} (blocked by the test)")

sys.meta_path.insert(0, Blocker())
"""

ORDERS = {
    "ours first": "import modeling_mclfir",
    "transformers first": "import transformers\nimport modeling_mclfir",
    "Auto classes first": "from transformers import AutoConfig, AutoModel, AutoImageProcessor\nimport modeling_mclfir",
    "one Auto class first": "from transformers import AutoConfig\nimport modeling_mclfir",
    "peft first": "import peft\nimport modeling_mclfir",
    "a class of ours first": "from modeling_mclfir import MclfirForImageRetrieval",
    "the configuration first": "from modeling_mclfir import MclfirConfig\nMclfirConfig()",
    "a module of training first": "import modeling_mclfir.training.checkpoint",
}


def run(code: str, *arguments, cwd: Path, with_package: bool) -> subprocess.CompletedProcess:
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    settings |= {"HF_HOME": str(cwd / "hf_home"), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if with_package:
        settings["PYTHONPATH"] = str(REPOSITORY)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=settings, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint of two increments with moved adapters, and what it gives for one picture."""
    import transformers
    from PIL import Image

    from modeling_mclfir import MclfirForImageRetrieval
    from modeling_mclfir.training.checkpoint import save_increment

    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    trunk = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1])
    model = MclfirForImageRetrieval.from_trunk(trunk, embed_dim=16, lora_rank=2)
    model.add_increment("shape", ["hem", "type"])
    model.add_increment("look", ["colour"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.1)
    processor = MclfirImageProcessor(size={"height": 48, "width": 64}, image_mean=[0.1, 0.2, 0.3])
    save_increment(folder / "increment-00", model, processor, {}, {})
    model.save_pretrained(folder / "plain")
    processor.save_pretrained(folder / "plain")
    pixel_values = processor(Image.linear_gradient("L").convert("RGB"), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        embeds = model.eval()(pixel_values).embeds
    save_file({"embeds": embeds, "pixel_values": pixel_values}, folder / "expected.safetensors")
    return folder


def check(checkpoint: Path, result: Path, done: subprocess.CompletedProcess) -> None:
    assert done.returncode == 0, done.stderr[-3000:]
    expected, found = load_file(checkpoint / "expected.safetensors"), load_file(result)
    assert torch.equal(found["pixel_values"], expected["pixel_values"])
    assert torch.equal(found["embeds"], expected["embeds"])


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_auto_classes_know_ours_whatever_comes_first(checkpoint, tmp_path, order):
    code = f"{ORDERS[order]}\nREMOTE = {{}}\n{LOAD}\n"
    code += "import modeling_mclfir\nassert type(model) is modeling_mclfir.MclfirForImageRetrieval\n"
    done = run(code, checkpoint / "increment-00", tmp_path / "found", cwd=tmp_path, with_package=True)
    check(checkpoint, tmp_path / "found", done)


@pytest.mark.parametrize("folder", ["increment-00", "plain"])
def test_without_the_package_the_checkpoint_brings_its_code(checkpoint, tmp_path, folder):
    code = f'{BLOCK}\nREMOTE = {{"trust_remote_code": True}}\n{LOAD}\nassert "modeling_mclfir" not in sys.modules\n'
    done = run(code, checkpoint / folder, tmp_path / "found", cwd=tmp_path, with_package=False)
    check(checkpoint, tmp_path / "found", done)


def test_without_the_package_and_without_trust_nothing_runs(checkpoint, tmp_path):
    code = f"{BLOCK}\nREMOTE = {{}}\n{LOAD}"
    done = run(code, checkpoint / "increment-00", tmp_path / "found", cwd=tmp_path, with_package=False)
    assert done.returncode != 0 and "trust_remote_code" in done.stderr
    assert not (tmp_path / "found").exists()


def test_importing_the_package_imports_no_heavy_one(tmp_path):
    heavy = ("torch", "transformers", "peft", "faiss", "gradio", "datasets", "numpy", "accelerate", "matplotlib")
    code = f"import sys\nimport modeling_mclfir\nprint([name for name in {heavy} if name in sys.modules])"
    done = run(code, cwd=tmp_path, with_package=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_every_public_name_is_there_and_others_are_not():
    for name in modeling_mclfir.__all__:
        assert getattr(modeling_mclfir, name).__name__ == name
        assert name in dir(modeling_mclfir)
    with pytest.raises(AttributeError, match="MclfirNothing"):
        modeling_mclfir.MclfirNothing  # noqa: B018


def test_installing_the_registration_twice_changes_nothing():
    from modeling_mclfir.auto_registration import install

    before = list(sys.meta_path)
    install()
    assert sys.meta_path == before
