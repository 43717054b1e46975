"""A tiny card of each hosted pipeline class: networks that sample in milliseconds."""

from __future__ import annotations

from typing import Any

from bench.contracts.card import Guidance, ModelCard, WeightsSource

VAE = {
    "latent_channels": 4, "block_out_channels": [16, 16], "norm_num_groups": 4, "layers_per_block": 1,
    "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2,
    "scaling_factor": 0.5, "shift_factor": 0.1,
}  # fmt: skip
FLUX2_VAE = {
    "latent_channels": 4, "block_out_channels": [16, 16], "norm_num_groups": 4, "layers_per_block": 1,
    "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2,
    "sample_size": 32, "use_quant_conv": True, "use_post_quant_conv": True,
}  # fmt: skip
QWEN_VAE = {
    "base_dim": 8, "z_dim": 4, "dim_mult": [1, 2], "num_res_blocks": 1, "temperal_downsample": [False],
    "latents_mean": [0.1, 0.0, -0.1, 0.2], "latents_std": [1.5, 1.0, 0.8, 1.2],
}  # fmt: skip
DEEP_VAE = {
    "latent_channels": 4, "attention_head_dim": 8, "scaling_factor": 0.41,
    **{
        f"{half}_{fact}": value
        for half in ("encoder", "decoder")
        for fact, value in {
            "block_types": ["ResBlock", "EfficientViTBlock"], "block_out_channels": [16, 32],
            "layers_per_block": [1, 1], "qkv_multiscales": [[], [5]],
        }.items()
    },
}  # fmt: skip
HUNYUAN_VAE = {
    "in_channels": 3, "out_channels": 3, "latent_channels": 4, "block_out_channels": [32, 32], "layers_per_block": 1,
    "spatial_compression_ratio": 2, "sample_size": 16, "scaling_factor": 0.6, "downsample_match_channel": True,
    "upsample_match_channel": True,
}  # fmt: skip
UNET = {
    "sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": [16, 32], "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "attention_head_dim": 4, "cross_attention_dim": 24, "norm_num_groups": 8,
}  # fmt: skip
XL_UNET = UNET | {
    "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 64,
}  # fmt: skip
FLUX = {
    "patch_size": 1, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
    "num_attention_heads": 2, "joint_attention_dim": 32, "pooled_projection_dim": 32, "guidance_embeds": True,
    "axes_dims_rope": [4, 4, 8],
}  # fmt: skip
FLUX2 = {
    "patch_size": 1, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
    "num_attention_heads": 2, "joint_attention_dim": 24, "timestep_guidance_channels": 16,
    "axes_dims_rope": [4, 4, 4, 4], "guidance_embeds": True,
}  # fmt: skip
SD3 = {
    "sample_size": 8, "patch_size": 2, "in_channels": 4, "num_layers": 2, "attention_head_dim": 8,
    "num_attention_heads": 4, "joint_attention_dim": 32, "caption_projection_dim": 32, "pooled_projection_dim": 64,
    "out_channels": 4, "pos_embed_max_size": 8, "qk_norm": "rms_norm",
}  # fmt: skip
Z_IMAGE = {
    "all_patch_size": [2], "all_f_patch_size": [1], "in_channels": 4, "dim": 32, "n_layers": 1, "n_refiner_layers": 1,
    "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 16, "axes_dims": [4, 6, 6], "axes_lens": [256, 64, 64],
}  # fmt: skip
QWEN = {
    "patch_size": 2, "in_channels": 16, "out_channels": 4, "num_layers": 2, "attention_head_dim": 16,
    "num_attention_heads": 2, "joint_attention_dim": 16, "axes_dims_rope": [4, 6, 6],
}  # fmt: skip
SANA = {
    "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1,
    "num_cross_attention_heads": 2, "cross_attention_head_dim": 8, "cross_attention_dim": 16, "caption_channels": 8,
    "sample_size": 32, "patch_size": 1, "guidance_embeds": True, "qk_norm": "rms_norm_across_heads",
}  # fmt: skip
HUNYUAN = {
    "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 1,
    "num_single_layers": 1, "num_refiner_layers": 1, "mlp_ratio": 2.0, "guidance_embeds": True, "text_embed_dim": 16,
    "text_embed_2_dim": 12, "rope_axes_dim": [8, 8], "use_meanflow": True,
}  # fmt: skip
KREA2 = {
    "in_channels": 16, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 32, "timestep_embed_dim": 16, "text_hidden_dim": 16, "num_text_layers": 3,
    "text_num_attention_heads": 2, "text_num_key_value_heads": 2, "text_intermediate_size": 24,
    "num_layerwise_text_blocks": 1, "num_refiner_text_blocks": 1, "axes_dims_rope": [4, 6, 6],
}  # fmt: skip
ERNIE = {
    "hidden_size": 32, "num_attention_heads": 2, "num_layers": 1, "ffn_hidden_size": 32, "in_channels": 16,
    "out_channels": 16, "text_in_dim": 16, "rope_axes_dim": [4, 6, 6],
}  # fmt: skip
STABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
ANCESTRAL = STABLE | {"timestep_spacing": "trailing"}

Facts = dict[str, Any]


def flow(**scheduler: Any) -> Facts:
    return {"scheduler": {"shift": 3.0, **scheduler}}


