"""Random numbers of torch by seed, and the schedulers of diffusers.

    make_diffusion.py ../data/diffusion

writes
* `random.safetensors`: `torch.randn` on the CPU, named `SEED:SHAPE:TYPE`;
* `schedulers.json`, `schedulers.safetensors`: every scheduler, step by step, with a made-up model. A case has the
  settings, the number of steps and the strength of image-to-image (none: from noise); its tensors are `N.timesteps`,
  `N.start` (the sample before the first step), `N.samples` (after each step) and `N.denoised` (where the scheduler
  gives it).
"""

import itertools
import json
import sys
from pathlib import Path

import diffusers
import torch
from safetensors.torch import save_file

SHAPE = (1, 4, 2, 2)


def random():
    made = {}
    for seed, shape in itertools.product(
        [0, 1, 42, 1234567890, 2**32 + 5, 2**63 - 1],
        [(1,), (7,), (15,), (16,), (17,), (31,), (1, 4, 2, 2), (1, 4, 9, 13), (2, 3, 5, 7), (1, 4, 16, 16)],
    ):
        for kind in [torch.float32, torch.float16]:
            generator = torch.Generator("cpu").manual_seed(seed)
            name = f"{seed}:{'x'.join(map(str, shape))}:{'f32' if kind == torch.float32 else 'f16'}"
            made[name] = torch.randn(shape, generator=generator, dtype=kind)
    # Several draws from one generator. The first has an odd length below 16: the scalar path caches a number for the next.
    generator = torch.Generator("cpu").manual_seed(3)
    made["3:3+5+20+3:f32"] = torch.cat([torch.randn(count, generator=generator) for count in [3, 5, 20, 3]])
    return made


def model(x, timestep):
    """The made-up model: bounded, and different for every element, input and time."""
    index = torch.arange(x.numel(), dtype=torch.float32).reshape(x.shape)
    return 0.6 * torch.tanh(x) + 0.4 * torch.sin(index + float(timestep) / 100)


def run(settings, steps, strength):
    scheduler = getattr(diffusers, settings["_class_name"]).from_config(settings)
    scheduler.set_timesteps(steps)
    generator = torch.Generator("cpu").manual_seed(steps)
    noise = torch.randn(SHAPE, generator=generator)
    timesteps = scheduler.timesteps
    if strength is None:
        x = noise * scheduler.init_noise_sigma
    else:
        first = max(steps - min(int(steps * strength), steps), 0)
        timesteps = timesteps[first:]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first)
        image = torch.linspace(-2, 2, 16).reshape(SHAPE)
        x = scheduler.add_noise(image, noise, timesteps[:1])
    start, samples, denoised = x, [], []
    for timestep in timesteps:
        output = model(scheduler.scale_model_input(x, timestep), timestep)
        extra = {} if settings["_class_name"] == "DDIMScheduler" else {"generator": generator}
        result = scheduler.step(output, timestep, x, **extra)
        x = result.prev_sample
        samples.append(x)
        if hasattr(result, "pred_original_sample"):
            denoised.append(result.pred_original_sample)
    made = {"timesteps": timesteps.float(), "start": start, "samples": torch.stack(samples)}
    if hasattr(scheduler, "sigmas"):
        made["sigmas"] = scheduler.sigmas.float()
    if denoised:
        made["denoised"] = torch.stack(denoised)
    return {name: value.contiguous().clone() for name, value in made.items()}


