// Channels of feature maps one by one, where they are no multiple of four.
alias Channels = f32;
const CHANNELS_EACH: u32 = 1u;

fn dot_channels(a: Channels, b: Channels) -> f32 {
    return a * b;
}

fn sum_channels(a: Channels) -> f32 {
    return a;
}