TINY: dict[str, tuple[str, Facts, Facts, Facts, tuple[int, int, int], str, float]] = {
    # name: class, network, autoencoder, further facts, latent shape, guidance, largest scale
    "sd15": ("StableDiffusionPipeline", UNET, VAE, {"scheduler_class": "DDIMScheduler", "scheduler": STABLE | {
        "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}}, (4, 8, 8), "classifier-free", 7.5),
    "sd15-lcm": ("StableDiffusionPipeline", UNET | {"time_cond_proj_dim": 16}, VAE,
        {"scheduler_class": "LCMScheduler", "scheduler": STABLE}, (4, 8, 8), "embedded", 8.0),
    "sd15-one-step": ("StableDiffusionPipeline", UNET, VAE, {"scheduler_class": "X0Scheduler", "scheduler": {
        "timesteps": [625], "noised": True}}, (4, 8, 8), "none", 1.0),
    "sdxl-turbo": ("StableDiffusionXLPipeline", XL_UNET, VAE, {"scheduler_class": "EulerAncestralDiscreteScheduler",
        "scheduler": ANCESTRAL}, (4, 8, 8), "none", 1.0),
    "sdxl-lcm": ("StableDiffusionXLPipeline", XL_UNET, VAE, {"scheduler_class": "LCMScheduler", "scheduler": STABLE},
        (4, 8, 8), "classifier-free", 2.0),
    "sdxl-tcd": ("StableDiffusionXLPipeline", XL_UNET, VAE, {"scheduler_class": "TCDScheduler", "scheduler": STABLE},
        (4, 8, 8), "none", 1.0),
    "sd3": ("StableDiffusion3Pipeline", SD3, VAE, flow(), (4, 8, 8), "classifier-free", 3.5),
    "sd3-tdm": ("StableDiffusion3Pipeline", SD3, VAE, {"scheduler_class": "DPMSolverMultistepScheduler", "scheduler": {
        "prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 6.0}}, (4, 8, 8), "none", 1.0),
    "flux-dev": ("FluxPipeline", FLUX, VAE, flow(use_dynamic_shifting=True), (4, 8, 8), "embedded", 3.5),
    "flux-schnell": ("FluxPipeline", FLUX | {"guidance_embeds": False}, VAE, flow(shift=1.0), (4, 8, 8), "none", 1.0),
    "flux-lcm": ("FluxPipeline", FLUX, VAE, {"scheduler_class": "FlowMatchLCMScheduler", "scheduler": {"shift": 3.0}},
        (4, 8, 8), "embedded", 3.5),
    "flux2-dev": ("Flux2Pipeline", FLUX2, FLUX2_VAE, flow(use_dynamic_shifting=True), (16, 4, 4), "embedded", 4.0),
    "flux2-klein": ("Flux2KleinPipeline", FLUX2 | {"guidance_embeds": False}, FLUX2_VAE,
        flow(use_dynamic_shifting=True) | {"options": {"is_distilled": True}}, (16, 4, 4), "none", 1.0),
    "flux2-klein-base": ("Flux2KleinPipeline", FLUX2 | {"guidance_embeds": False}, FLUX2_VAE,
        flow(use_dynamic_shifting=True), (16, 4, 4), "classifier-free", 4.0),
    "flux2-klein-stochastic": ("Flux2KleinPipeline", FLUX2 | {"guidance_embeds": False}, FLUX2_VAE,
        flow(stochastic_sampling=True) | {"options": {"is_distilled": True}}, (16, 4, 4), "none", 1.0),
    "z-image": ("ZImagePipeline", Z_IMAGE, VAE, flow(), (4, 8, 8), "classifier-free", 4.0),
    "z-image-twinflow": ("ZImagePipeline", Z_IMAGE, VAE, {"scheduler_class": "TwinFlowScheduler", "second_time": True},
        (4, 8, 8), "none", 1.0),
    "qwen-image": ("QwenImagePipeline", QWEN, QWEN_VAE, flow(use_dynamic_shifting=True, shift=1.0), (4, 8, 8),
        "classifier-free", 4.0),
    "qwen-image-twinflow": ("QwenImagePipeline", QWEN, QWEN_VAE, {"scheduler_class": "TwinFlowScheduler",
        "second_time": True}, (4, 8, 8), "none", 1.0),
    "sana-sprint": ("SanaSprintPipeline", SANA, DEEP_VAE, {"scheduler_class": "SCMScheduler", "scheduler": {
        "prediction_type": "trigflow", "sigma_data": 0.5}}, (4, 16, 16), "embedded", 4.5),
    "hunyuan-image": ("HunyuanImagePipeline", HUNYUAN, HUNYUAN_VAE, flow(shift=5.0), (4, 8, 8), "embedded", 3.25),
    "krea2": ("Krea2Pipeline", KREA2, QWEN_VAE, flow(use_dynamic_shifting=True), (4, 8, 8), "classifier-free", 4.5),
    "krea2-turbo": ("Krea2Pipeline", KREA2, QWEN_VAE, flow(use_dynamic_shifting=True) | {
        "options": {"is_distilled": True}}, (4, 8, 8), "none", 1.0),
    "ernie-image": ("ErnieImagePipeline", ERNIE, FLUX2_VAE, flow(), (16, 4, 4), "classifier-free", 4.0),
}  # fmt: skip


def tiny(name: str) -> ModelCard:
    """Return the card of a tiny network, 16 pixels a side (SANA-Sprint: 32, the least that it takes)."""
    pipeline, network, autoencoder, facts, shape, guidance, largest = TINY[name]
    return ModelCard(
        name=f"tiny-{name}",
        family="diffusers",
        title=f"Tiny {pipeline}",
        resolution=32 if name == "sana-sprint" else 16,
        num_classes=0,
        latent_shape=shape,
        architecture={"pipeline": pipeline, "network": network, **facts},
        weights=WeightsSource("diffusers", repo="nowhere/tiny", file="model_index.json"),
        autoencoder=autoencoder,
        guidance=Guidance(guidance, largest, (1.0, largest)),
    )
