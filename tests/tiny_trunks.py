# SPDX-License-Identifier: Apache-2.0
"""Configurations of vision trunks of some thousand parameters."""

IMAGE_SIZE = 64


def trunk_config(family: str):
    """A configuration of the family, small enough for a forward pass of some milliseconds."""
    import transformers

    tokens = {
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": IMAGE_SIZE,
        "patch_size": 16,
    }
    stages = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    two_towers = {"text_config": text | {"vocab_size": 50000}, "vision_config": tokens}
    families = {
        "resnet": ("ResNetConfig", {"embedding_size": 8, **stages}),
        "convnext": ("ConvNextConfig", {"image_size": IMAGE_SIZE, **stages}),
        "mobilenet_v1": ("MobileNetV1Config", {"image_size": IMAGE_SIZE, "depth_multiplier": 0.25}),
        "mobilenet_v2": ("MobileNetV2Config", {"image_size": IMAGE_SIZE, "depth_multiplier": 0.25}),
        "vit": ("ViTConfig", tokens),
        "deit": ("DeiTConfig", tokens),
        "dinov2": ("Dinov2Config", tokens),
        "dinov2_with_registers": ("Dinov2WithRegistersConfig", tokens | {"num_register_tokens": 4}),
        "siglip": ("SiglipVisionConfig", tokens),
        "clip_vision": ("CLIPVisionConfig", tokens),
        "clip": ("CLIPConfig", two_towers),
        "swin": (
            "SwinConfig",
            {"image_size": IMAGE_SIZE, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
        ),
    }
    name, settings = families[family]
    return getattr(transformers, name)(**settings)
