# SPDX-License-Identifier: Apache-2.0
"""Parameters that an attribute adds (heads and adapters), as a share of the trunk, over a sequence of increments."""

import torch
from transformers import Dinov2Config, MobileNetV2Config, ResNetConfig, ViTConfig

from modeling_mclfir import MclfirForImageRetrieval

TRUNKS = {
    "MobileNetV2 1.0": MobileNetV2Config(),
    "ResNet-50": ResNetConfig(),
    "ViT-B/16": ViTConfig(),
    "DINOv2-B": Dinov2Config(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, image_size=224),
}
# Attributes of each increment of the two real sequences.
SEQUENCES = {"Stanford": [5, 4, 6, 5, 6], "Myntra": [2, 1, 1, 2]}


def main() -> None:
    print(f"{'trunk':<18}{'trunk, M':>10}{'sequence':>12}{'per attribute':>16}{'share':>9}")
    for name, config in TRUNKS.items():
        for sequence, counts in SEQUENCES.items():
            torch.manual_seed(0)
            model = MclfirForImageRetrieval.from_trunk(config)
            trunk = sum(parameter.numel() for parameter in model.mclfir.trunk.parameters())
            for increment, count in enumerate(counts):
                model.add_increment(f"i{increment}", [f"a{increment}-{place}" for place in range(count)])
            added = sum(model.num_added_parameters().values()) / sum(counts)
            print(f"{name:<18}{trunk / 1e6:>10.2f}{sequence:>12}{added:>16,.0f}{100 * added / trunk:>8.2f}%")


if __name__ == "__main__":
    main()
