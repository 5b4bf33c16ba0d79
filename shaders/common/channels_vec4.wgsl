// Four channels at a time.
alias Channels = vec4<f32>;
const CHANNELS_PER_INVOCATION: u32 = 4u;

fn dot_channels(a: Channels, b: Channels) -> f32 {
    return dot(a, b);
}

fn sum_channels(a: Channels) -> f32 {
    return (a.x + a.y) + (a.z + a.w);
}
