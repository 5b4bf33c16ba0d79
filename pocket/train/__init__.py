"""The stages of training, and what they need to have been done before."""

NEEDS: dict[str, tuple[str, ...]] = {
    "language": (),
    "towers": (),
    "align": ("language", "towers"),
    "instruct": ("align",),
    "vae": (),
    "paint": ("vae",),
}
STOPPED = 75  # exit status of a stage that was asked to stop
