"""Parameter shapes of real models, so that benchmarks have real tensor counts and sizes without any weights."""

from __future__ import annotations


def _transformer(prefix: str, layers: int, width: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(layers):
        block = f"{prefix}.resblocks.{i}"
        shapes |= {
            f"{block}.ln_1.weight": (width,),
            f"{block}.ln_1.bias": (width,),
            f"{block}.attn.in_proj_weight": (3 * width, width),
            f"{block}.attn.in_proj_bias": (3 * width,),
            f"{block}.attn.out_proj.weight": (width, width),
            f"{block}.attn.out_proj.bias": (width,),
            f"{block}.ln_2.weight": (width,),
            f"{block}.ln_2.bias": (width,),
            f"{block}.mlp.c_fc.weight": (4 * width, width),
            f"{block}.mlp.c_fc.bias": (4 * width,),
            f"{block}.mlp.c_proj.weight": (width, 4 * width),
            f"{block}.mlp.c_proj.bias": (width,),
        }
    return shapes


def clip_vit_b32() -> dict[str, tuple[int, ...]]:
    """CLIP ViT-B/32, the paper's default model: 151.3 M parameters in 302 tensors (both towers)."""
    return {
        "positional_embedding": (77, 512),
        "text_projection": (512, 512),
        "logit_scale": (),
        "visual.class_embedding": (768,),
        "visual.positional_embedding": (50, 768),
        "visual.proj": (768, 512),
        "visual.conv1.weight": (768, 3, 32, 32),
        "visual.ln_pre.weight": (768,),
        "visual.ln_pre.bias": (768,),
        **_transformer("visual.transformer", 12, 768),
        "visual.ln_post.weight": (768,),
        "visual.ln_post.bias": (768,),
        **_transformer("transformer", 12, 512),
        "token_embedding.weight": (49408, 512),
        "ln_final.weight": (512,),
        "ln_final.bias": (512,),
    }


def vit(
    width: int, depth: int, patch: int, tokens: int, classes: int = 1000, hidden: int | None = None
) -> dict[str, tuple[int, ...]]:
    """A plain vision transformer under timm's names; ``hidden`` is the width of its MLPs, 4 times its own if None."""
    hidden = 4 * width if hidden is None else hidden
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, tokens, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
    }
    for i in range(depth):
        block = f"blocks.{i}"
        shapes |= {
            f"{block}.norm1.weight": (width,),
            f"{block}.norm1.bias": (width,),
            f"{block}.attn.qkv.weight": (3 * width, width),
            f"{block}.attn.qkv.bias": (3 * width,),
            f"{block}.attn.proj.weight": (width, width),
            f"{block}.attn.proj.bias": (width,),
            f"{block}.norm2.weight": (width,),
            f"{block}.norm2.bias": (width,),
            f"{block}.mlp.fc1.weight": (hidden, width),
            f"{block}.mlp.fc1.bias": (hidden,),
            f"{block}.mlp.fc2.weight": (width, hidden),
            f"{block}.mlp.fc2.bias": (width,),
        }
    return shapes | {
        "norm.weight": (width,),
        "norm.bias": (width,),
        "head.weight": (classes, width),
        "head.bias": (classes,),
    }


def vit_ti16() -> dict[str, tuple[int, ...]]:
    """ViT-Ti/16: 5.7 M parameters, where every element is looked at."""
    return vit(192, 12, 16, 197)


def vit_s16() -> dict[str, tuple[int, ...]]:
    """ViT-S/16: 22.1 M parameters in 152 tensors, the small model."""
    return vit(384, 12, 16, 197)


def vit_l14() -> dict[str, tuple[int, ...]]:
    """ViT-L/14: 304 M parameters in 296 tensors, the large model."""
    return vit(1024, 24, 14, 257)


def vit_g14(depth: int = 48) -> dict[str, tuple[int, ...]]:
    """ViT-G/14, the paper's largest model: 1.84 B parameters (Zhai et al., arXiv 2106.04560, Table 2), for 224 pixels.

    Width 1664, 48 layers, MLPs of 8192, and a head for the 1000 classes of ImageNet; fewer layers for a try.
    """
    return vit(1664, depth, 14, 257, hidden=8192)


def many_small(tensors: int = 1000, elements: int = 1000) -> dict[str, tuple[int, ...]]:
    """The other extreme: per-tensor overhead dominates."""
    return {f"t{i}": (elements,) for i in range(tensors)}
