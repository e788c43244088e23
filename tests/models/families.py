"""One small network per family of transformers, with random weights and attention that is far from uniform."""

from diffvit_timm.studies.coverage import small_random_network

SMALL = dict(embed_dim=48, depth=2, num_heads=3, num_classes=5)

FAMILIES = {
    "ViT": ("vit_tiny_patch16_224", dict(SMALL, img_size=64)),
    "ViT, qk_norm, norms in the MLP and before the blocks": (
        "vit_tiny_patch16_224",
        dict(SMALL, img_size=64, qk_norm=True, scale_mlp_norm=True, pre_norm=True, embed_norm_layer="layernorm"),
    ),
    "ViT, parallel blocks": ("vit_small_patch16_18x2_224", dict(SMALL, img_size=64)),
    "DeiT, distilled": ("deit_tiny_distilled_patch16_224", dict(SMALL, img_size=64)),
    "hybrid": ("vit_tiny_r_s16_p8_224", dict(SMALL, img_size=64)),
    "DINOv3": ("vit_small_patch16_dinov3", dict(SMALL, img_size=64)),
    "EVA-02": ("eva02_tiny_patch14_224", dict(SMALL, img_size=56)),
    "EVA, giant": ("eva_giant_patch14_224", dict(SMALL, img_size=56, mlp_ratio=2)),
    "Perception Encoder": ("vit_pe_core_tiny_patch16_384", dict(SMALL, img_size=64)),
    "ViT, rotary": ("vit_small_patch16_rope_224", dict(SMALL, img_size=64)),
    "ViT, mixed rotary": ("vit_small_patch16_rope_mixed_224", dict(SMALL, img_size=64)),
    "BEiT": ("beit_base_patch16_224", dict(SMALL, img_size=64)),
    "ViT, relative positions": ("vit_relpos_small_patch16_224", dict(SMALL, img_size=64)),
    "ViT, shared relative positions": ("vit_srelpos_small_patch16_224", dict(SMALL, img_size=64)),
    "NaFlexViT": ("naflexvit_base_patch16_gap", dict(SMALL)),
    "Gemma 4": (
        "gemma4_vit_167m",
        dict(
            embed_dim=48,
            depth=2,
            num_heads=3,
            head_dim=16,
            intermediate_size=96,
            position_embedding_size=64,
            img_size=64,
            num_classes=5,
        ),
    ),
    "ViT, attention and MLP in one block": ("vit_pwee_patch16_reg1_gap_256", dict(SMALL, img_size=64)),
    "SAM": (
        "samvit_base_patch16",
        dict(SMALL, img_size=64, window_size=3, global_attn_indexes=(1,), neck_chans=16),
    ),
    "Swin": (
        "swin_tiny_patch4_window7_224",
        dict(embed_dim=24, depths=(2, 2), num_heads=(2, 2), img_size=64, window_size=4, num_classes=5),
    ),
    "Swin v2": (
        "swinv2_tiny_window8_256",
        dict(embed_dim=24, depths=(2, 2), num_heads=(2, 2), img_size=64, window_size=4, num_classes=5),
    ),
}


# timm's own differential networks. They are not converted.
TIMM_DIFFERENTIAL = {
    "dwee": ("vit_dwee_patch16_reg1_gap_256", dict(SMALL, img_size=64)),
    "dlittle": ("vit_dlittle_patch16_reg1_gap_256", dict(SMALL, img_size=64)),
    "dpwee": ("vit_dpwee_patch16_reg1_gap_256", dict(SMALL, img_size=64)),
}


def make_family(name):
    architecture, arguments = (FAMILIES | TIMM_DIFFERENTIAL)[name]
    return small_random_network(architecture, **arguments)
