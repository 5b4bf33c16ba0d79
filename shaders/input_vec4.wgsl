// Activation reader: rows of f32 whose length is a multiple of 4, and the gain of the norm before the product.
@group(0) @binding(0) var<storage, read> input: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> gain: array<vec4<f32>>;

// Where a row starts, and what a column has in common for all rows.
alias Place = u32;
alias Step = u32;

fn input_place(row: u32) -> Place {
    return row * (params.k >> 2u);
}

fn input_step(k4: u32) -> Step {
    return k4;
}

// Elements 4 k4 .. 4 k4 + 3 of a row.
fn input4(place: Place, step: Step) -> vec4<f32> {
    return input[place + step];
}

fn gain4(k4: u32, k: u32) -> vec4<f32> {
    return gain[k4];
}
