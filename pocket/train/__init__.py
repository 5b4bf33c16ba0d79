"""The stages of training, and what they need to have been done before."""

NEEDS: dict[str, tuple[str, ...]] = {
    "language": (),
    "convnext": (),
    "clip": (),
    "align": ("language", "clip", "convnext"),
    "vae": (),
    "unet": ("vae",),
    "lessons": ("unet",),
    "instruct": ("align", "lessons"),
}
STOPPED = 75  # exit status of a stage that was asked to stop
