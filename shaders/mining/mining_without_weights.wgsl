// The weights of the cells are not stored.
@group(0) @binding(7) var<uniform> params: Params;

fn store_weight(cell: u32, weight: f32) {}