def cases():
    noise = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
    spacings = ["leading", "trailing", "linspace"]

    def case(kind, steps, strength=None, **settings):
        return {"settings": {"_class_name": kind, **noise, **settings}, "steps": steps, "strength": strength}

    for kind, spacing, prediction in itertools.product(
        ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler"],
        spacings,
        ["epsilon", "v_prediction"],
    ):
        offset = {"timestep_spacing": spacing, "prediction_type": prediction, "steps_offset": 1}
        for steps in [1, 4, 6, 20] if prediction == "epsilon" else [7]:
            if steps == 1 and spacing == "linspace":
                continue  # time 0 alone
            yield case(kind, steps, **offset, **({"clip_sample": False} if kind == "DDIMScheduler" else {}))
        yield case(kind, 10, 0.3, **offset)
    for kind in ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler"]:
        for steps in [1, 5, 16]:
            yield case(kind, steps, use_karras_sigmas=True, timestep_spacing="leading", steps_offset=1)
            yield case(kind, steps, use_exponential_sigmas=True, timestep_spacing="trailing")
        yield case(kind, 9, 0.6, use_karras_sigmas=True, prediction_type="v_prediction")
        yield case(kind, 6, final_sigmas_type="sigma_min")
    euler = "EulerDiscreteScheduler"
    yield case(euler, 5, prediction_type="sample")
    yield case(euler, 5, interpolation_type="log_linear")
    yield case(euler, 5, use_karras_sigmas=True, sigma_min=0.03, sigma_max=12.0)
    yield case(euler, 5, timestep_type="continuous", prediction_type="v_prediction", timestep_spacing="trailing")
    yield case(euler, 5, rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing")
    yield case(euler, 5, beta_schedule="linear", beta_start=0.0001, beta_end=0.02)
    yield case(euler, 5, beta_schedule="squaredcos_cap_v2")
    yield case(euler, 3, trained_betas=[0.001 + i / 2000 for i in range(20)], num_train_timesteps=20)
    ddim = "DDIMScheduler"
    yield case(ddim, 5)  # clip_sample is on where nothing is said
    yield case(ddim, 5, clip_sample_range=2.5, prediction_type="sample")
    yield case(ddim, 5, set_alpha_to_one=False, clip_sample=False, steps_offset=1)
    yield case(
        ddim, 5, rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing", clip_sample=False
    )
    solver = "DPMSolverMultistepScheduler"
    yield case(solver, 5, solver_order=1)
    yield case(solver, 20, euler_at_final=True, final_sigmas_type="sigma_min")
    yield case(solver, 20, lower_order_final=False, final_sigmas_type="sigma_min")
    yield case(solver, 8, solver_type="heun")
    yield case(solver, 8, algorithm_type="sde-dpmsolver++")
    yield case(solver, 8, algorithm_type="sde-dpmsolver++", solver_type="heun", use_karras_sigmas=True)
    yield case(solver, 8, beta_schedule="squaredcos_cap_v2", lambda_min_clipped=-5.1)
    yield case(solver, 8, prediction_type="sample", timestep_spacing="trailing")
    lcm = "LCMScheduler"
    for steps in [1, 2, 4, 8]:
        yield case(lcm, steps)
    yield case(lcm, 4, original_inference_steps=100, timestep_scaling=5.0)
    yield case(lcm, 4, prediction_type="v_prediction", clip_sample=True)
    yield case(lcm, 8, 0.5)
    for kind in ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"]:
        for steps in [5, 20]:
            yield case(kind, steps)  # Playground
        # CosXL
        yield case(kind, 8, sigma_max=120.0, sigma_data=1.0, sigma_schedule="exponential", prediction_type="v_prediction")
        yield case(kind, 9, 0.6, sigma_min=0.01, sigma_max=40.0, rho=5.0)
    edm = "EDMDPMSolverMultistepScheduler"
    yield case(edm, 6, final_sigmas_type="sigma_min", euler_at_final=True)
    yield case(edm, 8, algorithm_type="sde-dpmsolver++", solver_type="heun")
    yield case(edm, 16, solver_type="heun", lower_order_final=False)


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    save_file(random(), folder / "random.safetensors")
    made, tensors = list(cases()), {}
    for number, case in enumerate(made):
        for name, value in run(case["settings"], case["steps"], case["strength"]).items():
            tensors[f"{number}.{name}"] = value
    (folder / "schedulers.json").write_text(json.dumps(made, separators=(",", ":")) + "\n")
    save_file(tensors, folder / "schedulers.safetensors")
    print(len(made), "scheduler cases")


main(Path(sys.argv[1]))
