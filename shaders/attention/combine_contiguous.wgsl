// All query positions have as many splits.
@group(0) @binding(2) var<uniform> params: Params;

fn splits_of(position: u32) -> u32 {
    return params.splits;
}
