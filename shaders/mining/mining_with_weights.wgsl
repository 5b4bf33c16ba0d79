// The attention map as an output: the weight of each cell for the token at its place, attended [cells].
@group(0) @binding(7) var<storage, read_write> attended: array<f32>;
@group(0) @binding(8) var<uniform> params: Params;

fn store_weight(cell: u32, weight: f32) {
    attended[cell] = weight;
}
