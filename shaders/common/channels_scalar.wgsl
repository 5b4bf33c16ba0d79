// One channel at a time, for channel counts that are not a multiple of four.
alias Channels = f32;
const CHANNELS_PER_INVOCATION: u32 = 1u;

fn dot_channels(a: Channels, b: Channels) -> f32 {
    return a * b;
}

fn sum_channels(a: Channels) -> f32 {
    return a;
}
