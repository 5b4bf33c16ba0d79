// Channels of feature maps by fours.
alias Channels = vec4<f32>;
const CHANNELS_EACH: u32 = 4u;

fn dot_channels(a: Channels, b: Channels) -> f32 {
    return dot(a, b);
}

fn sum_channels(a: Channels) -> f32 {
    return (a.x + a.y) + (a.z + a.w);
}
