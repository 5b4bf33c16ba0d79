"""What diffusers computes from a Stable Diffusion XL folder, step by step."""

import torch
from diffusers import StableDiffusionXLPipeline


def sdxl_expected(folder, settings, initial):
    """(expected.json's fields, tensors): `settings` has the prompts, the size, the steps and the guidance scale."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, torch_dtype=torch.float32, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    guided = settings["guidance_scale"] > 1
    tensors = {"latents_initial": initial}

    forward = pipeline.unet.forward

    def first_prediction(*args, **kwargs):
        result = forward(*args, **kwargs)
        tensors.setdefault("noise_pred_0", result[0].detach().clone())
        return result

    def after_step(_, index, __, values):
        tensors[f"latents_{index}"] = values["latents"].clone()
        return values

    pipeline.unet.forward = first_prediction
    prompt, negative = settings["prompt"], settings["negative_prompt"]
    with torch.no_grad():
        embeds, negative_embeds, pooled, negative_pooled = pipeline.encode_prompt(
            prompt, negative_prompt=negative, do_classifier_free_guidance=guided
        )
        image = pipeline(
            prompt,
            negative_prompt=negative,
            height=settings["height"],
            width=settings["width"],
            num_inference_steps=settings["steps"],
            guidance_scale=settings["guidance_scale"],
            latents=initial.clone(),
            output_type="pt",
            callback_on_step_end=after_step,
        ).images[0]
    tensors |= {"prompt_embeds": embeds, "pooled": pooled, "image": image.permute(1, 2, 0)}
    if guided:
        tensors |= {"negative_embeds": negative_embeds, "negative_pooled": negative_pooled}
    scheduler = pipeline.scheduler
    tensors |= {"sigmas": scheduler.sigmas, "timesteps": scheduler.timesteps.float()}
    ids = {"padding": "max_length", "max_length": 77, "truncation": True}
    fields = {
        "input_ids": pipeline.tokenizer(prompt, **ids).input_ids,
        "input_ids_2": pipeline.tokenizer_2(prompt, **ids).input_ids,
    }
    return fields, {name: tensor.float().contiguous() for name, tensor in tensors.items()}
