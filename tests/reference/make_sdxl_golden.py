"""A golden case of Stable Diffusion XL whose shapes are unlike the released model's: four levels, two residual blocks in each,
transformers of three depths, one number of heads for all levels, odd latents of 9 x 13 (halved to 5 x 7, 3 x 4, 2 x 2), Karras sigmas,
trailing timesteps and no guidance; weights in f16. Text encoders and tokenizers are the other case's.

    python make_sdxl_golden.py GOLDENS/sdxl-base GOLDENS/sdxl-deep
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import save_file

PROMPT, STEPS, WIDTH, HEIGHT = "a lantern on a narrow bridge, snow", 4, 104, 72


def narrowed(model):
    """Weights that f16 holds exactly, computed with in f32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()
    return model.eval()


def spread(model):
    """Norms and biases that are not ones and zeros, as training leaves them."""
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def main(source: Path, out: Path) -> None:
    torch.manual_seed(11)
    unet = narrowed(spread(UNet2DConditionModel(
        sample_size=13, in_channels=4, out_channels=4, block_out_channels=(16, 16, 16, 24), layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2, 3), attention_head_dim=2, norm_num_groups=8, cross_attention_dim=80,
        addition_embed_type="text_time", addition_time_embed_dim=16, projection_class_embeddings_input_dim=136,
        use_linear_projection=True)))
    vae = narrowed(spread(AutoencoderKL(
        block_out_channels=(8, 16, 16, 24), layers_per_block=2, norm_num_groups=4, latent_channels=4, sample_size=104,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, scaling_factor=0.13025)))
    base = StableDiffusionXLPipeline.from_pretrained(source / "sdxl")
    scheduler = EulerDiscreteScheduler.from_config(
        base.scheduler.config, use_karras_sigmas=True, timestep_spacing="trailing")
    pipeline = StableDiffusionXLPipeline(
        vae, base.text_encoder, base.text_encoder_2, base.tokenizer, base.tokenizer_2, unet, scheduler,
        add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    initial = torch.randn(1, 4, HEIGHT // 8, WIDTH // 8)
    expected = {"latents_initial": initial}

    forward = unet.forward

    def noted(*args, **kwargs):
        result = forward(*args, **kwargs)
        expected.setdefault("noise_pred_0", result[0].detach().clone())
        return result

    def after_step(_, index, __, values):
        expected[f"latents_{index}"] = values["latents"].clone()
        return values

    unet.forward = noted
    with torch.no_grad():
        embeds, _, pooled, _ = pipeline.encode_prompt(PROMPT, do_classifier_free_guidance=False)
        picture = pipeline(
            PROMPT, height=HEIGHT, width=WIDTH, num_inference_steps=STEPS, guidance_scale=1.0, latents=initial.clone(),
            output_type="pt", callback_on_step_end=after_step).images[0]
    expected |= {"prompt_embeds": embeds, "pooled": pooled, "image": picture.permute(1, 2, 0),
                 "sigmas": scheduler.sigmas, "timesteps": scheduler.timesteps.float()}

    shutil.rmtree(out, ignore_errors=True)
    (out / "sdxl").mkdir(parents=True)
    for part in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
        shutil.copytree(source / "sdxl" / part, out / "sdxl" / part)
    shutil.copy(source / "sdxl" / "model_index.json", out / "sdxl")
    unet.forward = forward
    unet.half().save_pretrained(out / "sdxl" / "unet")
    vae.half().save_pretrained(out / "sdxl" / "vae")
    scheduler.save_pretrained(out / "sdxl" / "scheduler")
    save_file({name: tensor.float().contiguous() for name, tensor in expected.items()}, out / "expected.safetensors")
    ids = {"padding": "max_length", "max_length": 77, "truncation": True}
    settings = {
        "case": out.name, "model": "sdxl", "prompt": PROMPT, "negative_prompt": "", "height": HEIGHT, "width": WIDTH,
        "steps": STEPS, "guidance_scale": 1.0, "input_ids": base.tokenizer(PROMPT, **ids).input_ids,
        "input_ids_2": base.tokenizer_2(PROMPT, **ids).input_ids}
    (out / "expected.json").write_text(json.dumps(settings, indent=1) + "\n")


main(Path(sys.argv[1]), Path(sys.argv[2]))
